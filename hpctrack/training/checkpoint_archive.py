"""What a `state.pt` may hold, looked at before torch loads it: a file is believed only as far as it can hold.

torch.load with weights_only runs no code, but it takes sizes from the file: a tensor with strides of 0 is as large as
it says, and parts that are packed unpack to what they like. A checkpoint is an archive of unpacked parts that fit their
checksums; a pickle of plain values and dense tensors, each within a part that is there; and nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctrack.errors import InputError
from hpctrack.process.arguments import shortened

PICKLE_MAX = 1 << 26
VALUES = "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE"
LISTS = "MARK EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS"
NAMES = "PROTO STOP BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID"
OPCODES = frozenset(f"{VALUES} {LISTS} {NAMES}".split())
ITEM_BYTES = {
    **dict.fromkeys(["DoubleStorage", "LongStorage"], 8),
    **dict.fromkeys(["FloatStorage", "IntStorage"], 4),
    **dict.fromkeys(["HalfStorage", "BFloat16Storage", "ShortStorage"], 2),
    **dict.fromkeys(["CharStorage", "ByteStorage", "BoolStorage"], 1),
}
PLAIN = (bool, int, float, str, type(None))


class Whole:
    """What nothing can be added to after it was made."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a value that is changed after it was made")


@dataclass(frozen=True)
class Storage(Whole):
    """A part of the archive with the numbers of tensors: how many, of how many bytes each."""

    key: str
    numbers: int
    item_bytes: int


@dataclass(frozen=True)
class Tensor(Whole):
    """A tensor as the pickle describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it needs as a copy of its own."""
        return math.prod(self.size) * self.storage.item_bytes

    def check(self) -> Tensor:
        """Itself; ValueError unless it lies within its storage and no number is in it twice."""
        numbers = [self.offset, *self.size, *self.stride]
        if not all(type(number) is int and number >= 0 for number in numbers) or len(self.size) != len(self.stride):
            raise ValueError("a tensor whose sizes are none")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        count = math.prod(self.size)
        if count and (last >= self.storage.numbers or count > self.storage.numbers):
            raise ValueError(f"a tensor of {shortened(str(self.size))} in a part of {self.storage.numbers} numbers")
        return self


class Names(OrderedDict):
    """In place of an OrderedDict, which torch's modules give a `_metadata` beside what is in it, and nothing else."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() - {"_metadata"}:
            raise ValueError("a value that is changed after it was made")


class Rebuild(Whole):
    """In place of torch's function that makes a tensor: describes it, and keeps the description in `made`."""

    def __init__(self) -> None:
        self.made: set[Tensor] = set()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
        """A tensor's description."""
        shaped = isinstance(size, tuple) and isinstance(stride, tuple)
        if not isinstance(storage, Storage) or not shaped or more != (False, OrderedDict()):
            raise ValueError("a tensor that is none")
        tensor = Tensor(storage, offset, size, stride).check()
        self.made.add(tensor)
        return tensor


class Outline(pickle.Unpickler):
    """Reads the pickle of an archive with descriptions in place of tensors."""

    def __init__(self, content: bytes, parts: dict[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self.parts, self.rebuild = parts, Rebuild()

    def find_class(self, module: str, name: str) -> Any:
        """The few names that a checkpoint needs."""
        if module == "torch" and name in ITEM_BYTES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return Names
        raise ValueError(f"{shortened(f'{module}.{name}')}, which is neither a tensor nor a plain value")

    def persistent_load(self, pid: Any) -> Storage:
        """A part of the archive."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in ITEM_BYTES:
            raise ValueError("a reference that is none to a storage")
        _, kind, key, _, numbers = pid
        if not isinstance(key, str) or type(numbers) is not int or self.parts.get(key) != numbers * ITEM_BYTES[kind]:
            raise ValueError(f"a storage of {shortened(str(numbers))} numbers that the file does not hold")
        return Storage(key, numbers, ITEM_BYTES[kind])


def check_archive(path: Path, compared: bool = False) -> None:
    """InputError unless `path` is what torch.save makes of a checkpoint's state, in little memory.

    Reads all of it, for the checksums of its parts, unless it has been `compared` with one of the whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = sizes(archive, path.stat().st_size)
            damaged = None if compared else archive.testzip()
            if damaged:
                raise InputError(f"{path}: {shortened(damaged)} fails its checksum")
            name = next(iter(parts)).partition("/")[0]
            content = archive.read(f"{name}/data.pkl")
        prefix = f"{name}/data/"
        outline = read_outline(content, {part.removeprefix(prefix): n for part, n in parts.items() if prefix in part})
    except InputError:
        raise
    except (zipfile.BadZipFile, struct.error, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({shortened(str(error), 200)})") from None
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable checkpoint: it has {shortened(what, 200)}") from None
    if problem := problem_of(outline):
        raise InputError(f"{path}: not a readable checkpoint: {problem}")


def sizes(archive: zipfile.ZipFile, whole: int) -> dict[str, int]:
    """Bytes of each part; ValueError if they are packed, or more than the file can hold."""
    entries = archive.infolist()
    parts = {entry.filename: entry.file_size for entry in entries}
    if not parts or len(parts) < len(entries):
        raise ValueError("parts of the same name, or none")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(parts.values()) > whole:
        raise ValueError(f"parts that are packed, or of more than the file's {whole:,} bytes")
    if any(n > PICKLE_MAX for name, n in parts.items() if name.endswith(".pkl")):
        raise ValueError(f"a description of more than {PICKLE_MAX:,} bytes")
    return parts


def read_outline(content: bytes, parts: dict[str, int]) -> Any:
    """The pickle's content with a Tensor for each tensor; ValueError for what is no plain value."""
    for opcode, value, _ in pickletools.genops(content):
        if opcode.name not in OPCODES or (
            opcode.name in ("LONG_BINPUT", "LONG_BINGET") and (value or 0) > len(content)
        ):
            raise ValueError(f"more than tensors and plain values ({opcode.name})")
    outline = Outline(content, parts)
    state = outline.load()
    claimed = sum(tensor.bytes for tensor in outline.rebuild.made)
    if claimed > 2 * sum(parts.values()):  # a weight may be there twice, as it is and transposed
        raise ValueError(f"tensors of {claimed:,} bytes in parts of {sum(parts.values()):,}")
    return state


def problem_of(state: Any) -> str | None:
    """What is wrong with the shape of a state {model, optimizer}, in words; None if nothing is."""
    if not isinstance(state, dict) or not state.keys() <= {"model", "optimizer"}:
        return "expected a model's and an optimizer's state and nothing else"
    model, optimizer = state.get("model"), state.get("optimizer", {"state": {}, "param_groups": []})
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()
    ):
        return "'model' must be tensors by name"
    if not isinstance(optimizer, dict) or optimizer.keys() != {"state", "param_groups"}:
        return "'optimizer' must have a state and param_groups"
    values, groups = optimizer["state"], optimizer["param_groups"]
    if not isinstance(values, dict) or not all(
        type(index) is int and isinstance(of, dict) and all(is_plain(v, Tensor) for v in of.values())
        for index, of in values.items()
    ):
        return "the optimizer's state must be tensors and numbers by parameter"
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and all(is_plain(v, list, tuple) for v in group.values()) for group in groups
    ):
        return "the optimizer's groups must be plain values"
    return None


def is_plain(value: Any, *more: type) -> bool:
    """Whether it is a plain value or one of `more`; of lists, those of plain values."""
    if isinstance(value, (list, tuple)):
        return type(value) in more and all(isinstance(each, PLAIN) for each in value)
    return isinstance(value, (*PLAIN, *more))

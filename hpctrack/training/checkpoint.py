"""Checkpoints: written to a temporary folder, renamed when whole, and only then named by `latest`.

A checkpoint is a folder `step-00000120` with `state.pt` (tensors and plain values, read with weights_only) and
`meta.json`, which has a checksum of itself and of `state.pt`, and says how far the run's ledger and metrics were. Those
that come with the package (pretrained/) are meant by their names.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import Tensor, nn

from hpctrack.config import OptimConfig
from hpctrack.errors import InputError, MachineError
from hpctrack.files.atomic import (
    clear_leftovers,
    publish,
    remove,
    sync,
    temporary_name,
    with_checksum,
    write_json,
    write_text,
)
from hpctrack.files.jsonlines import Mark, mark_of, mismatch
from hpctrack.parallel.engine import Engine
from hpctrack.process.arguments import shortened
from hpctrack.training import checkpoint_metadata, run_settings
from hpctrack.training.checkpoint_archive import check_archive
from hpctrack.training.checkpoint_metadata import LATEST, META, STATE
from hpctrack.training.optimizers import build_optimizer

NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
SHIPPED = Path(__file__).parents[1] / "pretrained"


def save(folder: Path, step: int, state: dict[str, Any], meta: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` into `folder` and let `latest` name it; then older ones beyond `keep` are removed.

    At every moment `latest` names a whole checkpoint: the folder comes to be with the first one in it, and later ones
    are published first, under a name of their own if `latest` names one of this step. Checkpoints of later steps are
    those of a course that was left, when a run went on from an older one: they go, too.
    """
    name = f"step-{step:08d}"
    if not folder.exists() or (not folder.is_symlink() and not any(folder.iterdir())):
        return _begin(folder, name, state, meta)
    named = (folder / LATEST).read_text(errors="replace").strip() if (folder / LATEST).is_file() else None
    final, number = folder / name, 0
    while final.name == named or (number and final.exists()):
        number += 1
        final = folder / f"{name}-{number}"
    write(final, state, meta)
    write_text(folder / LATEST, final.name)
    _discard([path for path in whole(folder) if path != final and order(path)[0] >= step])
    rotate(final, keep)
    return final


def _begin(folder: Path, name: str, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """The first checkpoint: the folder is published with it and with `latest`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    try:
        write(temporary / name, state, meta)
        write_text(temporary / LATEST, name)
        publish(temporary, folder)
    finally:
        remove(temporary)
    return folder / name


def rotate(newest: Path, keep: int) -> None:
    """Remove those of the same step that `newest` took the place of, and the oldest beyond `keep`, it included."""
    older = [path for path in whole(newest.parent) if order(path) < order(newest)]
    before = [path for path in older if order(path)[0] < order(newest)[0]]
    _discard(older[len(before) :] + before[: max(0, len(before) + 1 - keep)])


def _discard(paths: Sequence[Path]) -> None:
    """Remove checkpoints; each loses its name first, so that no half folder ever has one."""
    for path in paths:
        temporary = temporary_name(path)
        os.rename(path, temporary)
        remove(temporary)


def write(final: Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint's folder, whole or not at all, in the place of one that is there and that nothing names."""
    temporary, aside = temporary_name(final), temporary_name(final)
    try:
        temporary.mkdir(parents=True)
        with open(temporary / STATE, "wb") as raw:
            file = _Hashing(raw)
            torch.save(state, file)  # type: ignore[arg-type]  # the stub wants more of a file than torch does
        sync(temporary / STATE)
        write_json(temporary / META, with_checksum(meta | {"state": file.mark()}))
        if final.exists():
            os.rename(final, aside)
        publish(temporary, final)
        remove(aside)
    except MachineError:
        raise
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = error.strerror if isinstance(error, OSError) else f"a write failed, is the disk full? {error}"
        raise MachineError(f"{final}: checkpoint not written: {reason}; earlier ones stand") from error
    finally:
        remove(temporary)


def amend(path: Path, meta: dict[str, Any]) -> None:
    """Give a whole checkpoint other meta data on the same state, in one step."""
    state = _recorded(path) or mark_of(path / STATE)
    write_json(path / META, with_checksum(meta | {"state": state}))


class _Hashing:
    """A file that torch.save writes, from its beginning to its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.bytes, self.hash = file, 0, xxhash.xxh3_64()

    def write(self, data: Any) -> int:
        """Write and take note."""
        self.file.write(data)
        self.bytes += len(data)
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """As a file does."""
        self.file.flush()

    def mark(self) -> Mark:
        """What was written."""
        return {"bytes": self.bytes, "xxh3": self.hash.hexdigest()}


def whole(folder: Path) -> list[Path]:
    """The checkpoints of a folder, in the order of their steps."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=order)


def order(path: Path) -> tuple[int, int]:
    """The step of a checkpoint by its name, and which one of that step it is."""
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path}: no checkpoint has such a name")
    return int(found[1]), int(found[2] or 0)


def latest(folder: Path) -> Path | None:
    """The checkpoint of a run that goes on; None if there is none at all."""
    there = [path.name for path in whole(folder)]
    names = f"{', '.join(there[-3:])}{' and others' if len(there) > 3 else ''}"
    if not (folder / LATEST).is_file():
        if not there:
            return None
        raise InputError(
            f"{folder / LATEST}: missing, but checkpoints are there ({names}): write the name of the one to go on from "
            f"into it, or name another folder as 'run' to begin anew"
        )
    name = (folder / LATEST).read_text(errors="replace").strip()
    path = folder / name
    if not path.is_dir() or path.parent != folder:
        instead = f"name one of the step-* folders ({names})" if there else "and no other checkpoint is"
        what = f"names '{shortened(name)}', which is not there" if name else "is empty"
        raise InputError(f"{folder / LATEST}: {what}; {instead}")
    return path


def clear(folder: Path) -> None:
    """Remove what a killed run left in its checkpoints' folder and beside it; for the run's owner."""
    clear_leftovers(folder.parent, folder.name, owned=True)
    clear_leftovers(folder, owned=True)
    for path in folder.glob(".step-*.tmp"):  # of 0.1.0, without a process's number
        remove(path)
    for path in whole(folder):
        clear_leftovers(path, owned=True)


def find(path: Path) -> Path:
    """The checkpoint meant by a run folder, a `checkpoints` folder, a checkpoint itself or a shipped one's name."""
    for folder in (path, path / "checkpoints", SHIPPED / path):
        if (folder / STATE).is_file():
            return folder
        if found := latest(folder):
            return found
    shipped = ", ".join(sorted(entry.parent.name for entry in SHIPPED.glob(f"*/{STATE}")))
    raise InputError(
        f"{path}: no checkpoint here (expected a run folder, a folder with {STATE} and {META}, or a shipped model: "
        f"{shipped})"
    )


def read_meta(path: Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint, its checksum compared, and what it holds."""
    return checkpoint_metadata.read_meta(path / META)


def is_exported(meta: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether a checkpoint has, on purpose, only what inference and `train.start_from` need."""
    return "optimizer" not in state and not any(key in meta for key in ("cost", "memory", "precision"))


def check_goes_on(meta: dict[str, Any], state: dict[str, Any], path: Path) -> None:
    """InputError unless the checkpoint has all that a run needs to go on from it."""
    if is_exported(meta, state):
        raise InputError(f"{path}: was exported, without the optimizer's state; train.start_from={path} begins a run")
    checkpoint_metadata.check_goes_on(meta, path / META)
    if not isinstance(state.get("optimizer"), dict):
        raise InputError(f"{path / STATE}: lacks the optimizer's state; no run can go on from here")


def read_state(
    path: Path, device: torch.device | str = "cpu", mapped: bool = False, checked: bool = False
) -> dict[str, Any]:
    """`state.pt` of a checkpoint, its checksums compared unless they are `checked`; no code in the file is run.

    Tensors that are `mapped` take no memory: they are in the file until they are copied from it.
    """
    try:
        if not checked:
            check_state(path)
        return torch.load(path / STATE, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise InputError(f"{path / STATE}: missing; not a whole checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path / STATE}: not a readable checkpoint ({what})") from None


def _recorded(path: Path) -> Mark | None:
    """What the meta data say of `state.pt`; None if they cannot be read, which `read_meta` says, or are of 0.1.0."""
    try:
        return read_meta(path).get("state")
    except (InputError, OSError):
        return None


def check_state(path: Path) -> None:
    """InputError unless `state.pt` of a checkpoint is what was written, and nothing but tensors and plain values."""
    try:
        recorded = _recorded(path)
        wrong = mismatch(path / STATE, recorded) if recorded else None
        check_archive(path / STATE, compared=recorded is not None and not wrong)  # may say more of what is wrong
    except FileNotFoundError:
        raise InputError(f"{path / STATE}: missing; not a whole checkpoint") from None
    if wrong:
        raise InputError(f"{path / STATE}: not a whole checkpoint: {wrong}")


def load_into(target: Any, state: dict[str, Any], path: Path) -> None:
    """Load `state` into a model or an engine; InputError if the checkpoint is of another model."""
    try:
        target.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path / STATE}: holds another model than the configuration says ({first})") from None


def load_model(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load weights into a model; InputError if they are of another model, or not finite."""
    if problem := model_problem(state, model.state_dict()):
        raise InputError(f"{path / STATE}: {problem}")
    load_into(model, state, path)


def check_fits(engine: Engine, state: dict[str, Any], path: Path, config: OptimConfig) -> None:
    """InputError unless an engine can go on from a whole state: of its optimizer's kind and shapes, and finite."""
    problem = model_problem(state["model"], engine.module.state_dict())
    if problem := problem or optimizer_problem(state["optimizer"], engine.parameters, config):
        raise InputError(f"{path / STATE}: {problem}")


def begin_from(model: torch.nn.Module, path: Path, features: Sequence[str]) -> list[str]:
    """Give a new model the weights of a checkpoint, which may be of a smaller one; names of those that begin anew.

    The model may have more layers, and after the checkpoint's features more (`features`: its own). The latter's weights
    begin at zero, so the first layers still compute what they did. InputError if the checkpoint has anything else.
    """
    given, state = read_state(path)["model"], model.state_dict()
    known = run_settings.run_config(read_meta(path), path / META).data.features
    if list(features[: len(known)]) != known:
        raise InputError(f"{path}: made for the features {', '.join(known)}; key 'data.features' must begin with these")
    for name, value in given.items():
        own = state.get(name)
        wider = own is not None and own.ndim == value.ndim == 2 and tuple(own.shape) == (len(value), len(features))
        if wider and value.shape[1:] == (len(known),):
            given[name] = torch.nn.functional.pad(value, (0, len(features) - len(known)))
    load_model(model, {**state, **given}, path)
    return sorted(state.keys() - given.keys())


def digest(model: nn.Module) -> str:
    """Content digest of a model's weights."""
    return weights_digest(model.state_dict())


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The same, of a model's `state_dict`."""
    state = xxhash.xxh3_64()
    for name, tensor in sorted(weights.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


# ----------------------------------------------- whether a state fits the model and optimizer that are to go on from it


State = dict[str, Any]


def model_problem(state: State, own: State) -> str | None:
    """What makes a model's weights unusable: a kind of number, or values that are not finite; None if nothing does.

    Names and shapes are torch's to compare.
    """
    for name, value in state.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            return f"'{name}' has numbers of type {value.dtype}, not {own[name].dtype}"
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"{int((~torch.isfinite(value)).sum())} of {value.numel()} numbers of '{name}' are not finite"
    return None


def optimizer_problem(state: State, parameters: Sequence[Tensor], config: OptimConfig) -> str | None:
    """What makes an optimizer's state unusable for these parameters; None if nothing does.

    Every parameter has the entries that an optimizer of this configuration gives it at its first step, of its shape.
    """
    numbers = [number for group in state["param_groups"] for number in group.get("params") or ()]
    if numbers != list(range(len(parameters))):
        return f"the optimizer's groups are not of {len(parameters)} parameters"
    expected, counted = first_state(config)
    steps = [group["step"] for group in state["param_groups"] if "step" in group]
    if (counted and state["state"] and len(steps) < len(state["param_groups"])) or not all(map(is_count, steps)):
        return "the optimizer's groups do not count their steps"
    for index, values in state["state"].items():
        if not 0 <= index < len(parameters):
            return f"the optimizer has parameter {index} of {len(parameters)}"
        parameter = parameters[index]
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # a part of it may be here
        like = expected[len(shape) >= 2]
        if values.keys() != like.keys():
            return f"parameter {index} has {', '.join(map(str, values))}; expected {', '.join(like)}"
        for key, value in values.items():
            if not fits(value, like[key], shape):
                return f"{key} of parameter {index} is not finite, or not as its parameter"
    return None


def fits(value: Any, example: Any, shape: tuple[int, ...]) -> bool:
    """Whether an entry of a parameter's state is of the kind of `example`, finite, and of the parameter's shape."""
    if isinstance(example, Tensor) != isinstance(value, Tensor):
        return False
    if not isinstance(example, Tensor):
        number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        return number if isinstance(example, (int, float)) else type(value) is type(example)
    if tuple(value.shape) != (shape if example.dim() else ()) or not bool(torch.isfinite(value).all()):
        return False
    return bool(value.dim()) or float(value) >= 0


def is_count(value: Any) -> bool:
    """Whether it is a number of steps."""
    return type(value) is int and value >= 0


def first_state(config: OptimConfig) -> tuple[dict[bool, State], bool]:
    """The state that the optimizer gives a parameter at its first step: of matrices (True) and of vectors (False).

    And whether its groups count the steps.
    """
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(layer, config)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = {parameter.dim() >= 2: dict(optimizer.state[parameter]) for parameter in layer.parameters()}
    return states, "step" in optimizer.param_groups[0]

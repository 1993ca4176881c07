"""Ways to damage files: blindly, byte by byte, and knowingly, dataset by dataset."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from hypothesis import strategies as st

# ------------------------------------------------------------------------------------------------ bytes


def truncate(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def append(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice([1, 8, 512, 4096]))


def flip_bits(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _block(data: bytearray, rng: random.Random) -> tuple[int, int]:
    length = min(len(data), rng.choice([1, 4, 8, 64, 512, 4096]))
    start = rng.randrange(len(data) - length + 1)
    return start, length


def zero_block(data: bytearray, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    data[start : start + length] = bytes(length)
    return bytes(data)


def random_block(data: bytearray, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    data[start : start + length] = rng.randbytes(length)
    return bytes(data)


def move_block(data: bytearray, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    source = rng.randrange(len(data) - length + 1)
    data[start : start + length] = data[source : source + length]
    return bytes(data)


def cut_out(data: bytearray, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    del data[start : start + length]
    return bytes(data)


def special_number(data: bytearray, rng: random.Random) -> bytes:
    """An aligned 8-byte number becomes one that sizes and addresses are wrong with."""
    place = rng.randrange(max(1, len(data) // 8)) * 8
    value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, len(data)])
    data[place : place + 8] = value.to_bytes(8, "little")
    return bytes(data)


BYTES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "truncated": truncate,
    "bytes appended": append,
    "bits flipped": flip_bits,
    "block zeroed": zero_block,
    "block random": random_block,
    "block moved": move_block,
    "block cut out": cut_out,
    "number made special": special_number,
}


# ------------------------------------------------------------------------------------------------ HDF5, knowingly


@dataclass(frozen=True)
class Structured:
    """One change to one part of one HDF5 file; `seed` draws what the kind leaves open."""

    kind: str
    file: str
    target: str  # dataset or attribute
    seed: int

    def apply(self, folder: Path) -> None:
        """Change the file."""
        rng = random.Random(self.seed)
        with h5py.File(folder / self.file, "r+") as file:
            if self.kind in ATTRIBUTE_KINDS:
                ATTRIBUTE_KINDS[self.kind](file, self.target, rng)
            else:
                DATASET_KINDS[self.kind](file, self.target, rng)


def _replace(file: h5py.File, name: str, **created: object) -> None:
    del file[name]
    file.create_dataset(name, **created)


def wrong_type(file: h5py.File, name: str, rng: random.Random) -> None:
    values = np.asarray(file[name][()])
    numbers = ("f8", "f4", "f2", "i8", "u8", "i4", "u1", "S5", "?", ">i4", ">f4")
    types = [t for t in (numbers if values.dtype.kind not in "SO" else ("S1",)) if np.dtype(t) != values.dtype]
    with np.errstate(all="ignore"):
        _replace(file, name, data=values.astype(rng.choice(types)))


def missing(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]


def one_value(file: h5py.File, name: str, rng: random.Random) -> None:
    if not file[name].shape:
        return counter(file, name, rng)
    if not len(file[name]) or file[name].dtype.kind == "O":
        return length(file, name, rng) if len(file[name]) else missing(file, name, rng)
    raw = bytearray(file[name][rng_place := rng.randrange(len(file[name]))].tobytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file[name][rng_place] = np.frombuffer(bytes(raw), file[name].dtype)[0]
    return None


def counter(file: h5py.File, name: str, rng: random.Random) -> None:
    file[name][()] = file[name][()] + file[name].dtype.type(1)


def length(file: h5py.File, name: str, rng: random.Random) -> None:
    values = np.atleast_1d(file[name][()])
    n = rng.choice([0, 1, max(0, len(values) - 1), len(values) + 1, 2 * len(values) + 3])
    _replace(file, name, data=np.resize(values, n) if len(values) else np.zeros(n + 1, values.dtype))


def shape(file: h5py.File, name: str, rng: random.Random) -> None:
    values = file[name][()]
    _replace(file, name, data=rng.choice([np.atleast_2d(values), np.zeros((0, 3)), np.float32(1), h5py.Empty("f4")]))


def huge(file: h5py.File, name: str, rng: random.Random) -> None:
    dtype = file[name].dtype
    _replace(file, name, shape=(rng.choice([2**31, 2**36, 2**40, 2**60]),), dtype=dtype, chunks=(1024,))


def group(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]
    file.create_group(name)


def link(file: h5py.File, name: str, rng: random.Random) -> None:
    names: list[str] = []
    file.visititems(lambda other, item: names.append(other) if isinstance(item, h5py.Dataset) else None)
    target = rng.choice([*names, "/nowhere", f"/{name}"])
    del file[name]
    file[name] = rng.choice([h5py.SoftLink(f"/{target}"), h5py.ExternalLink("elsewhere.h5", "/x")])


def offsets(file: h5py.File, name: str, rng: random.Random) -> None:
    if file[name].dtype.kind not in "iu" or not file[name].shape or not len(file[name]):
        return one_value(file, name, rng)
    values = file[name][()].astype(np.int64)
    place = rng.randrange(len(values))
    near = [int(values[-1]) + 1, int(values[place]) + 1, int(values[place]) - 1]
    lies = [-1, -(2**40), 2**31, 2**40, 2**62, 2**63 - 1, *near]
    how = rng.randrange(4)
    if how == 0:
        values = values[::-1].copy()
    elif how == 1:
        values += rng.choice([1, -1, 1000, 2**40])
    else:
        values[place] = rng.choice(lies)
    with np.errstate(all="ignore"):
        file[name][...] = values.astype(file[name].dtype)
    return None


def not_finite(file: h5py.File, name: str, rng: random.Random) -> None:
    if file[name].dtype.kind != "f" or not len(file[name]):
        return offsets(file, name, rng)
    file[name][rng.randrange(len(file[name]))] = rng.choice([np.nan, np.inf, -np.inf])
    return None


def shuffled(file: h5py.File, name: str, rng: random.Random) -> None:
    if not file[name].shape or len(file[name]) < 2:
        return one_value(file, name, rng)
    values = file[name][()]
    a, b = rng.sample(range(len(values)), 2)
    values[[a, b]] = values[[b, a]]
    file[name][...] = values
    return None


def stored_otherwise(file: h5py.File, name: str, rng: random.Random) -> None:
    values = file[name][()]
    if not np.size(values):
        return length(file, name, rng)
    _replace(file, name, data=np.atleast_1d(values), chunks=True, compression=rng.choice(["gzip", "lzf"]))
    return None


def text(file: h5py.File, name: str, rng: random.Random) -> None:
    n = file[name].size or 0
    _replace(file, name, data=np.array(["x" * rng.randrange(9)] * n, dtype=object), dtype=h5py.string_dtype())


DATASET_KINDS = {
    "wrong dtype": wrong_type,
    "missing dataset": missing,
    "one value changed": one_value,
    "wrong length": length,
    "wrong shape": shape,
    "lying size": huge,
    "group for a dataset": group,
    "link elsewhere": link,
    "lying offsets": offsets,
    "not finite": not_finite,
    "two values swapped": shuffled,
    "stored otherwise": stored_otherwise,
    "text for numbers": text,
}


def missing_attribute(file: h5py.File, name: str, rng: random.Random) -> None:
    del file.attrs[name]


def other_attribute(file: h5py.File, name: str, rng: random.Random) -> None:
    odd = [0, 2, -1, 1.5, 2**62, "", "1", "x" * 300, [1, 1], np.nan, b"\xff\xfe", h5py.Empty("i4")]
    del file.attrs[name]
    file.attrs[name] = rng.choice(odd)


ATTRIBUTE_KINDS = {"missing attribute": missing_attribute, "wrong attribute": other_attribute}


def contents(path: Path) -> tuple[list[str], list[str]]:
    """Names of a file's datasets and attributes."""
    names: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return sorted(names), sorted(file.attrs)


def structured(folder: Path, files: list[str]) -> st.SearchStrategy[Structured]:
    """Any one change to any part of one of the HDF5 files."""
    targets = []
    for file in files:
        datasets, attributes = contents(folder / file)
        seed, where = st.integers(0, 2**32 - 1), st.just(file)
        for kinds, names, weight in ((DATASET_KINDS, datasets, 6), (ATTRIBUTE_KINDS, attributes, 1)):
            one = st.builds(Structured, st.sampled_from(sorted(kinds)), where, st.sampled_from(names), seed)
            targets += [one] * weight
    return st.one_of(targets)


# ------------------------------------------------------------------------------------------------ whole files


def swap(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    a, b = rng.sample(names, 2)
    (folder / a).rename(folder / "aside")
    (folder / b).rename(folder / a)
    (folder / "aside").rename(folder / b)
    return f"{a} and {b}"


def from_twin(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    (folder / name).write_bytes((twin / name).read_bytes())
    return name


def rename(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    stem, suffix = name.rsplit(".", 1)
    (folder / name).rename(folder / f"{stem}{rng.choice(['7', '-copy', ''])}.{suffix}{rng.choice(['', '~'])}"[:200])
    return name


def remove(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    (folder / name).unlink()
    return name


def empty(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    (folder / name).write_bytes(b"")
    return name


def folder_for_file(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    (folder / name).unlink()
    (folder / name).mkdir()
    return name


def extra_copy(folder: Path, twin: Path, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    stem, suffix = name.rsplit(".", 1)
    (folder / f"{stem.split('-')[0]}-00099.{suffix}").write_bytes((folder / name).read_bytes())
    return name


FILES = {
    "files swapped": swap,
    "file of other data": from_twin,
    "file renamed": rename,
    "file removed": remove,
    "file emptied": empty,
    "folder for a file": folder_for_file,
    "file copied": extra_copy,
}

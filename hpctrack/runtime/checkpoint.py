"""Checkpoints: written to a temporary folder, renamed when whole, and only then named by `latest`.

A checkpoint is a folder `step-00000120` with `state.pt` (tensors and plain values, read with weights_only) and
`meta.json`. Those that come with the package (pretrained/) are meant by their names.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

from hpctrack.data.files import publish, sync, write_json, write_text
from hpctrack.errors import InputError, MachineError

LATEST = "latest"
STATE, META = "state.pt", "meta.json"
SHIPPED = Path(__file__).parents[1] / "pretrained"
NEEDED = ("step", "config", "data", "tuned", "window")  # keys of the meta data that others rely on


def save(folder: Path, step: int, state: dict[str, Any], meta: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` into `folder` and let `latest` name it; older ones beyond `keep` are removed."""
    final = folder / f"step-{step:08d}"
    write(final, state, meta)
    write_text(folder / LATEST, final.name)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old != final:
            shutil.rmtree(old)
    return final


def write(final: Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint's folder, whole or not at all, in the place of one that is there."""
    temporary = final.parent / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with open(temporary / STATE, "wb") as file:
            torch.save(state, file)
        sync(temporary / STATE)
        write_json(temporary / META, meta)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else f"a write failed, is the disk full? {error}"
        raise MachineError(f"{final}: checkpoint not written: {reason}; earlier ones stand") from error
    if final.exists():  # the same step, written again after a resume
        shutil.rmtree(final)
    publish(temporary, final)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    if not (folder / LATEST).is_file():
        return None
    path = folder / (folder / LATEST).read_text(errors="replace").strip()
    if not path.is_dir() or path.parent != folder:
        raise InputError(f"{folder / LATEST}: names '{path.name}', which is not there; name one of the step-* folders")
    return path


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
    """`meta.json` of a checkpoint."""
    try:
        meta = json.loads((path / META).read_text())
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path / META}: not a checkpoint's meta data ({error})") from None
    missing = [key for key in NEEDED if key not in meta] if isinstance(meta, dict) else NEEDED
    if missing:
        raise InputError(f"{path / META}: lacks '{missing[0]}'; not a checkpoint's meta data")
    return meta


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """`state.pt` of a checkpoint, its checksums compared; no code in the file is run."""
    try:
        check_archive(path / STATE)
        return torch.load(path / STATE, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path / STATE}: missing; not a whole checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path / STATE}: not a readable checkpoint ({what})") from None


def check_archive(path: Path) -> None:
    """InputError unless each part of a file that torch.save wrote (a zip) fits its CRC-32; torch.load does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, EOFError, LookupError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error})") from None
    if damaged:
        raise InputError(f"{path}: {damaged} fails its checksum")


def load_into(target: Any, state: dict[str, Any], path: Path) -> None:
    """Load `state` into a model or an engine; InputError if the checkpoint is of another model."""
    try:
        target.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path / STATE}: holds another model than the configuration says ({first})") from None


def begin_from(model: torch.nn.Module, path: Path, features: Sequence[str]) -> list[str]:
    """Give a new model the weights of a checkpoint, which may be of a smaller one; names of those that begin anew.

    The model may have more layers, and after the checkpoint's features more (`features`: its own). The latter's weights
    begin at zero, so the first layers still compute what they did. InputError if the checkpoint has anything else.
    """
    given, state = read_state(path)["model"], model.state_dict()
    known = read_meta(path)["config"]["data"]["features"]
    if list(features[: len(known)]) != known:
        raise InputError(f"{path}: made for the features {', '.join(known)}; key 'data.features' must begin with these")
    for name, value in given.items():
        own = state.get(name)
        wider = own is not None and own.ndim == 2 and tuple(own.shape) == (len(value), len(features))
        if wider and value.shape[1:] == (len(known),):
            given[name] = torch.nn.functional.pad(value, (0, len(features) - len(known)))
    load_into(model, {**state, **given}, path)
    return sorted(state.keys() - given.keys())


def digest(model: torch.nn.Module) -> str:
    """Content digest of a model's weights."""
    state = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()

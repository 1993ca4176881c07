"""The folder that a dataset is written into: what may be in it, and how a whole dataset takes the place of another.

Where a finished dataset stands, the new shards and their index are written into the hidden folder NEW in it. Once that
index stands, the new dataset is whole: then its files are moved, and whoever comes after a kill amid that moves the
rest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.files import outputs
from hpctrack.files.atomic import sync
from hpctrack.formats.conversion import SKIPPED
from hpctrack.formats.trackml_files import LOST_AND_FOUND
from hpctrack.storage import hdf5
from hpctrack.storage.hdf5 import INDEX, SHARDS, format_of
from hpctrack.storage.schema import FORMAT

NEW = ".new"


def check_folder(out: Path) -> None:
    """InputError unless `out` is not there, empty, or holds a dataset or a part of one."""
    outputs.check_folder(out)
    if not out.exists():
        return
    index, otherwise = out / INDEX, "choose a new or empty folder"
    if index.exists() and (found := format_of(index)) not in (None, FORMAT):
        raise InputError(f"{out}: holds '{found}', which is no dataset; {otherwise}")
    others = sorted(
        path.name for path in out.iterdir() if not path.name.startswith(".") and path.name != LOST_AND_FOUND
    )
    known = any(out.glob(SHARDS)) or (index.exists() and format_of(index) == FORMAT)
    if others and not known:
        raise InputError(f"{out}: holds {others[0]}, but no dataset; {otherwise}")


def clear(out: Path) -> None:
    """Finish what a kill interrupted: move a new dataset that is whole, remove files that are not."""
    if (out / NEW / INDEX).exists():
        move(out)
    for folder in (out, out / NEW):
        for name in ("events-*", f"{INDEX}.*", f"{SKIPPED}.*"):
            for path in folder.glob(f".{name}.tmp"):
                path.unlink()


def discard(out: Path) -> None:
    """Remove what was begun in NEW."""
    if (out / NEW).exists():
        shutil.rmtree(out / NEW)


def move(out: Path) -> None:
    """Let the whole dataset in NEW take the place of the one in `out`; what it has no shard of, it has from there."""
    new = out / NEW
    with hdf5.open_h5(new / INDEX, "index") as file, hdf5.damage(new / INDEX):
        names = [name.decode() for name in hdf5.small_array(file, "shard_files")]
        any_skipped = bool(file.attrs.get("n_skipped"))
    (out / INDEX).unlink(missing_ok=True)  # from here on nobody takes the folder for the old dataset
    sync(out)
    for name in names:
        if (new / name).exists():
            os.replace(new / name, out / name)
    for path in out.glob(SHARDS):
        if path.name not in names:
            path.unlink()
    if (new / SKIPPED).exists():
        os.replace(new / SKIPPED, out / SKIPPED)
    elif not any_skipped:
        (out / SKIPPED).unlink(missing_ok=True)
    sync(out)
    os.replace(new / INDEX, out / INDEX)
    sync(out)
    shutil.rmtree(new)

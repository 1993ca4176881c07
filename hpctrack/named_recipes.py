"""Recipes by name: those of configs/, which come with the package (`influencer-500`, `pipeline/filter`)."""

from __future__ import annotations

import difflib
from pathlib import Path

from hpctrack.errors import InputError

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # of an installed wheel; of a checkout, or one installed -e
SUFFIX = ".yaml"


def folder() -> Path:
    """The folder of the recipes; InputError if the package has been installed without them."""
    for each in FOLDERS:
        if each.is_dir():
            return each
    raise InputError(f"{FOLDERS[0]}: missing, so there are no recipes by name; give the path of a YAML file")


def names() -> list[str]:
    """The recipes' names; last those in folders: as peers are trained (`peers/…`), of one stage each (`pipeline/…`)."""
    paths = [path.relative_to(folder()).with_suffix("") for path in folder().rglob(f"*{SUFFIX}")]
    return [path.as_posix() for path in sorted(paths, key=lambda path: (len(path.parts), path))]


def path_of(name: str) -> Path:
    """The file of the recipe `name`; InputError that lists the names there are."""
    if name not in (known := names()):
        raise InputError(f"{name}: no recipe of that name; there are: {', '.join(known)}{_nearest(name, known)}")
    return folder() / f"{name}{SUFFIX}"


def find(what: str | Path) -> Path:
    """The file that a path or a recipe's name means: a file that exists comes first, as `./NAME` always is one.

    InputError if neither fits. A folder or device of that name is left to who reads it, unless a recipe has the name.
    """
    path = Path(what)
    if path.is_file():
        return path
    if str(what) in (known := names()):
        return path_of(str(what))
    if path.exists():
        return path
    nearest = _nearest(str(what), known)
    raise InputError(f"{path}: no such configuration file, and no recipe of that name ({', '.join(known)}){nearest}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""

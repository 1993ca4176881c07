"""How a JSON file that a verb wrote is read: its format and version, and the first key that is amiss, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpctrack.errors import InputError
from hpctrack.process.arguments import shortened

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Shape(BaseModel):
    """A part of the results: strict types, finite numbers; what is beside it is left to it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def read_written(path: Path, kind: tuple[str, int], verb: str, again: str) -> dict[str, Any]:
    """The JSON object that `verb` has written, of a format and version; InputError for anything else.

    `again` says what to do about a file that is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; `{verb}` writes it")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {again}") from None
    found = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
    if found != kind:
        raise InputError(f"{path}: format and version are {found}, but this hpctrack reads {kind}")
    return values


def key_of(error: ValidationError) -> str:
    """The first key that is amiss, dotted."""
    return ".".join(map(str, error.errors()[0]["loc"]))


def fault_of(error: ValidationError) -> str:
    """The first key that is amiss, what is wrong with it, and what it is."""
    first, key = error.errors()[0], key_of(error)
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], (dict, list)) else f", got {shortened(repr(first['input']))}"
    where = f"key '{key}': " if key else ""
    return f"{where}{message[0].lower()}{message[1:]}{got}"

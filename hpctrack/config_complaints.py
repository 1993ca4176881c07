"""What is wrong with a key of a configuration, in a line for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, get_origin

from pydantic import BaseModel

from hpctrack.process.arguments import shortened

READ_AS: dict[type | tuple[type, ...], str] = {  # what YAML makes of text without quotes
    bool: "true or false",
    (int, float): "a number",
    date: "a date",
    type(None): "nothing",
}


def complaint(cls: type[BaseModel], error: Mapping[str, Any], key: str, override: str | None) -> str:
    """One of pydantic's complaints in a line that names the key, and for a wrong value says what it is."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{_hint(cls, error['loc'], key)}"
    if kind == "missing":
        return f"key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(value, (dict, BaseModel)):  # keys that do not fit each other
        return f"section '{key}': {message}" if key else message
    if kind == "string_type" and isinstance(value, tuple(READ_AS)):
        what = next(what for read, what in READ_AS.items() if isinstance(value, read))
        name, _, text = (override or "").partition("=")
        how = f"""quote it: {key}='"{text}"'""" if name == key else "put it in quotes"
        return f"key '{key}': {shortened(text if name == key else str(value))} is read as {what}, text is meant; {how}"
    return f"key '{key}': {message[0].lower()}{message[1:]}, got {shortened(repr(value))}"


def _hint(cls: type[BaseModel], location: tuple[Any, ...], key: str) -> str:
    """The nearest key of the section at `location`, else one of that name in another section, else all it has."""
    section: Any = cls
    for part in location[:-1]:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if get_origin(section) or not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ""
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    parent, dot, last = key.rpartition(".")
    found = [f"{parent}{dot}{name}" for name in near]
    found += [
        f"{key.removesuffix('.'.join(map(str, location)))}{name}" for name in _keys(cls) if name.endswith(f".{last}")
    ]
    return f"; did you mean '{found[0]}'?" if found else f"; known: {', '.join(section.model_fields)}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that are no sections."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

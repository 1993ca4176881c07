"""filters.json: what `hpctrack filters` writes of a run's convolutions, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hpctrack.errors import InputError

FORMAT, VERSION = "hpctrack-filters", 1
Level = Annotated[int, Field(ge=0, le=255)]
Real = Annotated[float, Field(allow_inf_nan=False)]


def _of_one_shape(pictures: list[list[list[Any]]]) -> list[list[list[Any]]]:
    shapes = {(len(rows), *{len(row) for row in rows}) for rows in pictures}
    if len(shapes) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise ValueError("pictures must be of one shape, with rows of one length")
    return pictures


class Layer(BaseModel):
    """A convolution: its filters, and the image that excites each of the first ones most, grey levels."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    filters: Annotated[int, Field(ge=1)]
    kernel: list[int]
    pictures: list[list[list[Level]]]

    _shape = field_validator("pictures")(_of_one_shape)


class Filters(BaseModel):
    """All of it; `weights`: of the first convolution's filters, averaged over what they see but two axes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: str
    version: int
    run: str
    model: str
    step: Annotated[int, Field(ge=0)]
    command: list[str]
    settings: dict[str, int | float]
    weights: list[list[list[Real]]]
    layers: Annotated[list[Layer], Field(min_length=1)]

    _shape = field_validator("weights")(_of_one_shape)


def load_filters(path: Path) -> Filters:
    """The content of a filters.json; InputError if it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `hpctrack filters` writes it")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); run `hpctrack filters` again") from None
    found = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise InputError(f"{path}: format and version are {found}, but this hpctrack reads {(FORMAT, VERSION)}")
    try:
        return Filters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: key '{key}': {first['msg']}; run `hpctrack filters` again") from None

"""filters.json: what `hpctrack filters` writes of a run's convolutions, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hpctrack.errors import InputError
from hpctrack.results.reading import key_of, read_written

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
    again = "run `hpctrack filters` again"
    values = read_written(path, (FORMAT, VERSION), "hpctrack filters", again)
    try:
        return Filters.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: key '{key_of(error)}': {error.errors()[0]['msg']}; {again}") from None

"""What `meta.json` of a checkpoint holds, key by key: what another program wrote is one line, not a traceback later.

Without torch, for verbs that only look.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpctrack.errors import InputError
from hpctrack.files.atomic import without_checksum
from hpctrack.files.reading import read_at_most
from hpctrack.process.arguments import WHOLE_MAX, shortened

LATEST = "latest"  # in a folder of checkpoints: the name of the one to go on from
STATE, META = "state.pt", "meta.json"  # the files of a checkpoint
BYTES_MAX = 1 << 26
DEPTH_MAX = 50
Count = Annotated[int, Field(ge=0, le=WHOLE_MAX)]
Amount = Annotated[float, Field(ge=0, le=1e30)]


class Part(BaseModel):
    """A part of the meta data: strict types, finite numbers; what a later version added is left to it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Plan(Part):
    """Where the run stands (Planner.identity)."""

    epoch: Count
    step: Count
    hash: str


class Fit(Part):
    """The state of a LinearFit, whose terms are as many as its subclass says."""

    terms: ClassVar[int]
    samples: list[list[Amount]] = []
    coefficients: list[float] | None = None
    error: float = 0.0

    @model_validator(mode="after")
    def _of_its_terms(self) -> Fit:
        lengths = {len(sample) for sample in self.samples}
        if any(sample[-1] <= 0 for sample in self.samples if sample):
            raise ValueError("a sample's last number must be above 0")
        if lengths - {self.terms + 1} or len(self.coefficients or [0] * self.terms) != self.terms:
            raise ValueError(f"samples are of {self.terms + 1} numbers, coefficients {self.terms}")
        return self


class CostState(Fit):
    """Of resources/cost_model.py."""

    terms = 4


class PeakState(Fit):
    """Of resources/peak_memory.py."""

    terms = 6


class MemoryState(Part):
    """Of resources/peak_memory.py."""

    fits: dict[str, PeakState] = {}
    ceiling: Amount | None = None


class PrecisionState(Part):
    """Of parallel/precision.py."""

    loss_scale: float = Field(gt=0)
    good_steps: Count
    skipped_steps: Count


class MarkOf(Part):
    """What a file held (files/jsonlines.py)."""

    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    xxh3: str


class Meta(Part):
    """What every checkpoint has; what a run needs beside it to go on, `export` leaves out."""

    schema_: int = Field(1, ge=1, alias="schema", description="1 if it is not there")
    hpctrack: str = "of an unknown version"
    step: Count
    config: dict[str, Any]
    neutral: list[str] = []
    packages: dict[str, dict[str, str]] = {}  # other than this one, by the key that names an entry of theirs
    data: str
    hits: str | None = None  # which of the events' hits a filter has kept; None: all
    field_t: float | None = None  # magnetic field of the events, Tesla; None: of before it was recorded
    tuned: dict[str, bool | int | float | str | None]
    window: dict[str, float]
    pending: bool = False
    state: MarkOf | None = None
    journals: dict[str, MarkOf] = {}


class Resumable(Part):
    """What a run needs to go on."""

    plan: Plan
    cost: CostState
    memory: MemoryState
    precision: PrecisionState


M = TypeVar("M", bound=Part)


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a `meta.json`, with what an older one lacks; InputError names what is not a checkpoint's."""
    try:
        values = json.loads(read_at_most(path, BYTES_MAX), parse_constant=_no_constant)
        if depth(values) > DEPTH_MAX:
            raise ValueError(f"more than {DEPTH_MAX} levels")
    except FileNotFoundError:
        raise InputError(f"{path}: missing; not a whole checkpoint") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, not a checkpoint's meta data") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a checkpoint's meta data ({shortened(str(error), 200)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint's meta data, which is a section, not a {type(values).__name__}")
    values = without_checksum(values, path)
    meta = checked(Meta, values, path, "not a checkpoint's meta data")
    known = {"hpctrack": meta.hpctrack, "schema": meta.schema_, "neutral": meta.neutral, "pending": meta.pending}
    return known | values


def check_goes_on(meta: dict[str, Any], path: Path) -> None:
    """InputError if what a run needs to go on is not there, or is something else."""
    checked(Resumable, meta, path, "so no run goes on from it; use it with train.start_from in a new run")


def checked(kind: type[M], values: dict[str, Any], path: Path, without: str) -> M:
    """The values as `kind`; InputError naming the first key that is something else, or missing: `without` it."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise InputError(f"{path}: lacks '{key}', {without}") from None
        got = "" if isinstance(first["input"], (dict, list)) else f", got {shortened(repr(first['input']))}"
        raise InputError(f"{path}: key '{key}': {message[0].lower()}{message[1:]}{got}") from None


def depth(values: Any, most: int = DEPTH_MAX + 1) -> int:
    """Levels of lists and sections within each other; not more than `most` are counted."""
    level, depth_ = [values], 0
    while level and depth_ < most:
        inner = [value for value in level if isinstance(value, (dict, list))]
        level = [each for value in inner for each in (value.values() if isinstance(value, dict) else value)]
        depth_ += 1
    return depth_


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")

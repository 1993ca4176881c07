"""What results.json holds, key by key: what another program wrote is one line, not a traceback later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpctrack.arguments import shortened
from hpctrack.errors import InputError
from hpctrack.reporting.tally import METRICS

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0)]


class Shape(BaseModel):
    """A part of the results: strict types, finite numbers; what is beside it is left to it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Fraction(Shape):
    """A measured number with its counts (tracking/metrics.py); None where nothing was counted."""

    value: float | None
    lo: float | None
    hi: float | None
    numerator: float
    denominator: Count

    @model_validator(mode="after")
    def _counted(self) -> Fraction:
        if (self.value is None) != (self.denominator == 0):
            raise ValueError("value is there if and only if denominator is above 0")
        return self


class Metric(Fraction):
    """A fraction that says what it is."""

    error: float | None
    title: str
    numerator_is: str
    denominator_is: str


class Bin(Fraction):
    """A fraction within bounds; None: without bound."""

    from_: float | None = Field(alias="from")
    to: float | None
    mean: float | None = None

    @model_validator(mode="after")
    def _within_its_error(self) -> Bin:
        bounds = [number for number in (self.lo, self.value, self.hi) if number is not None]
        if bounds != sorted(bounds):
            raise ValueError("value lies between lo and hi")
        return self


class Binned(Shape):
    """A fraction against momentum, direction and number of tracks."""

    pt: list[Bin]
    eta: list[Bin]
    n_tracks: list[Bin]


class Rates(Shape):
    """Those that are shown in bins."""

    efficiency: Binned
    fake_rate: Binned


class Census(Shape):
    """Where candidates went."""

    first_of_target: Count
    duplicates_of_target: Count
    of_other_particles: Count
    fakes: Count
    counted: Count
    short: Count


class Reading(Shape):
    """Candidates as lists, or as exclusive tracks."""

    metrics: dict[str, Metric]
    census: Census
    binned: Rates

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if missing := [name for name in METRICS if name not in self.metrics]:
            raise ValueError(f"metrics lack '{missing[0]}'")
        return self


class Source(Shape):
    """What was evaluated."""

    candidates: str
    dataset: str
    dataset_fingerprint: str
    attributes: dict[str, Any]
    events_in_dataset: Count


class Selection(Shape):
    """Which particles are targets."""

    pt_min_gev: Amount
    min_hits: Count
    eta_max: Amount | None
    text: str


class OfEvent(Shape):
    """The counts of one event in one reading."""

    efficiency: tuple[Count, Count]

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, values: Any) -> Any:
        pair = isinstance(values, dict) and isinstance(values.get("efficiency"), list)
        return values | {"efficiency": tuple(values["efficiency"])} if pair else values


class Event(Shape):
    """One event."""

    event_id: Count
    n_targets: Count
    exclusive: OfEvent


class Seconds(Shape):
    """Of one part of inference."""

    sum: Amount
    median: Amount


class Parts(Shape):
    """Seconds of the parts of inference."""

    read_s: Seconds
    model_s: Seconds
    build_s: Seconds
    total_s: Seconds


class Timings(Shape):
    """How long inference took."""

    events: Count


class Timed(Timings):
    """The same, of some events."""

    ranks: Count
    hits_per_s: Amount | None
    steps: Parts
    per_event: list[Annotated[list[float], Field(min_length=2, max_length=2)]]


class Spread(Shape):
    """Deviations of a track parameter; None: too few."""

    n: Count
    width: float | None
    width_error: float | None
    bias: float | None
    pull_mean: float | None
    pull_mean_error: float | None
    pull_width: float | None
    pull_width_error: float | None
    pull_outliers: Count | None

    @model_validator(mode="after")
    def _all_or_none(self) -> Spread:
        if len({getattr(self, name) is None for name in Spread.model_fields if name != "n"}) > 1:
            raise ValueError("all numbers are there, or none")
        return self


class SpreadBin(Spread):
    """Within bounds; None: without bound."""

    from_: float | None = Field(alias="from")
    to: float | None


class Parameter(Spread):
    """One track parameter, in all and in bins."""

    unit: str
    pt: list[SpreadBin]
    eta: list[SpreadBin]


class Parameters(Shape):
    """All five."""

    q_over_pt: Parameter
    phi: Parameter
    theta: Parameter
    d0: Parameter
    z0: Parameter


class Resolutions(Shape):
    """How well track parameters are estimated."""

    parameters: Parameters
    matched: Count
    selection: str
    error_is: str


class Results(Shape):
    """All of it."""

    hpctrack: str
    command: list[str]
    selection: Selection
    source: Source
    events: Count
    hits: Count
    noise_hits: Count
    target_particles: Count
    candidates: Reading
    exclusive: Reading
    resolutions: Resolutions | None = None
    per_event: list[Event]
    timings: Timed | Timings | None = None

    @model_validator(mode="after")
    def _whole(self) -> Results:
        if "trackml_score" not in self.exclusive.metrics:
            raise ValueError("exclusive.metrics lack 'trackml_score'")
        if self.timings is not None and self.timings.events and not isinstance(self.timings, Timed):
            raise ValueError(f"timings are not whole: {', '.join(Timed.model_fields)}")
        return self


def check_results(values: dict[str, Any], path: Path) -> None:
    """InputError that names the first key which is missing, or is not as `hpctrack evaluate` writes it."""
    try:
        Results.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise InputError(f"{path}: lacks '{key}'; evaluate again") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], (dict, list)) else f", got {shortened(repr(first['input']))}"
        where = f"key '{key}': " if key else ""
        raise InputError(f"{path}: {where}{message[0].lower()}{message[1:]}{got}; evaluate again") from None

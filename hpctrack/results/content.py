"""results.json: what it holds, key by key, how it is read, and how it is said on the terminal.

What another program wrote is one line that names the key, not a traceback later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from hpctrack.errors import InputError
from hpctrack.evaluation.metrics import METRICS
from hpctrack.evaluation.tally import READINGS
from hpctrack.results.reading import Count, Shape, fault_of, key_of, read_written

Amount = Annotated[float, Field(ge=0)]


class Fraction(Shape):
    """A measured number with its counts (evaluation/metrics.py); None where nothing was counted."""

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
    error: float | None
    mean: float | None = None

    @model_validator(mode="after")
    def _within_its_error(self) -> Bin:
        bounds = [number for number in (self.lo, self.value, self.hi) if number is not None]
        if bounds != sorted(bounds):
            raise ValueError("value lies between lo and hi")
        return self


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
    binned: dict[str, dict[str, list[Bin]]]  # metric -> variable -> bins

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if missing := [name for name in METRICS if name not in self.metrics]:
            raise ValueError(f"metrics lack '{missing[0]}'")
        for name in ("efficiency", "fake_rate"):
            if "n_tracks" not in self.binned.get(name, {}):
                raise ValueError(f"binned lacks '{name}.n_tracks'")
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


class ByRule(Shape):
    """The numbers of another group's definitions (evaluation/rules.py)."""

    who: str
    selection: str
    source: str
    events: Count
    hits: Count
    target_particles: Count
    candidates: dict[str, Metric]
    exclusive: dict[str, Metric]

    @model_validator(mode="after")
    def _alike(self) -> ByRule:
        if self.candidates.keys() != self.exclusive.keys():
            raise ValueError("candidates and exclusive have the same metrics")
        return self


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
    not_told: dict[str, str] = {}  # variable -> the columns that the dataset lacks for it
    resolutions: Resolutions | None = None
    rules: dict[str, ByRule] = {}  # those of --rules
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
        if error.errors()[0]["type"] == "missing":
            raise InputError(f"{path}: lacks '{key_of(error)}'; evaluate again") from None
        raise InputError(f"{path}: {fault_of(error)}; evaluate again") from None


RESULTS_FORMAT = "hpctrack-results"
RESULTS_VERSION = 1


def load_results(path: Path) -> dict:
    """The content of a results.json; InputError if it is none."""
    results = read_written(path, (RESULTS_FORMAT, RESULTS_VERSION), "hpctrack evaluate", "evaluate again")
    check_results(results, path)
    return results


# --------------------------------------------------------------------------------------------- as text for the terminal


HEADINGS = {"candidates": "candidate lists (may overlap)", "exclusive": "exclusive tracks (one per hit)"}


def table(results: dict) -> str:
    """The metrics as text: name, value ± error, numerator / denominator."""
    lines = [
        f"{results['events']:,} events, {results['hits']:,} hits, {results['target_particles']:,} target particles "
        f"({results['selection']['text']})"
    ]
    left_out = results["source"]["events_in_dataset"] - results["events"]
    if left_out:
        lines.append(f"note: {left_out:,} of the dataset's events have no candidates and are not counted")
    lines += [f"note: {note}" for note in hidden_hits(results)]
    for reading in READINGS:
        lines += ["", f"{HEADINGS[reading]:<31s}{'value ± error':<20s}numerator / denominator"]
        for number in results[reading]["metrics"].values():
            lines.append(f"  {number['title']:<29s}{value_text(number):<20s}{counts_text(number)}")
    return "\n".join(lines)


def rules_table(results: dict) -> str:
    """The metrics by each rule as text: value ± error and counts of the exclusive tracks, then of the lists."""
    lines = []
    for name, rule in results["rules"].items():
        lines += ["", f"rule {name} – {rule['who']}"]
        lines += [f"  {rule['hits']:,} hits, {rule['target_particles']:,} target particles ({rule['selection']})"]
        lines += [f"{'':<42s}{'exclusive tracks':<40s}candidate lists"]
        for key, number in rule["exclusive"].items():
            pair = [f"{value_text(each):<20s}{counts_text(each)}" for each in (number, rule["candidates"][key])]
            lines.append(f"  {number['title']:<40s}{pair[0]:<40s}{pair[1]}")
    return "\n".join(lines[1:])


def hidden_hits(results: dict) -> list[str]:
    """What inference did not see of the events, in words; the metrics count all hits and particles nevertheless."""
    seen = results["source"]["attributes"].get("selection", {})
    notes = []
    if seen.get("noise") is False:
        notes.append("inference saw no noise hits")
    if seen.get("volumes") is not None:
        notes.append(f"inference saw only hits of the volumes {', '.join(map(str, seen['volumes']))}")
    if seen.get("other_hits") is False:
        cuts = f"pT >= {seen.get('pt_min_gev', 0):g} GeV, >= {seen.get('min_hits', 3)} hits"
        if seen.get("eta_max") is not None:
            cuts += f", |eta| <= {seen['eta_max']:g}"
        notes.append(f"inference saw only hits of particles with {cuts}; the TrackML score counts all hits")
    return notes


def value_text(number: dict) -> str:
    """`0.9812 ± 0.0031`; a dash where nothing was counted."""
    if number["value"] is None:
        return "–"
    return f"{number['value']:.4f}" + (f" ± {number['error']:.4f}" if number["error"] is not None else "")


def counts_text(number: dict) -> str:
    """`393 / 400`; the score's numerator has decimals."""
    top = number["numerator"]
    return f"{f'{top:,}' if isinstance(top, int) else f'{top:,.3f}'} / {number['denominator']:,}"

"""landscape.json: what it holds, part by part, how it is read, and how it is said on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from hpctrack.errors import InputError
from hpctrack.results.reading import Count, Shape, fault_of, read_written

FORMAT, VERSION, NAME = "hpctrack-landscape", 1, "landscape.json"
PARTS = ("landscape", "connections", "similarity", "churn")
LINE, TOTAL = "line", "total"
Number = float | None  # None: not finite, or not there
Matrix = list[list[Number]]


class OfRun(Shape):
    """A run that was looked at."""

    name: str
    group: str
    loss: str
    step: Count
    seed: Annotated[int, Field(ge=0, lt=2**64)]


class Surface(Shape):
    """The losses on a plane: a row for each place of the second axis, in it one for each of the first."""

    run: Count
    directions: dict[str, Any]
    axis: list[float]
    centre: dict[str, dict[str, Number]]
    losses: dict[str, dict[str, Matrix]]

    @model_validator(mode="after")
    def _square(self) -> Surface:
        n = len(self.axis)
        for name, terms in self.losses.items():
            for term, rows in terms.items():
                if len(rows) != n or any(len(row) != n for row in rows):
                    raise ValueError(f"'{name}.{term}' must have {n} rows of {n} numbers")
            if TOTAL not in terms or TOTAL not in self.centre.get(name, {}):
                raise ValueError(f"'{name}' must have a '{TOTAL}'")
        return self


class OnPath(Shape):
    """What was found at the points of a path."""

    losses: dict[str, dict[str, list[Number]]]
    decisions: dict[str, dict[str, list[int | None]]]


class OfPaths(Shape):
    """The paths between two runs."""

    a: Count
    b: Count
    paths: dict[str, OnPath]


class OfLayers(Shape):
    """CKA between the layers of two runs."""

    a: Count
    b: Count
    cka: Matrix
    error: Matrix | None


class OfDecisions(Shape):
    """Churn of two runs."""

    a: Count
    b: Count
    differ: Count
    churn: Number
    normalised: Number


class OfGroup(Shape):
    """Churn within a group of runs."""

    group: str
    runs: Count
    pairs: Count
    mean: Number
    std: Number


class OfTest(Shape):
    """Whether two groups differ in churn."""

    a: str
    b: str
    t: Number
    p_pairs: Number
    p_runs: Number


class Kind(Shape):
    """One kind of decisions."""

    n: Count
    wrong: list[Count]
    pairs: list[OfDecisions]
    groups: list[OfGroup]
    tests: list[OfTest]


class Part(Shape):
    """What each part has."""

    settings: dict[str, Any]
    command: list[str]


class Landscape(Part):
    """Planes through runs."""

    surfaces: list[Surface]


class Connections(Part):
    """Paths between runs, looked at in some places from 0 to 1."""

    places: list[float]
    pairs: list[OfPaths]

    @model_validator(mode="after")
    def _as_many(self) -> Connections:
        for pair in self.pairs:
            for kind, path in pair.paths.items():
                series = [
                    values for of in (path.losses, path.decisions) for terms in of.values() for values in terms.values()
                ]
                if any(len(values) != len(self.places) for values in series):
                    raise ValueError(f"the path '{kind}' must have {len(self.places)} points")
        return self


class Similarity(Part):
    """CKA of all pairs; `layers`: names, of each run."""

    layers: list[list[str]]
    pairs: list[OfLayers]

    @model_validator(mode="after")
    def _of_the_layers(self) -> Similarity:
        for pair in self.pairs:
            if max(pair.a, pair.b) >= len(self.layers):
                raise ValueError(f"the pair {pair.a}, {pair.b} is of a run without layers")
            rows, columns = len(self.layers[pair.a]), len(self.layers[pair.b])
            if len(pair.cka) != rows or any(len(row) != columns for row in pair.cka):
                raise ValueError(f"the pair {pair.a}, {pair.b} must have {rows} x {columns} numbers")
        return self


class Churn(Part):
    """Churn by kind of decision."""

    kinds: dict[str, Kind]


class Parts(Shape):
    """What was looked at."""

    landscape: Landscape | None = None
    connections: Connections | None = None
    similarity: Similarity | None = None
    churn: Churn | None = None


class Results(Shape):
    """The file."""

    runs: list[OfRun] = Field(min_length=1)
    losses: dict[str, dict[str, float]]
    parts: Parts

    @model_validator(mode="after")
    def _of_its_runs(self) -> Results:
        n, parts = len(self.runs), self.parts
        kinds = parts.churn.kinds.values() if parts.churn else ()
        numbers = [one.run for one in parts.landscape.surfaces] if parts.landscape else []
        numbers += [max(p.a, p.b) for p in parts.connections.pairs] if parts.connections else []
        numbers += [max(p.a, p.b) for p in parts.similarity.pairs] if parts.similarity else []
        numbers += [max(pair.a, pair.b) for kind in kinds for pair in kind.pairs]
        if numbers and max(numbers) >= n or any(len(kind.wrong) != n for kind in kinds):
            raise ValueError(f"parts must be of the {n} runs")
        return self


def load_landscape(path: Path) -> dict[str, Any]:
    """The content of a landscape.json, or of that in a folder; InputError if it is none."""
    path = path / NAME if path.is_dir() else path
    again = "remove it and run `hpctrack landscape` again"
    values = read_written(path, (FORMAT, VERSION), "hpctrack landscape", again)
    try:
        Results.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {fault_of(error)}") from None
    return values


# ------------------------------------------------------------------------------------------------ numbers that say most


def known(values: Sequence[Number]) -> list[float]:
    """Those that are finite."""
    return [value for value in values if value is not None]


def path_numbers(path: dict[str, Any], loss: str) -> dict[str, Number]:
    """Of a loss on a path: at its ends (the larger one), largest and mean. The largest is None if one is not finite."""
    values = path["losses"][loss][TOTAL]
    ends = known([values[0], values[-1]])
    whole = len(known(values)) == len(values)
    return {
        "ends": max(ends) if len(ends) == 2 else None,
        "largest": max(values) if whole else None,
        "mean": sum(values) / len(values) if whole else None,
    }


def worst_share(path: dict[str, Any], kind: str, numerator: str, denominator: str, worst: str = "max") -> Number:
    """The largest (or least) share of decisions on a path."""
    counts = path["decisions"].get(kind, {})
    pairs = zip(counts.get(numerator, []), counts.get(denominator, []), strict=True)
    shares = [n / of for n, of in pairs if n is not None and of]
    return (max if worst == "max" else min)(shares) if shares else None


def same_layers(pair: dict[str, Any], layers: Sequence[Sequence[str]]) -> Number:
    """Mean CKA of the layers that have one name in both runs; None if there are none."""
    rows, columns = layers[pair["a"]], layers[pair["b"]]
    values = known([pair["cka"][i][columns.index(name)] for i, name in enumerate(rows) if name in columns])
    return sum(values) / len(values) if values else None


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The results as text for the terminal."""
    names, parts = [run["name"] for run in results["runs"]], results["parts"]
    for one in parts.get("landscape", {}).get("surfaces", []):
        eigen = one["directions"].get("eigen", [])
        curvature = ", ".join(f"{e['value']:.3g}{'' if e['converged'] else ' (not converged)'}" for e in eigen)
        least = "; ".join(f"{name} {text(terms[TOTAL])}" for name, terms in one["centre"].items())
        yield f"{names[one['run']]}: {least}" + (f"; largest curvatures {curvature}" if eigen else "")
    for pair in parts.get("connections", {}).get("pairs", []):
        for kind, path in pair["paths"].items():
            of = [f"{loss} ends {text(n['ends'])} largest {text(n['largest'])} mean {text(n['mean'])}"
                  for loss in path["losses"] for n in [path_numbers(path, loss)]]  # fmt: skip
            what = "line" if kind == LINE else f"curve ({kind})"
            yield f"{names[pair['a']]} to {names[pair['b']]}, {what}: {'; '.join(of)}"
    for pair in parts.get("similarity", {}).get("pairs", []):
        if pair["a"] != pair["b"]:
            mean = same_layers(pair, parts["similarity"]["layers"])
            yield f"{names[pair['a']]} and {names[pair['b']]}: CKA of the same layers {text(mean)}"
    for kind, of_kind in parts.get("churn", {}).get("kinds", {}).items():
        for pair in of_kind["pairs"]:
            both = f"{text(pair['churn'])}, normalised {text(pair['normalised'])}"
            yield f"{names[pair['a']]} and {names[pair['b']]}: churn of {kind} {both}"
        for test in of_kind["tests"]:
            said = f"t = {text(test['t'])}, p = {text(test['p_pairs'])} (pairs), {text(test['p_runs'])} (runs)"
            yield f"{test['a']} against {test['b']}: churn of {kind} {said}"


def text(value: Number) -> str:
    """A number in four figures."""
    return "–" if value is None else f"{value:.4g}"

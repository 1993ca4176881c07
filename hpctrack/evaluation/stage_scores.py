"""What evaluations share of what a pipeline's stages make: scores in bins, cuts on them, and the frame of results.

Scores are counted in bins of their logit, so that every cut can be read off the counts.

Legend: B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hpctrack import __version__
from hpctrack.config import SelectionConfig
from hpctrack.errors import InputError
from hpctrack.evaluation.tally import Cuts
from hpctrack.storage.products import Record, Store
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

if TYPE_CHECKING:
    from typing_extensions import Self

EDGE = 16.0  # largest logit that is told from larger ones
BINS = 6400  # 0.005 each
PER_EVENT = "_per_event"  # ends the names of means, which are no fractions


class Added:
    """A dataclass of counts; `+` adds them up."""

    def __add__(self, more: Self) -> Self:
        return type(self)(**{name: value + getattr(more, name) for name, value in vars(self).items()})


R = TypeVar("R", bound=Record)
T = TypeVar("T", bound=Added)


def score_bin(score: np.ndarray) -> np.ndarray:
    """Number of the bin of each score, 0..B + 1; a score on a bin's lower edge belongs to it."""
    with np.errstate(divide="ignore"):
        logit = np.log(score.astype(np.float64)) - np.log1p(-score.astype(np.float64))
    return np.clip(np.floor((logit + EDGE) * BINS / (2 * EDGE) + 1e-6) + 1, 0, BINS + 1).astype(np.int64)


def opened(store: Store[Any], dataset: Dataset) -> SelectionConfig:
    """The selection of hits that a stage saw.

    InputError if it saw those of another dataset, or hits that were drawn at random.
    """
    folder = store.folder
    if store.attributes["dataset_fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"{folder}: made from another dataset than {dataset.folder}; give the one that `hpctrack infer` read"
        )
    selection = SelectionConfig(**store.attributes.get("selection", {}))
    if selection.tracks is not None:
        raise InputError(f"{folder}: made from a random draw of tracks (selection.tracks); infer on all of them")
    if selection.noise_share is not None:
        raise InputError(f"{folder}: made from a random draw of noise (selection.noise_share); infer on all of it")
    return selection


def tallied(
    store: Store[R], dataset: Dataset, columns: Sequence[str], tally: Callable[[Event, R], T]
) -> tuple[list[T], T]:
    """Counts of each event by `tally`, which sees these columns of it, and their sum; InputError if there is none."""
    tallies = [
        tally(dataset.read(int(np.searchsorted(dataset.event_ids, event)), columns), store.read(i))
        for i, event in enumerate(store.event_ids)
    ]
    if not tallies:
        raise InputError(f"{store.folder}: has no event")
    return tallies, sum(tallies[1:], tallies[0])


def frame(format_: str, store: Store[Any], dataset: Dataset, cuts: Cuts, command: list[str]) -> dict[str, Any]:
    """What all results begin with."""
    return {
        "format": format_,
        "version": 1,
        "hpctrack": __version__,
        "command": command,
        "selection": {**vars(cuts), "text": cuts.text()},
        "source": {
            store.product.name: str(store.folder),
            "attributes": store.attributes,
            "dataset": str(dataset.folder),
        },
    }


def at_cuts(counts: Mapping[float, Mapping[str, tuple[int, int]]]) -> dict[str, dict[str, Any]]:
    """Numerators and denominators by cut as fractions with errors."""
    return {str(cut): {name: with_error(*n) for name, n in numbers.items()} for cut, numbers in counts.items()}


def with_error(numerator: int, denominator: int) -> dict[str, Any]:
    """A fraction with its binomial error, and what it is made of; None where nothing was counted."""
    if not denominator:
        return {"value": None, "error": None, "numerator": numerator, "denominator": denominator}
    value = numerator / denominator
    error = (max(value * (1 - value), 0.0) / denominator) ** 0.5
    return {"value": value, "error": error, "numerator": numerator, "denominator": denominator}


def table_of(head: str, cuts: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as text: `head`, and a line for each cut on the score."""
    names = list(next(iter(cuts.values())))
    lines = [head, "", f"{'score >=':>8s}" + "".join(f"{name:>17s}" for name in names)]
    for cut, numbers in cuts.items():
        values = [numbers[name]["value"] for name in names]
        forms = [",.0f" if name.endswith(PER_EVENT) else ".4f" for name in names]
        shown = ["-" if value is None else format(value, form) for value, form in zip(values, forms, strict=True)]
        lines.append(f"{cut:>8s}" + "".join(f"{text:>17s}" for text in shown))
    return "\n".join(lines)

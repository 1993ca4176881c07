"""What is computed with which columns of a dataset, and the one line that is said where the dataset lacks them.

Whatever reads an event says its columns: a feature (events/features.py), a kind of graph, a method, a model or a term
of a loss (their `COLUMNS`), a metric (evaluation/metrics.py). Those that a recipe or a command asks for make a list of
Need, which is held against what the dataset lacks before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hpctrack.config import SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events import truth
from hpctrack.events.features import FEATURES, feature_columns
from hpctrack.storage.schema import parts_of
from hpctrack.storage.store import Dataset

TRACKS = ("truth.particle_row",)  # which hits are of one particle: what every loss and every metric needs
MOMENTA = ("particles.px", "particles.py")
DIRECTIONS = (*MOMENTA, "particles.pz")
EDGES = tuple(truth.COLUMNS)  # which edges are true


@dataclass(frozen=True)
class Need:
    """That `who`, as it stands in a recipe or on a command line, is computed with `columns`."""

    who: str
    columns: Sequence[str]


def of_features(names: Sequence[str], of: str) -> list[Need]:
    """What the inputs `of` a model are made of; InputError for an unknown one."""
    feature_columns(names)
    return [Need(f"feature '{name}' of {of}", FEATURES[name].columns) for name in names]


def of_selection(selection: SelectionConfig, key: str) -> list[Need]:
    """What the choice of hits needs beside the hits; `key` is its section."""
    by_truth = {
        "noise=false": not selection.noise,
        "other_hits=false": not selection.other_hits,
        "noise_share": selection.noise_share is not None,
        "tracks": selection.tracks is not None,
    }
    cuts = [Need(f"{key}.pt_min_gev", MOMENTA)] if selection.pt_min_gev > 0 else []
    cuts += [Need(f"{key}.eta_max", DIRECTIONS)] if selection.eta_max is not None else []
    return [Need(f"{key}.{what}", TRACKS) for what, asked in by_truth.items() if asked] + cuts


def lacking(data: Dataset, needs: Iterable[Need]) -> list[Need]:
    """Those of the needs that the dataset does not meet, with the columns that it lacks alone."""
    asked = [need for need in needs if any(not column.startswith("hits.") for column in need.columns)]
    found = [Need(need.who, [name for name in need.columns if name in data.lacks]) for need in asked]
    return [need for need in found if need.columns]


def check(data: Dataset, needs: Iterable[Need], instead: Callable[[frozenset[str]], str] | None = None) -> None:
    """InputError that names what the dataset lacks, who needs it and, by `instead` of these columns, what does not."""
    unmet = lacking(data, needs)
    if unmet:
        columns = frozenset(name for need in unmet for name in need.columns)
        hint = instead(columns) if instead else ""
        raise InputError(f"{data.folder}: {said(unmet)}{f'; {hint}' if hint else ''}")


def said(unmet: Sequence[Need]) -> str:
    """In words: what is lacking, and the first that needs it."""
    others = f" (and {len(unmet) - 1} more)" if len(unmet) > 1 else ""
    parts = ", ".join(parts_of({name for need in unmet for name in need.columns}))
    return f"lacks {parts}, which {unmet[0].who}{others} needs"

"""What the builders of candidates share: options, tuning, and the way from lists of hits to an event's candidates.

Legend: N hits of the event that the model saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from hpctrack.config import Section
from hpctrack.data.schema import Candidates
from hpctrack.errors import MachineError
from hpctrack.tracking.lists import Lists

Outputs = Mapping[str, np.ndarray]
PAIRS_PER_HIT = 200  # near each other, on average, above which a radius says nothing: tracks have some ten hits
PAIRS_ALWAYS = 1 << 24  # that are listed whatever the event's size: about 1 GB


class TooManyPairs(MachineError):
    """More hits are near each other than could be candidates, or held in memory."""


def pairs_limit(n_hits: int) -> int:
    """The most pairs of `n_hits` hits that are listed."""
    return max(PAIRS_ALWAYS, PAIRS_PER_HIT * n_hits)


def check_pairs(pairs: int, n_hits: int, option: str, radius: float) -> None:
    """TooManyPairs, which names the `option` that sets the radius, unless so many pairs of `n_hits` hits can be."""
    limit = pairs_limit(n_hits)
    if pairs > limit:
        raise TooManyPairs(
            f"{pairs} pairs of {n_hits} hits are within {option}={radius:g}, at most {limit} are taken; lower it, or "
            "train further: hits are not apart yet"
        )


class Builder:
    """A builder says how hits become candidates, `lists(outputs)`, and which options can be tuned, `grid()`."""

    class Options(Section):
        """The smallest candidate that counts."""

        min_hits: int = Field(3, ge=1, description="smaller groups are no candidates")

    options: Any

    def __init__(self, options: Options) -> None:
        self.options = options

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        raise NotImplementedError

    @property
    def needs_tuning(self) -> bool:
        """True while an option of the grid is open."""
        return any(getattr(self.options, name) is None for setting in self.grid() for name in setting)

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event with `n_hits` hits from the outputs of its hits `hit_rows` [N], ascending.

        TooManyPairs that names the event.
        """
        try:
            found = self.lists(outputs)
        except TooManyPairs as error:
            raise TooManyPairs(f"event {event_id}: {error}") from error
        return found.at(hit_rows).candidates(n_hits, event_id, self.options.min_hits)

    @staticmethod
    def sweep(builders: Sequence[Any], outputs: Outputs) -> Iterator[Lists | None]:
        """Each builder's candidates of the same event; None where its setting cannot be."""
        for builder in builders:
            yield builder.lists(outputs)

    def lists(self, outputs: Outputs) -> Lists:
        """Candidates by the places of their hits among the N."""
        raise NotImplementedError


def radii() -> list[dict[str, Any]]:
    """A grid of `radius`, for embeddings whose loss has a margin of 1."""
    return [{"radius": round(0.05 * k, 2)} for k in range(1, 21)]

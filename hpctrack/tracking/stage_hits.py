"""Builder `hits`: the hits that a hit filter scores highly enough, for the stages behind it to see.

Legend: N hits of the event, C cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.storage.hits import Hits
from hpctrack.tracking.builder import Builder, Outputs
from hpctrack.tracking.edge_clustering import sigmoid

if TYPE_CHECKING:
    from typing_extensions import Self

LOGITS = np.arange(-2000, 2001) / 200  # of the cuts that tuning tries; a step moves an efficiency by less than 0.001


class HitsBuilder(Builder):
    """Hits that are probable enough to be a target's, with that probability as score.

    The tuned cut is the largest that keeps the share `efficiency` of the targets' hits of the validation events.
    """

    class Options(Section):
        """The cut, or what it is to keep."""

        cut: float | None = Field(
            None, ge=0, lt=1, description="hits must be as probable; null: tuned on validation events"
        )
        efficiency: float = Field(0.995, gt=0, le=1, description="share of targets' hits that the tuned cut keeps")

    product = "hits"
    n_counts = 2  # targets' hits that pass, and all of them

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries: cuts even in logits, and 0, which keeps everything."""
        return [{"cut": cut} for cut in sorted({0.0, *(float(f"{cut:.6g}") for cut in sigmoid(LOGITS))})]

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Hits:
        """Hits of one event from `hit_score` [N], logits, of its hits `hit_rows` [N], ascending."""
        score = sigmoid(scores(outputs))
        kept = score >= self.options.cut
        return Hits(event_id, hit_rows[kept].astype(np.int32), score[kept].astype(np.float32))

    @classmethod
    def count(cls, builders: Sequence[Self], outputs: Outputs, particle: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Targets' hits of an event that pass each builder's cut, and all of them: int64 [C, 2], in one pass."""
        cuts = np.array([builder.options.cut for builder in builders])
        order = np.argsort(cuts)
        wanted = np.append(target, False)[particle]  # of noise: the last place
        passed = np.searchsorted(cuts[order], sigmoid(scores(outputs)[wanted]), side="right")  # so many of the cuts
        number = np.bincount(passed, minlength=len(cuts) + 1)
        counts = np.empty((len(cuts), 2), dtype=np.int64)
        counts[order, 0] = np.cumsum(number[::-1])[::-1][1:]
        counts[:, 1] = number.sum()
        return counts

    @classmethod
    def choose(cls, builders: Sequence[Self], counts: np.ndarray) -> int:
        """The largest cut that keeps the wanted share of the targets' hits; the smallest if there is no such hit."""
        cuts = np.array([builder.options.cut for builder in builders])
        enough = (counts[:, 0] >= builders[0].options.efficiency * counts[:, 1]) & (counts[:, 1] > 0)
        return int(np.argmax(np.where(enough, cuts, -1.0))) if enough.any() else int(np.argmin(cuts))


def scores(outputs: Outputs) -> np.ndarray:
    """A model's output `hit_score` [N]; InputError if it has none."""
    if "hit_score" not in outputs:
        raise InputError("section 'builder': 'hits' needs a model that scores hits; take the model 'hit_filter'")
    return outputs["hit_score"]

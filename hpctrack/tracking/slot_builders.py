"""Candidates of models that give tracks in slots: the hits that are near a slot's line, or are assigned to it.

Legend: N hits, S slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from hpctrack.errors import InputError
from hpctrack.tracking.builder import BaseBuilder, Lists, Outputs, joined


class SlotBuilder(BaseBuilder):
    """A slot is a candidate if the model says that it has a track, or says nothing of it, and if it has enough hits."""

    class Options(BaseBuilder.Options):
        """What a slot needs."""

        presence: float = Field(0.5, ge=0, le=1, description="least probability of a slot's track, where it is given")

    def lists(self, outputs: Outputs) -> Lists:
        """Candidates by the places of their hits among the N, with the probability of their track as score."""
        slot_N, slots = self.slot_of_hits(outputs)
        probability_S = np.ones(slots)
        if "event_presence" in outputs:
            probability_S = 1 / (1 + np.exp(-outputs["event_presence"][0].astype(np.float64)))
        found = [np.flatnonzero(slot_N == slot) for slot in range(slots)]
        good = [
            slot
            for slot in range(slots)
            if len(found[slot]) >= self.options.min_hits and probability_S[slot] >= self.options.presence
        ]
        return joined([found[slot] for slot in good], [probability_S[slot] for slot in good])

    def slot_of_hits(self, outputs: Outputs) -> tuple[np.ndarray, int]:
        """The slot of each hit [N], -1 for none, and the number of slots."""
        raise NotImplementedError


class LinesBuilder(SlotBuilder):
    """A hit belongs to the nearest line, if that is near enough: of `hit_distance` [N, S], pixels."""

    class Options(SlotBuilder.Options):
        """How near."""

        near: float | None = Field(1.5, gt=0, description="largest distance of a hit along columns, pixels")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Distances from half a pixel."""
        return [{"near": near} for near in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)]

    def slot_of_hits(self, outputs: Outputs) -> tuple[np.ndarray, int]:
        """As the base class says; InputError of a model without lines."""
        if "hit_distance" not in outputs:
            raise InputError("builder 'lines': the model gives no lines; captioning and track_queries do")
        far_NS = np.abs(outputs["hit_distance"])
        slot_N = far_NS.argmin(axis=1)
        near_N = np.take_along_axis(far_NS, slot_N[:, None], axis=1)[:, 0] <= self.options.near
        return np.where(near_N, slot_N, -1), far_NS.shape[1]


class SlotsBuilder(SlotBuilder):
    """A hit belongs to the slot with its best score in `hit_slot` [N, S + 1]; the last stands for none."""

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Nothing is tuned."""
        return []

    def slot_of_hits(self, outputs: Outputs) -> tuple[np.ndarray, int]:
        """As the base class says; InputError of a model that does not assign hits."""
        if "hit_slot" not in outputs:
            raise InputError("builder 'slots': the model does not assign hits; set model.hits of track_queries")
        slots = outputs["hit_slot"].shape[1] - 1
        best_N = outputs["hit_slot"].argmax(axis=1)
        return np.where(best_N < slots, best_N, -1), slots

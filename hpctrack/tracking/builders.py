"""Model outputs -> track candidates: one class a builder, one line in BUILDERS.

`build(outputs, hit_rows, n_hits, event_id) -> Candidates`. A builder with an open option is tuned on validation events:
`grid()` lists the settings to try, `tuning_counts` counts how each does, `choose` picks one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy.spatial import cKDTree

from hpctrack.config import Named, Section, lookup, parse
from hpctrack.data.schema import Candidates
from hpctrack.tracking import metrics
from hpctrack.tracking.matching import match

Outputs = Mapping[str, np.ndarray]


class RadiusBuilder:
    """Users within a fixed radius of each influencer (D. Murnane, "Influencer Loss", CHEP 2023, inference).

    Every influencer whose neighbourhood has at least `min_hits` users is a candidate; nothing is removed, so candidates
    may overlap. The exclusive reading takes candidates from the best score (then the largest, then lowest hit row) and
    keeps each that still has most of its hits. A candidate's score is 1 - mean distance / radius of its users.
    """

    class Options(Section):
        """The search radius, and the smallest candidate that counts."""

        radius: float | None = Field(None, gt=0, description="null: tuned on validation events after training")
        min_hits: int = Field(3, ge=1, description="smaller neighbourhoods are no candidates")

    def __init__(self, options: Options) -> None:
        self.options = options

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"radius": round(0.05 * k, 2)} for k in range(1, 21)]

    @property
    def needs_tuning(self) -> bool:
        """True while the radius is open."""
        return self.options.radius is None

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event from `user` and `influencer` [N, E] of its hits `hit_rows` [N], ascending."""
        user, influencer = (outputs[name].astype(np.float64) for name in ("user", "influencer"))
        near = neighbourhoods(user, influencer, self.options.radius)
        kept = [(c, rows) for c, rows in enumerate(near) if len(rows) >= self.options.min_hits]
        members = [np.asarray(sorted(rows), dtype=np.int64) for _, rows in kept]
        distance = [np.linalg.norm(user[m] - influencer[c], axis=1) for (c, _), m in zip(kept, members, strict=True)]
        scores = [1 - d.mean() / self.options.radius for d in distance]
        return from_lists([hit_rows[m] for m in members], scores, n_hits, event_id, self.options.min_hits)


def from_lists(
    lists: Sequence[np.ndarray], scores: Sequence[float], n_hits: int, event_id: int, min_hits: int
) -> Candidates:
    """Candidates from their hit rows, each ascending and without repetition, and scores."""
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    rows = (np.concatenate(lists) if len(lists) else np.zeros(0)).astype(np.int32)
    values = np.asarray(scores, dtype=np.float32)
    return Candidates(event_id, offsets, rows, values, exclusive(offsets, rows, values, n_hits, min_hits))


def neighbourhoods(user: np.ndarray, influencer: np.ndarray, radius: float) -> list[list[int]]:
    """Indices of the users within `radius` of each influencer."""
    return list(cKDTree(user).query_ball_point(influencer, radius)) if len(user) else []


def exclusive(offsets: np.ndarray, rows: np.ndarray, scores: np.ndarray, n_hits: int, min_hits: int) -> np.ndarray:
    """One track id per hit, int32 [n_hits], 0 = none: the best first, each kept if most of its hits are free."""
    track_ids = np.zeros(n_hits, dtype=np.int32)
    first = rows[offsets[:-1]] if len(scores) else rows
    next_id = 1
    for c in np.lexsort((first, -np.diff(offsets), -scores)):
        members = rows[offsets[c] : offsets[c + 1]]
        free = members[track_ids[members] == 0]
        if len(free) >= min_hits and 2 * len(free) > len(members):
            track_ids[free] = next_id
            next_id += 1
    return track_ids


BUILDERS: dict[str, Any] = {"radius": RadiusBuilder}


def build_builder(config: Named, **tuned: Any) -> Any:
    """The builder that the section `builder` names; `tuned` fills options that tuning found."""
    builder = lookup(BUILDERS, config.name, "builder")
    return builder(parse(builder.Options, config.options | tuned, "builder", "builder"))


def tuning_counts(config: Named, events: Iterable[tuple[Outputs, np.ndarray]]) -> np.ndarray:
    """How every setting of the grid does on `events` of (outputs, track [N]): int64 [settings, 4].

    Columns: double-majority numerator and denominator, fake-rate numerator and denominator; add them over ranks.
    """
    grid = lookup(BUILDERS, config.name, "builder").grid()
    builders = [build_builder(config, **setting) for setting in grid]
    counts = np.zeros((len(grid), 4), dtype=np.int64)
    for outputs, track in events:
        n_tracks = int(track.max(initial=-1)) + 1
        target = np.ones(n_tracks, dtype=bool)
        for k, builder in enumerate(builders):
            found = builder.build(outputs, np.arange(len(track)), len(track), 0)
            matched = match(found.hit_offsets, found.hit_rows, track, n_tracks)
            counts[k, :2] += metrics.double_majority_efficiency(matched, target)
            counts[k, 2:] += metrics.fake_rate(matched, target)
    return counts


def choose(config: Named, counts: np.ndarray) -> dict[str, Any]:
    """The setting with the largest double-majority efficiency minus fake rate; of equals the first."""
    efficiency = counts[:, 0] / np.maximum(counts[:, 1], 1)
    fake_rate = np.where(counts[:, 3] > 0, counts[:, 2] / np.maximum(counts[:, 3], 1), 1.0)
    return lookup(BUILDERS, config.name, "builder").grid()[int(np.argmax(efficiency - fake_rate))]

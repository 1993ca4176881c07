"""Builder `radius`: users within a fixed radius of each influencer, or of each user.

Legend: N hits of the event, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from hpctrack.errors import InputError
from hpctrack.evaluation.matching import exclusive_lists
from hpctrack.storage.schema import Candidates
from hpctrack.tracking import radius_on_device
from hpctrack.tracking.builder import (
    BaseBuilder,
    Lists,
    Outputs,
    TooManyPairs,
    check_pairs,
    of_event,
    pairs_limit,
    radii,
)
from hpctrack.tracking.hit_probability import Cut, probabilities
from hpctrack.tracking.on_device import TensorLists, Tensors

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLE = 4096  # points whose neighbours are counted first
DOUBTFUL = 0.25  # of the most pairs there can be
CUTS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # that tuning tries


class RadiusBuilder(BaseBuilder):
    """Users within a fixed radius of each influencer (D. Murnane, "Influencer Loss", CHEP 2023, inference).

    Every influencer whose neighbourhood has at least `min_hits` users is a candidate; nothing is removed, so candidates
    may overlap. A candidate's score is 1 - mean distance / radius of its users. The exclusive reading takes candidates
    from the best score (then the largest, then lowest hit row) and keeps each that still has most of its hits; then, if
    `assign` is nearest, each hit goes to the nearest of the tracks' mean users, if that is within `reach` times the
    radius.

    Influencers of tracks of few hits lie less often beside their users than those users beside each other. With
    `around: users` the users themselves are what is searched around; then hits of no track, whose users nothing keeps
    apart, make candidates. The `cut` leaves these out, if the model scores hits: see `probabilities`.
    """

    class Options(BaseBuilder.Options):
        """The search radius, and the smallest candidate that counts."""

        radius: float | None = Field(
            None, gt=0, description="within which hits belong together; null: tuned on validation events"
        )
        around: Literal["influencers", "users"] = Field(
            "influencers", description="where candidates are looked for; users find more of the tracks of few hits"
        )
        cut: float | None = Field(
            0.0,
            ge=0,
            lt=1,
            description="least mean probability of a candidate's hits (model.hit_score); null: tuned in validation",
        )
        track_share: float = Field(
            0.85, gt=0, lt=1, description="share of hits on tracks in the events that the model has learned from"
        )
        tuned_by: Literal["lists", "exclusive"] = Field(
            "lists", description="the reading of candidates that tuning looks at: lists of hits, or one track a hit"
        )
        assign: Literal["nearest", "best"] = Field(
            "nearest", description="a hit's only track: of the nearest mean user, or of the best candidate that has it"
        )
        reach: float = Field(
            1.0, gt=0, le=1, description="of a mean user, as a share of the radius; for events of mostly other hits"
        )

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries: every cut with every radius."""
        return [{"cut": cut} | radius for cut in CUTS for radius in radii()]

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event from `user` and `influencer` [N, E] of its hits `hit_rows` [N], ascending."""
        candidates = super().build(outputs, hit_rows, n_hits, event_id)
        if self.options.assign == "best":
            return candidates
        track_ids = candidates.track_ids.copy()
        track_ids[hit_rows] = self.nearest(track_ids[hit_rows], outputs)
        return replace(candidates, track_ids=track_ids)

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """As `build`, of tensors, where these are."""
        options = self.options
        with of_event(event_id):
            found = self.lists_on_device(outputs)
        track_N = found.exclusive(len(hit_rows), options.min_hits)
        if options.assign == "nearest":
            reach = options.reach * options.radius
            track_N = radius_on_device.nearest_track(outputs["user"].double(), track_N, reach, options.min_hits)
        return found.candidates(track_N, hit_rows, n_hits, event_id)

    @classmethod
    def sweep(cls, builders: Sequence[Self], outputs: Outputs) -> Iterator[Lists | None]:
        """Each builder's candidates of the same event: one search, with the largest radius that can be, serves all.

        With `tuned_by: exclusive`, the hits of its tracks that share none.
        """
        trees = trees_of(outputs, builders[0].options.around)
        wanted = sorted({builder.options.radius for builder in builders}, reverse=True)
        largest = next((radius for radius in wanted if can_be(trees, radius)), None)
        near = search(trees, largest) if largest is not None else None
        cutting = next((builder for builder in builders if builder.options.cut), builders[0])
        probability_N = cutting.probability(outputs)
        for builder in builders:
            can = largest is not None and builder.options.radius <= largest
            yield builder.as_tuned(builder.probable(builder.select(near), probability_N), outputs) if can else None

    def as_tuned(self, found: Lists, outputs: Outputs) -> Lists:
        """The reading of candidates that tuning looks at."""
        if self.options.tuned_by == "lists":
            return found
        n_hits, min_hits = len(outputs["user"]), self.options.min_hits
        track_ids = found.candidates(n_hits, 0, min_hits).track_ids
        if self.options.assign == "nearest":
            track_ids = self.nearest(track_ids, outputs)
        offsets, rows = exclusive_lists(track_ids)
        return Lists(offsets, rows, np.ones(len(offsets) - 1))

    def lists(self, outputs: Outputs) -> Lists:
        """Neighbourhoods of at least `min_hits` users, in the order of the hits that they are around."""
        trees = trees_of(outputs, self.options.around)
        check_radius(trees, self.options.radius)
        return self.probable(self.select(search(trees, self.options.radius)), self.probability(outputs))

    def lists_on_device(self, outputs: Tensors) -> TensorLists:
        """As `lists`, of tensors, where these are."""
        around = outputs["user" if self.options.around == "users" else "influencer"].double()
        probability_N = self.probability(outputs)
        found = radius_on_device.search(around, outputs["user"].double(), self.options.radius, self.options.min_hits)
        if probability_N is None:
            return found
        return radius_on_device.probable(found, Cut(probability_N, self.options.cut))

    def probable(self, found: Lists, probability_N: np.ndarray | None) -> Lists:
        """Those candidates whose hits are on tracks with a mean probability of at least the cut."""
        if not self.options.cut or probability_N is None or len(found.offsets) < 2:
            return found
        size = np.diff(found.offsets)
        keep = np.add.reduceat(probability_N[found.rows], found.offsets[:-1]) >= self.options.cut * size
        offsets = np.concatenate([[0], np.cumsum(size[keep])]).astype(np.int64)
        return Lists(offsets, found.rows[np.repeat(keep, size)], found.scores[keep])

    def probability(self, outputs: Mapping[str, Any]) -> np.ndarray | None:
        """That each hit is on a track, [N], if there is a cut; InputError if the model has no output `hit_score`."""
        if not self.options.cut:
            return None
        if "hit_score" not in outputs:
            raise InputError(
                "builder.cut: the model does not score hits; set model.hit_score and train it, or leave the cut 0"
            )
        score_N = np.asarray(torch.as_tensor(outputs["hit_score"]).double().cpu()).ravel()
        return probabilities(score_N, self.options.track_share)

    def nearest(self, track_ids_N: np.ndarray, outputs: Outputs) -> np.ndarray:
        """Each hit's track after all hits chose the nearest mean user."""
        reach = self.options.reach * self.options.radius
        return nearest_track(outputs["user"].astype(np.float64), track_ids_N, reach, self.options.min_hits)

    def select(self, near: csr_matrix) -> Lists:
        """Candidates from neighbourhoods of at least the radius; their rows are the columns of `near`."""
        radius = self.options.radius
        inside = near.data <= radius
        size = np.diff(np.concatenate([[0], np.cumsum(inside)])[near.indptr])
        large = size >= self.options.min_hits
        inside &= np.repeat(large, np.diff(near.indptr))
        offsets = np.concatenate([[0], np.cumsum(size[large])]).astype(np.int64)
        distance = np.add.reduceat(near.data[inside], offsets[:-1]) if len(offsets) > 1 else np.zeros(0)
        return Lists(offsets, near.indices[inside], 1 - distance / size[large] / radius)


def nearest_track(user_NE: np.ndarray, track_ids_N: np.ndarray, reach: float, min_hits: int) -> np.ndarray:
    """Each hit's track after all hits chose the nearest mean user of the given tracks, within `reach`; 0 = none.

    A track that is left with fewer than `min_hits` hits is dropped; the others are numbered from 1 in their old order.
    """
    size = np.bincount(track_ids_N)[1:]
    if not len(size):
        return track_ids_N
    mean_TE = np.stack([np.bincount(track_ids_N, u_N)[1:] for u_N in user_NE.T], axis=1) / size[:, None]
    distance, nearest = cKDTree(mean_TE).query(user_NE, distance_upper_bound=reach)
    found = np.isfinite(distance)
    large = np.bincount(nearest[found], minlength=len(size)) >= min_hits
    number = np.append(np.where(large, np.cumsum(large), 0), 0)  # the last for those who found none
    return number[nearest].astype(track_ids_N.dtype)


def search(trees: Sequence[cKDTree], radius: float) -> csr_matrix:
    """Distances [points, users] of the users within `radius` of each point, users ascending."""
    if not trees[0].n:
        return csr_matrix((0, 0))
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="coo_matrix").tocsr()
    near.sort_indices()
    return near


def trees_of(outputs: Outputs, around: Literal["influencers", "users"]) -> list[cKDTree]:
    """Of the points that are searched around, and of users."""
    influencers = ["influencer"] if around == "influencers" else []
    trees = [
        cKDTree(outputs[name].astype(np.float64), leafsize=16, balanced_tree=False) for name in [*influencers, "user"]
    ]
    return [trees[0], trees[-1]]


def check_radius(trees: Sequence[cKDTree], radius: float) -> None:
    """TooManyPairs if the pairs within a radius are too many to be listed.

    Counting them takes as long as listing them, so it is done only where a sample of the points has more than a
    share DOUBTFUL of what can be: it would take few hits with nearly all others around them to be so far off.
    """
    n = trees[0].n
    limit = pairs_limit(n)
    if n * n <= limit:
        return
    sample = trees[0].data[np.random.default_rng(0).choice(n, min(n, SAMPLE), replace=False)]
    if trees[1].query_ball_point(sample, radius, return_length=True).mean() * n > DOUBTFUL * limit:
        check_pairs(int(trees[0].count_neighbors(trees[1], radius)), n, "builder.radius", radius)


def can_be(trees: Sequence[cKDTree], radius: float) -> bool:
    """Whether the pairs within a radius are so few that they may be listed."""
    try:
        check_radius(trees, radius)
    except TooManyPairs:
        return False
    return True

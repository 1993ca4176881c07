"""Every loss keeps the contract (hpctrack/testing/loss_contract.py)."""

from __future__ import annotations

import pytest

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.losses import LOSSES, build_loss
from hpctrack.testing import LossContract
from hpctrack.testing.loss_contract import FULL_EVENT

LINES = {"lever": 1.0, "likelihood": 0.5, "presence": 0.3, "hits": 0.7}
VARIANTS = {
    "assignment": [{}, {"estimator": "identity", "others": "true"}, {"estimator": "sinkhorn", "strength": 0.5}],
    "condensation": [{}, {"q_min": 0.1, "neighbours": 0.5}],
    "contrastive": [{}, {"per": "hit", "squared_hinge": True, "margin": 0.6, "neighbours": 0.5}],
    "segments": [{}, {"others": "false"}],
    "edges": [{}, {"balance": True, "others": "true"}, {"true_weight": 3.0, "others": "false"}],
    "hits": [{}, {"balance": True, "true_weight": 3.0}, {"neighbours": 0.5}],
    "influencer": [
        {"compactness": 1.0},
        {"compactness": 1.0, "per": "hit", "squared_hinge_ui": True, "influencer_pairs": "other_tracks"},
        {"influencer_margin": 0.3, "log_floor": 1e-4, "neighbours": 0.5},
        {"attraction_form": "scatter"},
        {"parameters": 0.1},
        {"hits": 0.5},
    ],
    "hybrid": [{}, {"of": "hits", "mined": 4}, {"edges": 0.0, "margin": 1.5}],
    "lines": [{"lever": 1.0}, LINES | {"slots": "matched"}, LINES | {"per": "event", "lever": 2.0}],
    "metric": [{}, {"mined": 4, "margin": 1.5}],
    "triplets": [{}, {"edges": 1.0, "balance": True, "others": "true"}],
}
OUTPUTS = {  # of a model for this loss: dimensions
    "assignment": {"edge_score": None},
    "segments": {"edge_score": None},
    "condensation": {"embedding": 3, "beta": 1},
    "contrastive": {"embedding": 3},
    "count": {"event_count": 12},
    "edges": {"edge_score": None},  # one a row, of the rows that are edges
    "hits": {"hit_score": None},
    "hybrid": {"edge_score": None, "edge_embedding": 3, "embedding": 3},
    "influencer": {"user": 3, "influencer": 3},
    "line_bins": {"event_bins": 9},
    "lines": {"event_lines": 12, "event_covariance": 18, "event_presence": 6, "hit_slot": 7},
    "metric": {"embedding": 3},
    "seeded": {"edge_score": None, "edge_best": None, "edge_plane": None},
    "triplets": {"triplet_score": None, "edge_score": None},
}
SPACES = {"space_0": 3, "space_1": 2}  # in addition, where neighbours are trained
FEW_TRACKS = ("count", "lines")  # for models with a place for each track
CASES = [(name, options) for name in sorted(LOSSES.own) for options in VARIANTS.get(name, [{}])]


def ids(case):
    return f"{case[0]}-{'-'.join(case[1])}"


class TestLosses(LossContract):
    @pytest.fixture(params=[case for case in CASES if case[0] not in FEW_TRACKS], ids=ids)
    def config(self, request):
        name, options = request.param
        self.full_event = (500, 600) if name == "assignment" else FULL_EVENT  # matrices grow with the square
        return Named(name=name, **options)

    def test_gradient_is_that_of_finite_differences(self, built, widths, config):
        if config.name == "assignment":
            pytest.skip("a choice is constant but for jumps; test_assignment.py has the definitions of its estimates")
        super().test_gradient_is_that_of_finite_differences(built, widths)

    @pytest.fixture
    def widths(self, config):
        more = SPACES if "neighbours" in config.options else {}
        more |= {"parameters": 20} if "parameters" in config.options else {}
        return OUTPUTS[config.name] | more | ({"hit_score": None} if "hits" in config.options else {})


class TestLossesOfFewTracks(TestLosses):
    full_event = (6, 20_500)

    @pytest.fixture(params=[case for case in CASES if case[0] in FEW_TRACKS], ids=ids)
    def config(self, request):
        name, options = request.param
        return Named(name=name, **options)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match=r"loss\.atraction"):
        build_loss(Named(name="influencer", atraction=3.0))
    with pytest.raises(InputError, match=r"loss\.per.*'pair' or 'hit'"):
        build_loss(Named(name="influencer", per="event"))

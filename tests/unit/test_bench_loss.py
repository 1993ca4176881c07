"""The benchmarks of the loss and of inference, on little work: every figure is there and finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpctrack.benchmarks import inference, loss, measure
from hpctrack.graphs.neighbours import radius_pairs


def values(figures):
    assert all(math.isfinite(value) for figure in figures for value in figure.values)
    return {figure.name for figure in figures}


def test_inference_gives_its_figures(monkeypatch):
    monkeypatch.setattr(inference, "SIZES", [150, 300, 600, 1200])
    monkeypatch.setattr(inference, "TRACKS", 20)
    page = inference.run(quick=True)
    assert {"build_over_greedy", "build_slope"} <= values(page.figures)
    assert "| 1,200 hits |" in page.text


def test_loss_gives_its_figures(monkeypatch):
    monkeypatch.setattr(loss, "TRACKS", 10)
    assert {"closed_over_loop", "closed_over_scatter"} <= values(loss.forms(2))
    assert "step_over_baseline" in values(loss.steps(2))
    for state in loss.STATES:
        seconds, gib = loss.one_loss(state, 240)
        assert seconds > 0 and gib >= 0


def test_synthetic_embeddings_are_as_their_state_says():
    track = measure.tracks(2400)
    user, influencer = measure.embeddings(track, 8, copies=2)
    u, v = torch.from_numpy(user), torch.from_numpy(influencer)
    i, j = (torch.cat(part).numpy() for part in zip(*radius_pairs(u, v, 0.6), strict=True))
    own = (track[i] == track[j]) & (track[i] >= 0)
    assert own.sum() > 0.9 * 170 * 12**2 and own.mean() > 0.5
    collapsed = measure.embeddings(track, 8, scale=loss.STATES["collapsed"])[0]
    assert np.linalg.norm(collapsed - collapsed[0], axis=1).max() < 1


@pytest.mark.parametrize("state", ["trained", "collapsed"])
def test_searches_are_timed(state):
    assert loss.measure(200, state)["this project"] > 0

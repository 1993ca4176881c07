"""Model inputs, symmetries and the selection of hits."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack.config import AugmentConfig, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events.features import FEATURES, compute_features, feature_columns
from hpctrack.events.selection import select, target_particles
from hpctrack.events.symmetries import augment
from hpctrack.testing.toys import toy_event


def columns_of(event):
    return {name: event.column(name) for name in feature_columns(list(FEATURES))}


def test_every_feature_is_finite_float32_of_order_one():
    event = toy_event(1, 20, 10)
    x = compute_features(columns_of(event), list(FEATURES))
    assert x.dtype == np.float32 and x.shape == (event.n_hits, len(FEATURES)) and np.isfinite(x).all()
    pixels = [name in ("plane", "column", "row") for name in FEATURES]  # which are counted, and scaled by nobody
    assert np.abs(x[:, ~np.array(pixels)]).max() < 20
    with pytest.raises(InputError, match="unknown feature 'radius'; known: x, y"):
        feature_columns(["x", "radius"])


def distance(columns):
    return np.hypot(*(np.subtract.outer(columns[name], columns[name]) for name in ("hits.x", "hits.y")))


@pytest.mark.parametrize("seed", range(5))
def test_augmentation_is_a_symmetry(seed):
    event = toy_event(1, 8, 3)
    before = columns_of(event)
    after = augment(before, rotate=True, mirror=True, rng=np.random.default_rng(seed))
    np.testing.assert_allclose(np.hypot(after["hits.x"], after["hits.y"]), before["hits.r"], rtol=1e-5)
    np.testing.assert_allclose(np.cos(after["hits.phi"]), after["hits.x"] / after["hits.r"], atol=1e-5)
    np.testing.assert_allclose(np.sin(after["hits.phi"]), after["hits.y"] / after["hits.r"], atol=1e-5)
    np.testing.assert_allclose(np.abs(after["hits.z"]), np.abs(before["hits.z"]))
    np.testing.assert_allclose(after["hits.r"] * np.sinh(after["hits.eta"]), after["hits.z"], rtol=1e-4, atol=1e-2)
    assert augment(before, False, False, np.random.default_rng(seed)).keys() == before.keys()
    np.testing.assert_allclose(distance(after), distance(before), atol=1e-3)


def test_selection_of_targets_noise_and_others():
    event = toy_event(3, 12, 9)
    row = event.column("truth.particle_row")
    pt = np.hypot(event.column("particles.px"), event.column("particles.py"))
    cut = float(np.median(pt))
    rng = np.random.default_rng(0)
    everything = select(event, SelectionConfig(), rng)
    assert everything.rows.tolist() == list(range(event.n_hits)) and everything.n_tracks == 12
    assert ((everything.track < 0) == (row < 0)).all()
    hard = select(event, SelectionConfig(pt_min_gev=cut, noise=False, other_hits=False), rng)
    assert hard.n_tracks == target_particles(event, cut).sum() == 6
    assert set(hard.rows) == set(np.flatnonzero((row >= 0) & (pt >= cut)[row]))
    assert sorted(set(hard.track)) == list(range(6))
    kept = select(event, SelectionConfig(pt_min_gev=cut, noise=True, other_hits=True), rng)
    assert len(kept.rows) == event.n_hits and (kept.track >= 0).sum() == len(hard.rows)
    eta = np.abs(np.arcsinh(event.column("particles.pz") / pt))
    middle = float(np.sort(eta)[6])
    central = select(event, SelectionConfig(eta_max=middle), rng)
    assert len(central.rows) == event.n_hits and central.particles.tolist() == np.flatnonzero(eta <= middle).tolist()
    both = select(event, SelectionConfig(pt_min_gev=cut, eta_max=middle, other_hits=False), rng)
    assert both.particles.tolist() == np.flatnonzero((eta <= middle) & (pt >= cut)).tolist()


def test_a_cut_that_is_not_asked_for_stands_in_no_digest():
    assert "eta_max" not in SelectionConfig().recorded() and SelectionConfig(eta_max=2.5).recorded()["eta_max"] == 2.5
    assert SelectionConfig(**SelectionConfig().recorded()) == SelectionConfig()


def test_drawing_tracks_thins_the_background():
    event = toy_event(3, 40, 400)
    drawn = select(event, SelectionConfig(tracks=10), np.random.default_rng(0))
    assert drawn.n_tracks == 10 and (np.bincount(drawn.track[drawn.track >= 0]) == 6).all()
    assert 70 <= (drawn.track < 0).sum() <= 130  # a quarter of 400
    again = select(event, SelectionConfig(tracks=10), np.random.default_rng(0))
    assert np.array_equal(again.rows, drawn.rows)
    assert select(event, SelectionConfig(tracks=100), np.random.default_rng(0)).n_tracks == 40


@pytest.mark.parametrize(("tracks", "noise"), [(0, 0), (0, 5), (1, 0)])
def test_small_events_can_be_selected(tracks, noise):
    event = toy_event(1, tracks, noise)
    chosen = select(event, SelectionConfig(tracks=3), np.random.default_rng(0))
    assert len(chosen.rows) == event.n_hits and chosen.n_tracks == tracks


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_noise_can_be_a_share_of_what_is_seen(share):
    event = toy_event(1, 40, 200)
    chosen, everything = (
        select(event, SelectionConfig(noise_share=limit), np.random.default_rng(0)) for limit in (share, None)
    )
    noise = event.column("truth.particle_row")[chosen.rows] < 0
    assert noise.mean() == pytest.approx(share, abs=1 / len(noise))
    assert np.isin(chosen.rows, everything.rows).all() and np.all(np.diff(chosen.rows) > 0)
    assert np.count_nonzero(~noise) == len(everything.rows) - 200
    few = select(toy_event(1, 40, 2), SelectionConfig(noise_share=share), np.random.default_rng(0))
    assert np.count_nonzero(toy_event(1, 40, 2).column("truth.particle_row")[few.rows] < 0) == 2


def test_selection_of_volumes():
    event = toy_event(3, 12, 9)
    volume, row = event.column("hits.volume_id"), event.column("truth.particle_row")
    volume[event.column("hits.r") > 150] = 13
    seen = select(event, SelectionConfig(volumes=[8]), np.random.default_rng(0))
    assert seen.rows.tolist() == np.flatnonzero(volume == 8).tolist() and seen.n_tracks == 12
    both = select(event, SelectionConfig(volumes=[8, 13]), np.random.default_rng(0))
    assert both.rows.tolist() == list(range(event.n_hits))
    few = select(event, SelectionConfig(volumes=[13], min_hits=4, noise=False), np.random.default_rng(0))
    assert few.n_tracks == 0 and set(few.rows) == set(np.flatnonzero((volume == 13) & (row >= 0)))  # three hits each


def test_a_sector_of_an_event():
    event = toy_event(3, 40, 200)
    phi, row = event.column("hits.phi"), event.column("truth.particle_row")
    for seed in range(4):
        part = select(event, SelectionConfig(), np.random.default_rng(seed), AugmentConfig(sector_rad=1.0))
        start = np.random.default_rng(seed).uniform(0, 2 * np.pi)
        inside = np.flatnonzero((phi - start) % (2 * np.pi) < 1.0)
        assert 0 < len(inside) < event.n_hits and part.rows.tolist() == inside.tolist()
        whole_or_part = np.bincount(row[inside][row[inside] >= 0], minlength=40)
        assert part.n_tracks == np.count_nonzero(whole_or_part >= 3)  # min_hits counts what is left of a track
        more = select(event, SelectionConfig(), np.random.default_rng(seed), AugmentConfig(sector_rad=1.0, outside=0.2))
        far = np.setdiff1d(more.rows, inside)
        assert set(inside) <= set(more.rows) and (np.diff(more.rows) > 0).all()
        assert len(far) == pytest.approx(0.2 * (event.n_hits - len(inside)), rel=0.5)
        assert (more.track[np.isin(more.rows, far)] == -1).all() and more.particles.tolist() == part.particles.tolist()
        assert more.track[np.isin(more.rows, inside)].tolist() == part.track.tolist()
    assert AugmentConfig(sector_rad=1.0).share == pytest.approx(1 / (2 * np.pi)) and AugmentConfig().share == 1
    assert AugmentConfig(sector_rad=np.pi, outside=0.5).share == pytest.approx(0.75)

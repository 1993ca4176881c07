"""Track parameters: the perigee, its symmetries, the likelihood, and the way to candidates, disk and results."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from helpers import commit

from hpctrack.config import AugmentConfig, Named, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.evaluate import main as evaluate
from hpctrack.evaluation import resolutions
from hpctrack.evaluation.tally import Cuts
from hpctrack.events import perigee
from hpctrack.events.loader import EventLoader
from hpctrack.events.symmetries import augment
from hpctrack.infer import main as infer
from hpctrack.losses import build_loss
from hpctrack.losses.influencer import gaussian_nll
from hpctrack.losses.term import Tracks
from hpctrack.models.embedding import representatives
from hpctrack.parallel.env import distributed
from hpctrack.report import main as report
from hpctrack.reporting import sections
from hpctrack.storage.candidates import CANDIDATES, CandidateStore
from hpctrack.storage.journals import Journal, committed
from hpctrack.storage.schema import ESTIMATE, GEV_PER_T_MM, Candidates
from hpctrack.storage.store import Dataset
from hpctrack.storage.verify_candidates import check_candidates
from hpctrack.testing.toys import toy_batch, toy_config, toy_dataset, toy_event
from hpctrack.tracking.builder import estimates, representative_hits, with_parameters
from hpctrack.training.loop import train


def particles(n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pt, phi, eta = rng.uniform(0.3, 5, n), rng.uniform(-np.pi, np.pi, n), rng.uniform(-2, 2, n)
    far, about = rng.uniform(0, 60, n), rng.uniform(-np.pi, np.pi, n)
    values = (far * np.cos(about), far * np.sin(about), rng.normal(0, 5, n))
    values += (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), rng.choice([-1, 0, 1], n, p=[0.45, 0.1, 0.45]))
    return dict(zip(perigee.COLUMNS, values, strict=True))


def test_the_perigee_is_the_nearest_point_of_the_helix():
    given = particles()
    found = perigee.perigee(given, 2.0)
    for i in range(len(found)):
        vx, vy, vz, px, py, pz, q = (given[name][i] for name in perigee.COLUMNS)
        pt, start = math.hypot(px, py), math.atan2(py, px)
        k = -GEV_PER_T_MM * 2 * q / pt
        s = np.linspace(-150, 150, 600_001)  # transverse arc from the vertex, mm
        if k:
            x = vx + (np.sin(start + k * s) - math.sin(start)) / k
            y = vy - (np.cos(start + k * s) - math.cos(start)) / k
        else:
            x, y = vx + math.cos(start) * s, vy + math.sin(start) * s
        at = int(np.argmin(np.hypot(x, y)))
        q_over_pt, phi, theta, d0, z0 = found[i]
        assert (q_over_pt, theta) == pytest.approx((q / pt, math.atan2(pt, pz)))
        assert perigee.wrapped(phi - (start + k * s[at])) == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose([-d0 * math.sin(phi), d0 * math.cos(phi)], [x[at], y[at]], atol=1e-3)
        assert z0 == pytest.approx(vz + pz / pt * s[at], abs=5e-3)


def test_augmentation_moves_parameters_as_it_moves_hits():
    given = particles()
    before = perigee.perigee(given, 2.0)
    for seed in range(6):
        after = perigee.perigee(augment(given, rotate=True, mirror=True, rng=np.random.default_rng(seed)), 2.0)
        rng = np.random.default_rng(seed)
        angle = np.float32(rng.uniform(-np.pi, np.pi))
        flip_y, flip_z = rng.choice([-1.0, 1.0], 2)
        q_over_pt, phi, theta, d0, z0 = before.T
        theta = theta if flip_z > 0 else np.pi - theta
        expected = np.stack([flip_y * q_over_pt, flip_y * phi + angle, theta, flip_y * d0, flip_z * z0], axis=1)
        np.testing.assert_allclose(perigee.difference(after, expected), 0, atol=1e-4)


def test_the_loader_gives_the_parameters_of_each_track_number(tmp_path):
    dataset = Dataset(toy_dataset(tmp_path / "data", sizes=(6,)))
    selection = SelectionConfig(pt_min_gev=1.5)
    plain = EventLoader(dataset, ["x", "y"], selection, AugmentConfig(), (1, 0))(0, 0)
    data = EventLoader(dataset, ["x", "y"], selection, AugmentConfig(), (1, 0), of_tracks=["parameters"])(0, 0)
    assert "parameters" not in plain and torch.equal(plain.x, data.x)
    assert data.parameters.shape == (int(data.n_tracks), 5)
    for track, (_, phi, _, d0, z0) in enumerate(data.parameters):
        hits = data.x[data.track == track]
        assert len(hits) and torch.allclose(torch.atan2(hits[:, 1], hits[:, 0]), phi, atol=0.1)  # they are straight
        assert d0 == 0 and z0 == 0


def test_the_likelihood_is_that_of_a_gaussian_and_linear_far_out():
    output = torch.randn(7, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = output[:, :5] + 0.1 * torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    truth[:, 3:] = output[:, 3:5]
    output[:, 5:] *= 0.1
    truth[:, 1] += 2 * torch.pi
    table = torch.from_numpy(estimates(output.numpy()))
    covariance = torch.zeros(7, 5, 5, dtype=torch.float64)
    rows, cols = torch.tril_indices(5, 5)
    covariance[:, rows, cols] = table[:, 5:]
    covariance = covariance + covariance.tril(-1).mT
    wrapped = truth - 2 * torch.pi * torch.eye(5, dtype=torch.float64)[1]
    expected = -torch.distributions.MultivariateNormal(output[:, :5], covariance).log_prob(wrapped)
    constant = 2.5 * math.log(2 * math.pi) + float(np.log(perigee.SCALES).sum())
    torch.testing.assert_close(gaussian_nll(output, truth) + constant, expected)
    far = truth + torch.tensor([0.0, 0, 0, 50, 0])
    further, furthest = far + torch.tensor([0.0, 0, 0, 50, 0]), far + torch.tensor([0.0, 0, 0, 100, 0])
    rise = gaussian_nll(output, further) - gaussian_nll(output, far)
    torch.testing.assert_close(gaussian_nll(output, furthest) - gaussian_nll(output, further), rise, rtol=1e-3, atol=0)
    assert gaussian_nll(output, truth + 1e5).isfinite().all()


def test_the_loss_is_least_at_the_true_spread():
    """Fitted to a thousand equal tracks, the Gaussian gets their mean and covariance."""
    generator = torch.Generator().manual_seed(3)
    root = torch.tensor(
        [[1.0, 0, 0, 0, 0], [0.5, 1, 0, 0, 0], [0, 0, 2, 0, 0], [0.3, -0.9, 0, 0.5, 0], [0, 0, 1, 0, 1]]
    )
    sample = (torch.randn(1000, 5, generator=generator) @ root.T * torch.tensor(perigee.SCALES)).double()
    output = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([output], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = gaussian_nll(output.expand(1000, 20), sample).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    table = estimates(output.detach().numpy()[None])[0]
    np.testing.assert_allclose(table[:5] / perigee.SCALES, sample.mean(0).numpy() / perigee.SCALES, atol=1e-3)
    covariance = np.cov(sample.numpy().T)[np.tril_indices(5)]
    unit = np.outer(perigee.SCALES, perigee.SCALES)[np.tril_indices(5)]
    np.testing.assert_allclose(table[5:] / unit, covariance / unit, atol=1e-2)


def test_training_and_inference_choose_the_same_hit():
    batch = toy_batch(sizes=(5,), n_noise=4)
    rng = np.random.default_rng(0)
    outputs = {name: rng.normal(size=(batch.num_nodes, w)) for name, w in (("user", 3), ("influencer", 3))}
    tracks = Tracks(batch)
    user, influencer = (torch.from_numpy(outputs[name])[tracks.hits] for name in ("user", "influencer"))
    expected = tracks.hits[representatives(user, influencer, tracks.track, tracks.size)]
    hit_rows = np.sort(rng.choice(100, batch.num_nodes, replace=False))
    lists = [hit_rows[(batch.track == t).numpy()] for t in range(5)]
    offsets = np.cumsum([0, *map(len, lists)])
    found = Candidates(0, offsets, np.concatenate(lists), np.zeros(5), np.zeros(100))
    chosen = representative_hits(found, outputs["user"], outputs["influencer"], hit_rows)
    assert chosen.tolist() == expected.tolist()
    assert with_parameters(found, outputs, hit_rows) is found
    outputs["parameters"] = rng.normal(size=(batch.num_nodes, 20)).astype(np.float32)
    table = with_parameters(found, outputs, hit_rows).parameters
    assert table.shape == (5, 20) and table.dtype == np.float32
    np.testing.assert_allclose(table[:, 0], outputs["parameters"][chosen, 0])


def test_a_model_without_the_head_is_refused():
    batch = toy_batch()
    outputs = {name: torch.zeros(batch.num_nodes, 3) for name in ("user", "influencer")}
    with pytest.raises(InputError, match=r"model\.parameters"):
        build_loss(Named(name="influencer", parameters=1.0))(outputs, batch)


def written(folder, with_table=(True, True, True)):
    journal, rng = Journal(folder, "w"), np.random.default_rng(1)
    for event, has in enumerate(with_table):
        table = rng.normal(size=(event, len(ESTIMATE))).astype(np.float32) if has else None
        arrays = (np.arange(event + 1), np.arange(event), np.ones(event), np.zeros(9))
        commit(journal, Candidates(event, *arrays, parameters=table))
    journal.close()
    digest = CANDIDATES.write_shard(folder, "candidates-00000.h5", range(len(with_table)), committed(folder))
    CANDIDATES.write_index(folder, [("candidates-00000.h5", range(len(with_table)), digest)], {})
    return CandidateStore(folder)


def test_the_store_keeps_them_and_its_digest_covers_them(tmp_path):
    store = written(tmp_path / "with")
    rng = np.random.default_rng(1)
    for event in range(3):
        table = rng.normal(size=(event, 20)).astype(np.float32)
        assert np.array_equal(store.read(event).parameters, table)
    assert check_candidates(tmp_path / "with") == []
    without = written(tmp_path / "without", (False,) * 3)
    assert without.read(2).parameters is None and without.digest != store.digest
    assert check_candidates(tmp_path / "without") == []
    with pytest.raises(InputError, match="some candidates have track parameters, others not"):
        written(tmp_path / "mixed", (True, False, True))


def smeared(event, sigma, rng):
    """Candidates from the truth, with parameters that are off by `sigma` and say so."""
    row = event.column("truth.particle_row")
    n = int(row.max()) + 1
    lists = [np.flatnonzero(row == particle) for particle in range(n)]
    truth = perigee.perigee({name: event.column(name) for name in perigee.COLUMNS}, event.field_t)
    table = np.zeros((n, len(ESTIMATE)), np.float32)
    table[:, :5] = truth + rng.normal(size=(n, 5)) * sigma
    table[:, resolutions.DIAGONAL] = sigma**2
    offsets = np.cumsum([0, *map(len, lists)])
    return Candidates(event.event_id, offsets, np.concatenate(lists), np.ones(n), np.zeros(len(row)), table)


def test_resolutions_and_pulls_are_those_put_in():
    rng, cuts = np.random.default_rng(5), Cuts(0.0)
    sigma = np.array([0.02, 1e-3, 2e-3, 0.05, 0.3])
    events = [toy_event(k, 400) for k in range(5)]
    parts = [resolutions.deviations(event, smeared(event, sigma, rng), cuts) for event in events]
    summed = resolutions.summary([*parts, None], cuts)
    assert summed["matched"] == 2000
    for width, number in zip(sigma, summed["parameters"].values(), strict=True):
        assert number["width"] == pytest.approx(width, abs=4 * number["width_error"])
        assert number["width_error"] == pytest.approx(1.3 * width / math.sqrt(4000), rel=0.4)  # 1.3: against s itself
        assert number["pull_width"] == pytest.approx(1, abs=4 * number["pull_width_error"])
        assert number["pull_mean"] == pytest.approx(0, abs=4 * number["pull_mean_error"])
        assert sum(b["n"] for b in number["pt"]) == sum(b["n"] for b in number["eta"]) == 2000
    assert "q_over_pt" in "".join(resolutions.lines(summed))
    (text,) = sections.section({"resolutions": summed})
    assert text.count("data:image/svg+xml") == 10 and text.count("<tr><th") == 6
    assert sections.section({}) == []
    assert resolutions.summary([None], cuts) is None


def test_a_target_enters_once_with_its_best_candidate():
    event = toy_event(1, 3, 0)
    found = smeared(event, np.full(5, 1e-9), np.random.default_rng(0))
    worse = found.parameters + np.float32(1)
    doubled = Candidates(
        1,
        np.append(found.hit_offsets, found.hit_offsets[1:] + found.hit_offsets[-1]),
        np.tile(found.hit_rows, 2),
        np.repeat([0.9, 0.1], 3),
        found.track_ids,
        np.concatenate([found.parameters, worse]),
    )
    rows = resolutions.deviations(event, doubled, Cuts(0.0))
    assert rows.shape == (3, 12) and np.abs(rows[:, 2:7]).max() < 1e-3


def test_from_training_to_results(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data")
    model = {"parameters": True, "backbone": {"name": "transformer", "width": 8, "layers": 1, "heads": 2}}
    more = {"loss": {"parameters": 0.1}, "train": {"steps": 3, "valid_every": 3}, "builder": {"radius": 5.0}}
    config = toy_config(tmp_path / "run", data, data, model=model, **more)
    with contextlib.redirect_stdout(io.StringIO()), distributed(config.parallel, 1) as env:
        train(config, env)
    terms = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/parameters" in line for line in terms)
    out, results = tmp_path / "candidates", tmp_path / "results.json"
    assert infer(["--checkpoint", str(tmp_path / "run"), "--data", str(data), "--out", str(out)]) in (0, None)
    tables = [CandidateStore(out).read(i).parameters for i in range(6)]
    assert all(table is not None and np.isfinite(table).all() for table in tables)
    evaluate([str(out), "--data", str(data), "--out", str(results), "--pt-min-gev", "0"])
    assert json.loads(results.read_text())["resolutions"]["parameters"].keys() == set(ESTIMATE[:5])
    assert "track parameters" in capsys.readouterr().out
    report(["--results", str(results), "--out", str(tmp_path / "page.html")])
    assert "How well track parameters are estimated" in (tmp_path / "page.html").read_text()

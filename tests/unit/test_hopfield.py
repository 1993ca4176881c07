"""The network on segments: energy and field, how it relaxes, chains, events of toys and of files, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hpctrack import infer, segments
from hpctrack.benchmarks import cylinders
from hpctrack.evaluation.matching import check_candidates, match_candidates
from hpctrack.evaluation.metrics import METRICS
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.schema import Candidates, Event
from hpctrack.testing.toys import toy_dataset
from hpctrack.tracking.builder import TooManyPairs
from hpctrack.tracking.hopfield.builder import HopfieldBuilder
from hpctrack.tracking.hopfield.chains import chains, greedy
from hpctrack.tracking.hopfield.couplings import Cosine, Curvature, Hits, best_partners, supports
from hpctrack.tracking.hopfield.method import Hopfield
from hpctrack.tracking.hopfield.network import Cooling, Network, OfStrongest, relax, step
from hpctrack.tracking.hopfield.sets import SETS

RNG = np.random.default_rng(3)


def small(seed: int = 0, neurons: int = 30, kind: type[Network] = Network, **more: float) -> Network:
    """Random segments among four hits on each of four layers, and random positive couplings."""
    rng = np.random.default_rng(seed)
    every = np.array([(4 * k + a, 4 * k + 4 + b) for k in range(3) for a in range(4) for b in range(4)]).T
    edge_2M = every[:, np.sort(rng.permutation(every.shape[1])[:neurons])]
    support = supports(edge_2M, 16, lambda a, b, c: rng.uniform(0.1, 1, len(a)), scale=4.0)
    return kind(edge_2M, 16, support, competition=3.0, bias=rng.normal(0, 1, neurons), **more)


def dense_energy(network: Network, v: np.ndarray) -> float:
    """The published sum over pairs of neurons."""
    begin, end = network.edge_2M
    coupling, energy = network.support.toarray(), -float(np.sum(network.bias * v))
    for e in range(len(v)):
        for f in range(len(v)):
            if e != f:
                energy -= 0.5 * coupling[e, f] * v[e] * v[f]
                energy += 0.5 * network.competition * v[e] * v[f] * (int(begin[e] == begin[f]) + int(end[e] == end[f]))
    return energy + 0.5 * network.crowding * (v.sum() - network.expected) ** 2


def test_energy_is_that_of_the_dense_definition():
    network = small(crowding=0.7, expected=9.0)
    assert network.support.shape == (30, 30) and (network.support != network.support.T).nnz == 0
    for _ in range(3):
        v = RNG.uniform(0, 1, 30)
        assert network.energy(v) == pytest.approx(dense_energy(network, v), rel=1e-12)


def test_the_field_is_the_gradient_of_the_energy():
    network, v, h = small(crowding=0.7, expected=9.0), RNG.uniform(0, 1, 30), 1e-3
    slope = [(network.energy(v + h * one) - network.energy(v - h * one)) / (2 * h) for one in np.eye(30)]
    assert np.allclose(-np.array(slope), network.field(v), rtol=1e-9, atol=1e-9)
    assert np.isclose(network.field(v, 0.5) + 0.5 * network.bias, network.field(v)).all()


@pytest.mark.parametrize("temperature", [3.0, 0.5, 0.01])
def test_small_steps_never_raise_the_energy(temperature):
    network = small(seed=1)
    v = np.full(30, 0.5)
    seen = []
    for _ in range(300):
        seen.append((network.free_energy(v, temperature), network.energy(v)))
        step(network, v, temperature, damping=0.05)
    free, energy = np.array(seen).T
    assert (np.diff(free) <= 1e-9).all() and free[-1] < free[0] - 1
    if temperature == 0.01:
        assert (np.diff(energy) <= 1e-2).all() and energy[-1] < energy[0] - 1


def test_undamped_steps_oscillate_and_damped_ones_settle():
    edge_2M = np.array([[0, 0], [1, 2]])  # two rivals that leave one hit, each with a bias to be on
    network = Network(edge_2M, 3, csr_matrix((2, 2)), competition=5.0, bias=2.5)
    undamped, damped = np.full(2, 0.9), np.full(2, 0.9)
    for _ in range(50):
        step(network, undamped, 0.5, damping=1.0)
    before = undamped.copy()
    assert step(network, undamped, 0.5, damping=1.0) > 0.9
    step(network, undamped, 0.5, damping=1.0)
    assert np.allclose(undamped, before, atol=1e-6)  # two steps on it is where it was
    cooling = Cooling(0.5, 0.5, 1, rest=500, damping=0.1, still=1e-9)
    damped = relax(network, damped, cooling)
    assert step(network, damped.copy(), 0.5, damping=0.1) < 1e-8


def test_of_two_partners_the_strongest_is_heard():
    edge_2M = np.array([[0, 1, 1], [1, 2, 3]])
    support = supports(edge_2M, 4, lambda a, b, c: np.where(c == 2, 1.0, 0.5))
    network, v = OfStrongest(edge_2M, 4, support, competition=0.0), np.array([1.0, 0.1, 0.8])
    assert network.field(v).tolist() == pytest.approx([0.4, 1.0, 0.5])
    fixed = Network(edge_2M, 4, best_partners(support, edge_2M), competition=0.0)
    assert fixed.field(v).tolist() == pytest.approx([0.1, 1.0, 0.5])
    assert Network(edge_2M, 4, support, competition=0.0).field(v)[0] == pytest.approx(0.5)


def test_events_behind_each_other_do_not_touch():
    networks = [small(seed) for seed in (0, 1)]
    both = Network(
        np.concatenate([networks[0].edge_2M, networks[1].edge_2M + 16], axis=1),
        32,
        csr_matrix(
            np.block([[n.support.toarray() if n is m else np.zeros((30, 30)) for m in networks] for n in networks])
        ),
        competition=3.0,
        bias=np.concatenate([n.bias for n in networks]),
    )
    cooling = Cooling(10, 1, 30)
    assert np.array_equal(relax(both, 0.5, cooling), np.concatenate([relax(n, 0.5, cooling) for n in networks]))
    assert len(relax(Network(np.zeros((2, 0), int), 0, csr_matrix((0, 0)), 1.0), 0.5, cooling)) == 0


def test_chains_are_those_of_one_segment_after_the_other():
    edge_2M = np.array([(10 * k + a, 10 * k + 10 + b) for k in range(4) for a in range(10) for b in range(10)]).T
    v = RNG.choice(np.linspace(0, 1, 12), edge_2M.shape[1])  # many ties
    used_as_begin, used_as_end, taken = set(), set(), []
    for e in sorted(range(len(v)), key=lambda e: (-v[e], e)):
        begin, end = edge_2M[:, e]
        if begin not in used_as_begin and end not in used_as_end:
            used_as_begin.add(begin)
            used_as_end.add(end)
            taken.append(e)
    assert greedy(edge_2M, v, 50).tolist() == sorted(taken)
    found = chains(edge_2M, v, 50, 0.0, 4)
    layer = found.rows // 10
    for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        assert b - a >= 4 and (np.diff(layer[a:b]) == 1).all()


def of_set(name: str, **more: object) -> Hopfield:
    return Hopfield(Hopfield.Options(**({"set": name, "segments": "barrel"} | more)))


def shares(event: Event, found: Candidates) -> tuple[float, float]:
    """Double-majority efficiency and fake rate."""
    tracks = len(event.column("particles.particle_id"))
    matched = match_candidates(found, event.column("truth.particle_row"), tracks)
    counts = (
        METRICS[name].count(matched, np.ones(tracks, bool)) for name in ("double_majority_efficiency", "fake_rate")
    )
    a, b = (numerator / denominator for numerator, denominator in counts)
    return a, b


@pytest.mark.parametrize("name", sorted(SETS))
def test_tracks_of_the_toy_are_found(name):
    event = cylinders.event(100, seed=4)
    found, seconds = of_set(name).reconstruct(event, np.arange(event.n_hits))
    check_candidates(found, event.n_hits)
    efficiency, fakes = shares(event, found)
    least, most = (0.99, 0.01) if name.startswith("curvature") else (0.85, 0.12)
    assert efficiency >= least and fakes <= most and min(seconds.values()) >= 0


def scored(found: Candidates, rows: np.ndarray) -> dict[tuple[int, ...], float]:
    """Scores by the hits of each candidate."""
    ends = zip(found.hit_offsets[:-1], found.hit_offsets[1:], found.scores, strict=True)
    return {tuple(sorted(rows[a:b].tolist())): float(score) for a, b, score in ends}


def test_the_order_of_hits_does_not_matter():
    event = cylinders.event(60, noise=0.3, seed=2)
    order = RNG.permutation(event.n_hits)
    columns = {name: values[order] for name, values in event.tables["hits"].items()}
    for name in ("curvature-barrel", "aleph-annealed"):
        one, _ = of_set(name).reconstruct(event, np.arange(event.n_hits))
        other, _ = of_set(name).reconstruct(Event(9, {"hits": columns}), np.arange(event.n_hits))
        assert scored(one, one.hit_rows) == scored(other, order[other.hit_rows])
        assert len(one) > 40


def test_couplings_are_the_published_ones():
    hits = Hits(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.01]), np.array([0.0, 1.0, 2.5]), np.zeros(3, int))
    of = tuple(np.array([k]) for k in range(3))
    first, second = np.array([1.0, 0.0, 1.0]), np.array([3 * np.cos(0.01) - 2, 3 * np.sin(0.01), 1.5])
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    length = (np.linalg.norm(first) / 2) ** 2 + (np.linalg.norm(second) / 2) ** 2
    assert Cosine(hits, 5.0, 2.0, 2.0, 0.9)(*of)[0] == pytest.approx(cosine**5 / length)
    assert Cosine(hits, 5.0, 0.0, 2.0, 0.9)(*of)[0] == pytest.approx(cosine**5 / 2)
    assert Cosine(hits, 5.0, 2.0, 2.0, 0.999)(*of)[0] == 0
    assert Curvature(hits, 0.02, 0.25)(*of)[0] == pytest.approx(np.exp(-0.5 * 0.25 - 0.5 * 4))


def test_edges_of_a_model_decide_together():
    """Of two edges that leave a hit the less probable goes on; a third is improbable, but between two good ones."""
    edge_2M = np.array([(0, 1), (1, 2), (1, 3), (2, 4), (5, 6), (6, 7), (7, 8)]).T
    probability = np.array([0.9, 0.5, 0.6, 0.95, 0.9, 0.4, 0.9])
    builder = HopfieldBuilder(HopfieldBuilder.Options(cut=0.05))
    v = relax(builder.network(edge_2M, probability), probability, builder.cooling)
    assert v[1] > v[2] and v[5] > 0.5 and (v[[0, 3, 4, 6]] > 0.9).all()
    strict = HopfieldBuilder(HopfieldBuilder.Options(cut=0.05, competition=5.0))
    v = relax(strict.network(edge_2M, probability), probability, strict.cooling)
    assert v[1] > 0.5 > v[2]
    outputs = {"edge_index": edge_2M, "edge_score": np.log(probability / (1 - probability)).astype(np.float32)}
    alone = HopfieldBuilder(HopfieldBuilder.Options(cut=0.05, join=None))  # else hit 3 joins as one beside
    assert alone.lists(outputs).rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    nothing = HopfieldBuilder(HopfieldBuilder.Options(cut=0.05, threshold=1.0)).lists(outputs)
    assert len(nothing.scores) == 0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return toy_dataset(tmp_path_factory.mktemp("toy") / "data", n_noise=2)


@pytest.fixture(scope="module")
def measured(dataset) -> Path:
    path = dataset.parent / "segments.json"
    assert segments.main([str(dataset), "--out", str(path), "--least", "5", "--kept", "1"]) == 0
    return path


def run(dataset: Path, out: Path, *arguments: str) -> int:
    return infer.main(["--method", "hopfield", "--data", str(dataset), "--out", str(out), *arguments])


def test_a_detector_is_measured_and_its_tracks_found(dataset, measured, tmp_path):
    content = json.loads(measured.read_text())
    assert [pair["from"] for pair in content["pairs"]] == [[8, 2 * k] for k in range(1, 6)]
    assert {one["along"] for one in content["triplets"]} == {"r"} and len(content["triplets"]) == 4
    for name in ("one", "two"):  # the same in two parts
        parts = [()] if name == "one" else [("--part", "0/2"), ("--part", "1/2")]
        for part in parts:
            assert run(dataset, tmp_path / name, f"method.segments={measured}", "method.spread_scale=50", *part) == 0
    one, two = (CandidateStore(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest and len(one.attributes["segments_digest"]) == 16
    assert sum(len(one.read(k)) for k in range(len(one))) == 31


def test_refusals(dataset, measured, tmp_path, capsys):
    def refused(*arguments: str, code: int = 2) -> str:
        assert run(dataset, tmp_path / "no", *arguments) == code
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "key 'method.set'" in refused("method.set=kalman")
    assert "key 'method.damping'" in refused("method.damping=0")
    assert "did you mean 'method.bias'" in refused("method.biass=1")
    assert "no-such.json: cannot be read as JSON" in refused("method.segments=no-such.json")
    (tmp_path / "bad.json").write_text("{}")
    assert "not a file of `hpctrack segments`" in refused(f"method.segments={tmp_path}/bad.json")
    content = json.loads(measured.read_text())
    (tmp_path / "bad.json").write_text(json.dumps(content | {"pairs": [{"from": [1]}]}))
    assert "a pair or triplet is not as" in refused(f"method.segments={tmp_path}/bad.json")
    event = cylinders.event(50)
    for limit in ("segments_max", "triplets_max"):
        with pytest.raises(TooManyPairs, match=rf"event 1: .*{limit}=100"):
            of_set("curvature-barrel", **{limit: 100}).reconstruct(event, np.arange(event.n_hits))
    assert segments.main([str(dataset), "--out", str(tmp_path / "s.json"), "--kept", "2"]) == 2
    assert "--kept 2.0: must be above 0" in capsys.readouterr().err
    assert segments.main([str(dataset), "--out", str(tmp_path / "s.json"), "--least", "100"]) == 2
    assert "no two layers with 100 segments" in capsys.readouterr().err and not (tmp_path / "s.json").exists()

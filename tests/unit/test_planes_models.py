"""Models that follow a seed through planes: their sizes, what they see, their loss, accuracies and candidates."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, SelectionConfig, load_config
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.events.loader import EventLoader
from hpctrack.formats.building import Conversion, convert
from hpctrack.formats.simulated import SimulatedReader
from hpctrack.graphs.seeds import Seeds
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.simulation.settings import PRESETS, Settings
from hpctrack.storage.store import Dataset
from hpctrack.testing import GraphContract
from hpctrack.testing.toys import toy_batch
from hpctrack.tracking.builders import build_builder
from tests.campaigns import planes as campaign
from tests.campaigns import planes_accuracy as accuracy

SIZES = {  # the talk's and the notebooks' numbers of weights, by recipe
    "lstm": 9_442_304,
    "lstm-deep": 11_541_504,
    "lstm-both-ways": 19_933_184,
    "lstm-next-plane": 9_442_304,
    "convolution": 16_065,
    "autoencoder": 324_488,
    "seeded-hits": 140_865,  # not of the talk
    "lstm-2d": 22_750,
    "lstm-2d-tracks": 65_450,
    "lstm-windows": 155_758,
    "convolution-2d": 5_409,
    "autoencoder-2d": 85_633,
    "ramp": 90_500,
}
MORE = {"convolution-2d": ({"layers": 20}, 11_249), "ramp": ({"pixels": 200}, 140_600)}


@pytest.mark.parametrize("recipe", SIZES)
def test_models_have_the_published_numbers_of_weights(recipe):
    config = load_config(f"heptrkx/{recipe}")
    with torch.device("meta"):
        model = build_model(config.model, config.data.features)
    assert sum(p.numel() for p in model.parameters()) == SIZES[recipe]
    options, number = MORE.get(recipe, ({}, 0))
    if number:
        with torch.device("meta"):
            model = build_model(Named(**(config.model.model_dump() | options)), config.data.features)
        assert sum(p.numel() for p in model.parameters()) == number


class TestSeeds(GraphContract):
    graph = {"name": "seeds", "layer": 2}


@pytest.fixture(scope="module")
def planes(tmp_path_factory) -> Dataset:
    """Six events of 5 planes of 8 pixels."""
    out = tmp_path_factory.mktemp("planes") / "data"
    some = {"planes": 5, "pixels": 8, "axes": 1, "seed_planes": 2, "tracks": 2.0, "pixel_noise": 0.2}
    settings = Settings(**(PRESETS["planes-2d"] | some))
    convert(Conversion(lambda: (SimulatedReader(settings, range(6)), {}), out, 4), 1)
    return Dataset(out)


def batch_of(data: Dataset, rows: range, features: tuple[str, ...] = ("plane", "column")) -> Batch:
    graph = Seeds(Seeds.Options())
    load = EventLoader(data, list(features), SelectionConfig(), AugmentConfig(), (1, 0), graph=graph)
    return Batch.from_data_list([load(row, 0) for row in rows])


def model_of(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    name = str(options.pop("name", "plane_lstm"))
    return build_model(Named(name=name, planes=5, pixels=8, axes=["column"], **options), ["plane", "column"])


def test_a_model_sees_the_hits_and_scores_the_pixels_of_hits(planes):
    batch, seen = batch_of(planes, range(6)), []
    model = model_of(hidden=4)
    inner = model.score
    model.score = lambda image: seen.append(image) or inner(image)
    outputs = model(batch)
    score = torch.log_softmax(inner(seen[0]), dim=2)
    assert seen[0].shape == (6, 5, 8)
    for event in range(6):
        hits = batch.x[batch.batch == event]
        wanted = torch.zeros(5, 8)
        wanted[hits[:, 0].long(), hits[:, 1].long()] = 1
        assert torch.equal(seen[0][event], wanted)  # the seed is alone in its plane in the data as well
    for edge, (seed, hit) in enumerate(batch.edge_index.T.tolist()):
        plane, pixel = batch.x[hit].long().tolist()
        assert batch.x[seed, 0] == 0 and plane > 0
        assert outputs["edge_score"][edge] == score[batch.batch[seed], plane, pixel]
        others = torch.arange(score.shape[2]) != pixel
        assert outputs["edge_best"][edge] == score[batch.batch[seed], plane][others].max()
        assert outputs["edge_plane"][edge] == plane


def test_of_several_seeds_each_is_alone_in_its_plane():
    batch = toy_batch(sizes=(0,), n_noise=4)
    batch.x = torch.tensor([[0.0, 1.5], [0.0, 3.5], [1.0, 2.5], [7.0, 1.0]])
    batch.edge_index = torch.tensor([[0, 0, 1, 1], [2, 3, 2, 3]])
    model, seen = model_of(hidden=4), []
    inner = model.score
    model.score = lambda image: seen.append(image) or inner(image)
    outputs = model(batch)
    assert seen[0][0].nonzero().tolist() == [[0, 1], [1, 2]] and seen[0][1].nonzero().tolist() == [[0, 3], [1, 2]]
    assert outputs["edge_score"][1].item() == pytest.approx(-math.log(8))  # of a hit that is in no plane
    with pytest.raises(InputError, match=r"model\.axes': 'column' is not in data\.features"):
        build_model(Named(name="plane_lstm", axes=["column"]), ["plane", "row"])


def test_next_plane_is_predicted_from_those_before_it_alone(planes):
    for ahead in (True, False):
        model = model_of(hidden=4, ahead=ahead)
        image = torch.rand(3, 5, 8)
        other = image.clone()
        other[:, 3:] = torch.rand(3, 2, 8)
        one, two = model.score(image), model.score(other)
        assert torch.equal(one[:, :3], two[:, :3])
        assert torch.equal(one[:, 3], two[:, 3]) == ahead and not torch.equal(one[:, 4], two[:, 4])
    both = model_of(hidden=4, bidirectional=True)
    assert not torch.equal(both.score(image)[:, 0], both.score(other)[:, 0])


def test_attention_shares_each_plane_among_the_hits_of_one_seed():
    batch = toy_batch(sizes=(0,), n_noise=6)
    batch.x = torch.tensor([[0.0, 1.5], [0.0, 3.5], [1.0, 2.5], [1.0, 6.5], [7.0, 1.0], [2.0, 0.5]])
    batch.edge_index = torch.tensor([[1, 0, 1, 0, 0, 1, 1, 0], [2, 2, 3, 3, 4, 4, 5, 5]])
    model = model_of(name="seeded_transformer", width=8, layers=2, heads=2)
    together = model(batch)
    assert together["edge_plane"].tolist() == [1, 1, 1, 1, -1, -1, 2, 2]
    assert together["edge_score"][4:6].tolist() == pytest.approx([-math.log(8)] * 2)  # of a hit that is in no plane
    assert together["edge_score"][6:].tolist() == [0, 0] and together["edge_best"][6:].tolist() == [-1e4] * 2
    for a, b in ((0, 2), (1, 3)):  # the two hits of plane 1, of either seed
        assert together["edge_score"][[a, b]].exp().sum().item() == pytest.approx(1)
        assert together["edge_best"][a] == together["edge_score"][b]
    own = batch.edge_index[0] == 1
    batch.edge_index = batch.edge_index[:, own]
    torch.testing.assert_close(model(batch)["edge_score"], together["edge_score"][own])


def test_azimuth_turns_and_windows_end():
    model = build_model(Named(name="plane_lstm", planes=2, pixels=4, axes=["phi"]), ["plane", "phi"])
    where = model.coordinates(torch.tensor([[0.0, -0.999], [1.0, 0.999], [1.0, 1.0], [0.0, 0.0]]))
    assert where[:, 1].floor().tolist() == [0, 3, 0, 2] and where[:, 0].tolist() == [0, 1, 1, 0]
    windows = build_model(Named(name="window_lstm", planes=4, pixels=8, hidden=3), ["plane", "column"])
    assert windows.sees(torch.tensor([[0, 2], [0, 3], [0, 4], [0, 5], [3, 1], [3, 6], [3, 7]])).tolist() == [
        *(False, True, True, False),
        *(True, True, False),
    ]
    logits = windows.score(torch.rand(2, 4, 8))
    assert (logits[:, 0, [0, 1, 2, 5, 6, 7]] == -1e4).all() and (logits[:, 0, 3:5] > -100).all()


def test_loss_and_accuracies_are_those_of_the_true_pixels(planes):
    batch, loss = batch_of(planes, range(2)), build_loss(Named(name="seeded", seed_planes=2))
    seed, hit = batch.edge_index
    true = (batch.track[seed] == batch.track[hit]) & (batch.track[seed] >= 0)
    assert int(true.sum()) == 8  # four planes of either event
    score = torch.full((batch.num_edges,), -3.0)
    score[true] = -1.0
    plane = batch.x[hit, 0]
    first = (true & (plane == 4) & (batch.batch[hit] == 0)).nonzero()[0]
    score[first] = -5.0  # another hit of this plane is better, if there is one
    rival = bool(((plane == 4) & ~true & (batch.batch[hit] == 0)).any())
    outputs = {"edge_score": score, "edge_best": torch.where(true, -1.5, -0.5), "edge_plane": plane}
    term = loss(outputs, batch)["planes"]
    assert term.count == 2 and term.sum.item() == pytest.approx((3 * 1.0 + 5.0) / 4 + 1.0)
    found = {name: (term.sum.item(), term.count) for name, term in loss.metrics(outputs, batch).items()}
    assert found == {
        "pixel_accuracy": (7.0, 8),
        "pixel_accuracy_behind": (5.0, 6),
        "hit_accuracy": (8.0 - rival, 8),
        "hit_accuracy_behind": (6.0 - rival, 6),
    }


def test_candidates_are_the_best_hits_of_each_seed():
    outputs = {
        "edge_index": np.array([[0, 0, 0, 0, 1, 1, 1, 1], [2, 3, 4, 5, 2, 3, 4, 5]]),
        "edge_score": np.log(np.array([0.6, 0.3, 0.8, 0.01, 0.2, 0.5, 0.1, 0.02])).astype(np.float32),
        "edge_plane": np.array([1, 1, 2, 3, 1, 1, 2, 3], dtype=np.float32),
    }
    rows = np.arange(6) + 4
    found = build_builder(Named(name="seeded", cut=0.1, min_hits=2)).build(outputs, rows, 12, 3)
    check_candidates(found, 12)
    assert [part.tolist() for part in np.split(found.hit_rows, found.hit_offsets[1:-1])] == [[4, 6, 8], [5, 7]]
    assert found.scores == pytest.approx([0.8, 0.75])
    outputs["edge_score"][5] = -4.0
    every = build_builder(Named(name="seeded", cut=0.01, one_a_plane=False)).build(outputs, rows, 12, 3)
    assert every.hit_rows.tolist() == [4, 6, 7, 8] and len(every) == 1  # the other seed has two hits
    with pytest.raises(InputError, match="'seeded' needs a model on planes"):
        build_builder(Named(name="seeded", cut=0.1)).build({"edge_score": np.zeros(1)}, rows, 12, 3)


def test_errors_are_those_over_groups_of_events():
    right, of, error = campaign.added_up([(3, 4), (1, 4), (2, 4)])
    assert (right, of) == (6, 12) and error == pytest.approx(np.std([3 / 4, 1 / 4, 2 / 4], ddof=1) / 3**0.5)
    assert campaign.added_up([(3, 4)]) == [3, 4, 0]


def test_the_study_of_multiplicity_goes_on_where_it_was(tmp_path, capfd):
    small = "--pixels 8 --planes 4 --seed-planes 2"
    options = [*("--out", str(tmp_path), "--models", "convolution", "--tracks", "1,3", "--seeds", "1", "--here")]
    options += ["--events", "4", "--test-events", "3", "--steps", "1", "--simulate", small]
    options += [f"--set={key}" for key in ("model.pixels=8", "model.planes=4", "model.layers=1", "model.filters=2")]
    options += [f"--set={key}" for key in ("plan.events_per_step=4", "optim.warmup_steps=0", "parallel.device=cpu")]
    assert campaign.main(options) == 0
    points = (tmp_path / "points.jsonl").read_text()
    lines = [json.loads(line) for line in points.splitlines()]
    rows = [row for row in lines if row["recipe"] == "convolution"]
    assert len(lines) == 4 and all(row["hit_accuracy_behind"][0] <= 3 for row in lines)
    assert [(row["recipe"], row["seed"], row["tracks"]) for row in rows] == [("convolution", 1, n) for n in (1, 3)]
    assert all(row["hit_accuracy_behind"][1] == 3 and row["step"] == 1 for row in rows)
    assert accuracy.main([str(tmp_path / "runs" / "convolution-1"), "--data", str(tmp_path / "test-3")]) == 0
    assert "| convolution-1 |" in capfd.readouterr().out
    assert "| convolution | " in (tmp_path / "planes.md").read_text() and (tmp_path / "planes.png").exists()
    assert campaign.main(options) == 0 and (tmp_path / "points.jsonl").read_text() == points

"""Exact sizes after selection: of every kind of selection, kept in files, checked, and said where nothing is left."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import synthetic_run as make
import torch

from hpctrack import evaluate
from hpctrack.config import AugmentConfig, CurriculumStage, KeptConfig, ParallelConfig, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events import sizes
from hpctrack.events.kept_hits import StoredHits, stored_hits
from hpctrack.events.loader import EventLoader
from hpctrack.events.selection import Draw
from hpctrack.parallel.env import distributed
from hpctrack.storage import hits
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.journals import Journal
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.batches import Batches
from hpctrack.training.build import build_events
from hpctrack.training.planner import BY_INDEX, BY_SELECTION, Planner
from hpctrack.training.size_table import SizeTable

SELECTIONS = [
    {},
    {"pt_min_gev": 1.2, "noise": False, "other_hits": False},
    {"pt_min_gev": 1.2, "noise_share": 0.1},
    {"volumes": [8], "min_hits": 5, "eta_max": 1.0},
    {"tracks": 7},
    {"tracks": 7, "noise": False, "other_hits": False, "pt_min_gev": 0.8},
    {"tracks": 7, "noise_share": 0.05, "volumes": [8, 13]},
]
PARTS = [AugmentConfig(), AugmentConfig(sector_rad=1.5), AugmentConfig(sector_rad=1.5, outside=0.3)]


def rank():
    return distributed(ParallelConfig(), 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    events = [make.make_event(k, 12 + 3 * k) for k in range(6)]
    for event in events:
        event.column("hits.volume_id")[event.column("hits.r") > 300] = 13
    return make.write_dataset(tmp_path_factory.mktemp("sizes") / "data", events)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_sizes_are_those_of_the_events_that_are_read(dataset, tmp_path, selection, part):
    stages = [CurriculumStage(until_epoch=1, tracks=3)]
    load = EventLoader(dataset, ["r"], SelectionConfig(**selection), part, (5, 0), curriculum=stages)
    with rank() as env:
        table = SizeTable(dataset, load.draw, env, [tmp_path])
        mean = np.zeros(len(dataset))
        for epoch in range(20):
            found, hits = table.in_epoch(epoch), [load(row, epoch) for row in range(len(dataset))]
            assert found.hits.tolist() == [event.num_nodes for event in hits]
            assert found.targets.tolist() == [int(event.n_tracks) for event in hits]
            mean += found.hits / 19 if epoch else 0
        assert table.draw.by_chance(0) and table.draw.by_chance(1) is ("tracks" in selection or part != PARTS[0])
        if part == PARTS[0] and "noise_share" not in selection:
            assert table.expected == pytest.approx(mean, rel=0.25)


@pytest.fixture(scope="module")
def kept(dataset) -> StoredHits:
    """Half of each event's hits, as a filter writes them."""
    folder, rng = dataset.folder / "hits/half", np.random.default_rng(0)
    journal, sources = Journal(folder, "w"), {}
    for event, n_hits in zip(dataset.event_ids.tolist(), dataset.n_hits, strict=True):
        row = np.flatnonzero(rng.random(n_hits) < 0.5).astype(np.int32)
        one = hits.Hits(event, row, rng.uniform(0.2, 1.0, len(row)).astype(np.float32))
        sources[event] = journal.append(event, hits.encode(one))
    journal.close()
    ids = dataset.event_ids.tolist()
    digest = hits.HITS.write_shard(folder, "hits-00000.h5", ids, sources)
    hits.HITS.write_index(folder, [("hits-00000.h5", ids, digest)], {"dataset_fingerprint": dataset.fingerprint})
    return stored_hits(KeptConfig(stored="half"), dataset.folder, dataset)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_hits_that_are_not_kept_do_not_exist(dataset, kept, tmp_path, selection, part):
    chosen = SelectionConfig(**selection)
    load = EventLoader(dataset, ["r"], chosen, part, (5, 0), kept=pickle.loads(pickle.dumps(kept)))
    with rank() as env:
        table = SizeTable(dataset, load.draw, env, [tmp_path])
        for epoch in range(2):
            found, read = table.in_epoch(epoch), [load(row, epoch) for row in range(len(dataset))]
            assert found.hits.tolist() == [event.num_nodes for event in read]
            assert found.targets.tolist() == [int(event.n_tracks) for event in read]
    for row, event in enumerate(read):
        assert set(event.hit_row.tolist()) <= set(kept.store.read(row).row.tolist())
        sizes_of_tracks = np.bincount(event.track[event.track >= 0], minlength=int(event.n_tracks))
        assert (sizes_of_tracks >= chosen.min_hits).all()
    assert not load.draw.keeps_all and (table.whole.hits < dataset.n_hits).all()


def test_sizes_of_one_filter_are_not_those_of_another(dataset, kept, tmp_path):
    draws = [Draw(SelectionConfig(), kept=one) for one in (None, kept)]
    draws.append(
        Draw(SelectionConfig(), kept=stored_hits(KeptConfig(stored="half", score_min=0.5), dataset.folder, dataset))
    )
    with rank() as env:
        tables = [SizeTable(dataset, draw, env, [tmp_path]) for draw in draws * 2]
    assert len({table.kept for table in tables}) == 3
    every, half, fewer = (table.whole.hits.sum() for table in tables[:3])
    assert every > half > fewer > 0 and [table.whole.hits.sum() for table in tables[3:]] == [every, half, fewer]


def test_kept_hits_that_leave_no_target_are_said(dataset, kept):
    alone = Draw(SelectionConfig(min_hits=11), kept=kept)
    error = sizes.nothing_left(dataset, alone, sizes.key_of("selection"))
    assert ", after the hit filter has 11 hits; the most are " in str(error)
    none = stored_hits(KeptConfig(stored="half", score_min=1.0), dataset.folder, dataset)
    error = sizes.nothing_left(dataset, Draw(SelectionConfig(), kept=none), sizes.key_of("selection"))
    assert str(error) == f"no hit is left of {dataset.folder}, after the hit filter"


def test_what_is_not_drawn_is_counted_once(dataset, tmp_path, monkeypatch):
    draw, counted = Draw(SelectionConfig(pt_min_gev=1.0, noise=False)), []
    count = sizes.count
    monkeypatch.setattr(sizes, "count", lambda *args: counted.append(1) or count(*args))
    blocked, other = tmp_path / "blocked", tmp_path / "other"
    blocked.mkdir()
    other.mkdir()
    (blocked / sizes.FOLDER).write_text("a file in the way")
    with rank() as env:

        def table(chosen: Draw = draw) -> SizeTable:
            return SizeTable(dataset, chosen, env, [blocked, other, tmp_path / "missing"])

        first = table()
        assert counted == [1] and first.kept.parent == other / sizes.FOLDER
        assert np.array_equal(table().whole.hits, first.whole.hits) and counted == [1]
        table(Draw(SelectionConfig(pt_min_gev=1.1, noise=False)))
        assert len(counted) == 2
        drawn = Draw(SelectionConfig(pt_min_gev=1.0, noise=False, tracks=3), (1, 0))
        assert np.array_equal(table(drawn).whole.hits, first.whole.hits) and len(counted) == 2
        for damage in ("", "[]", "{", first.kept.read_text()[:-9], first.kept.read_text().replace("hits", "hit", 1)):
            first.kept.write_text(damage)
            assert np.array_equal(table().whole.hits, first.whole.hits)
        assert len(counted) == 7
        another = other / sizes.FOLDER / "0123456789abcdef-of-another-dataset.json"
        another.write_text("{}")
        first.kept.unlink()
        table()
        assert another.exists(), "a run's folder keeps the sizes of training and validation events"
        (other / INDEX).touch()  # a dataset's folder: what it was before
        first.kept.unlink()
        table()
        assert len(list((other / sizes.FOLDER).iterdir())) == 2 and not another.exists()


def test_a_size_that_is_not_as_counted_names_the_event(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7))
    config = toy_config(tmp_path / "run", data, reading={"selection": {"pt_min_gev": 1.5}})
    with rank() as env:
        events, _ = seen(config, env)
        right = events.sizes.whole
        wrong = sizes.Sizes(right.hits + [0, 0, 1, 0], right.targets)
        sizes.keep(events.sizes.kept, wrong, events.dataset, events.loader.draw)
        events, _ = seen(config, env)
        planner = planned(config, events, env)
        with pytest.raises(InputError, match=r"event 2 has 33 hits after selection, but 34 were counted before"):
            list(Batches(events, None, env, config.data, print).of_steps(planner, 0, 1))


def seen(config, env):
    return build_events(config, env, lambda at: None, torch.float32, ())


def planned(config, events, env):
    return Planner(config.plan, events.sizes, Linear(), env, seed=config.seed, selection=config.data.selection)


class Linear:
    """A model whose cost is its hits."""

    def relative_cost(self, hits, edges=None):
        return np.asarray(hits, dtype=np.float64)


@pytest.mark.parametrize(("window", "differs"), [(1, False), (2, True)])
def test_an_older_run_goes_on_with_the_steps_that_it_began(tmp_path, window, differs):
    """Whose steps are grouped by what the index lets expect, though the plan within a step goes by exact sizes."""
    data = toy_dataset(tmp_path / "data", sizes=range(3, 15))
    selection = {"pt_min_gev": 1.8, "noise": False, "other_hits": False}
    config = toy_config(tmp_path / "run", data, reading={"selection": selection}, plan={"window": window})
    with rank() as env:
        planner = planned(config, seen(config, env)[0], env)
        identities = []
        for sizes_by in (BY_SELECTION, BY_INDEX):
            planner.compose_by(sizes_by)
            identities.append([planner.identity(step)["hash"] for step in range(6)])
            assert planner.identity(0)["sizes"] == sizes_by
        assert (identities[0] != identities[1]) is differs
        index = planner.data.n_hits - planner.data.n_noise
        assert np.array_equal(planner.sizes, index / index.mean())
        assert planner.hits(0).sum() < index.sum()


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        (
            {"pt_min_gev": 1000.0},
            r"key 'data.selection.pt_min_gev': .* with 3 hits has a pT of 1000 GeV; the largest is 2",
        ),
        ({"min_hits": 7}, r"key 'data.selection.min_hits': no particle of .* has 7 hits; the most are 6"),
        ({"eta_max": 1e-9}, r"key 'data.selection.eta_max': no particle of .* is left"),
        ({"volumes": [13]}, r"key 'data.selection.volumes': no hit is left of .*, volumes \[13\]"),
    ],
)
@pytest.mark.parametrize("which", ["train", "valid"])
def test_a_selection_without_a_target_is_refused(tmp_path, selection, line, which):
    data, bare = toy_dataset(tmp_path / "data", sizes=(3, 2)), toy_dataset(tmp_path / "bare", sizes=(0, 0))
    good = {"train": (bare, None), "valid": (data, bare)}[which]
    with rank() as env:
        config = toy_config(tmp_path / "run", *good)
        with pytest.raises(InputError, match="bare: has no particles, so there is no track to find"):
            seen(config, env)
        config = toy_config(tmp_path / "run", data, reading={"selection": selection})
        with pytest.raises(InputError, match=line):
            seen(config, env)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--pt-min-gev", "1000"], r"--pt-min-gev: no particle of .* has a pT of 1000 GeV; the largest is \d"),
        (["--min-hits", "50"], r"--min-hits: no particle of .* has 50 hits; the most are 10"),
        (["--eta-max", "0"], r"cuts pT >= 1 GeV, >= 3 hits, |eta| <= 0: no particle of .* is left"),
    ],
)
def test_an_evaluation_without_a_target_is_refused(dataset, tmp_path, capsys, options, line):
    found = [make.truth_candidates(dataset.read(row)) for row in range(len(dataset))]
    make.write_candidates(tmp_path / "found", dataset, found)
    out = tmp_path / "results.json"
    words = [str(tmp_path / "found"), "--data", str(dataset.folder), "--out", str(out)]
    assert evaluate.main([*words, *options]) == 2 and not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(InputError, match=line):
        raise InputError(error)
    assert evaluate.main(words) == 0 and json.loads(out.read_text())["target_particles"] > 0

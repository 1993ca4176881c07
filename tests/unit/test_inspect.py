"""`hpctrack inspect`: it knows every kind of path, says what it holds, and --verify names every planted error."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from campaigns.damage import toy_candidates
from dying import die_of_one
from helpers import commit, random_event
from synthetic_run import make_event, truth_candidates, write_dataset
from synthetic_run import write_candidates as write_synthetic
from toys import toy_checkpoint, toy_model

from hpctrack import evaluate, inspect
from hpctrack.config import dump_yaml
from hpctrack.inspection import kinds, text
from hpctrack.storage import candidates, journals, products, schema, shard_writer, store
from hpctrack.storage.candidates import CANDIDATES, CandidateStore
from hpctrack.storage.columns import combined_digest, table_checksum
from hpctrack.storage.schema import Candidates
from hpctrack.storage.verify import check_dataset, run_checks
from hpctrack.testing.toys import toy_config, toy_dataset, toy_event
from hpctrack.training import checkpoint


def write_candidates(folder, dataset_folder, change=lambda one: one, attributes=None, finish=True):
    """Random candidates of a toy dataset, in a file for each of its shards."""
    dataset, rng = store.open_dataset(dataset_folder), np.random.default_rng(5)
    journal = journals.Journal(folder, "rank-00000")
    for i in range(len(dataset)):
        commit(journal, change(toy_candidates(dataset.read(i), rng)))
    journal.close()
    if finish:
        files = []
        for k in range(len(dataset.shards)):
            ids = [int(event) for event in dataset.event_ids[dataset.shard == k]]
            name = f"candidates-{k:05d}.h5"
            files.append((name, ids, CANDIDATES.write_shard(folder, name, ids, journals.committed(folder))))
        CANDIDATES.write_index(folder, files, {"dataset_fingerprint": dataset.fingerprint} | (attributes or {}))
        products.clean(folder)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """One of everything."""
    root = tmp_path_factory.mktemp("house")
    toy_dataset(root / "data")
    write_candidates(root / "candidates", root / "data")
    write_candidates(root / "unfinished", root / "data", finish=False)
    toy_dataset(root / "half")
    (root / "half" / "index.h5").unlink()
    events = [make_event(event_id, 30) for event_id in (1, 2)]
    dataset = write_dataset(root / "evaluated/data", events)
    write_synthetic(root / "evaluated/candidates", dataset, [truth_candidates(event) for event in events])
    run = root / "run"
    for step in (4, 6):
        toy_checkpoint(run / "checkpoints", step)
    (run / "config.yaml").write_text(dump_yaml(toy_config(run, root / "data")))
    rows = [{"kind": "train", "step": step, "epoch": 0, "loss": 2.0 / step} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


KINDS = {
    "data": kinds.DATASET,
    "data/index.h5": kinds.DATASET_INDEX,
    "data/events-00001.h5": kinds.SHARD,
    "half": kinds.UNFINISHED_DATASET,
    "candidates": kinds.CANDIDATES,
    "candidates/index.h5": kinds.CANDIDATES_INDEX,
    "candidates/candidates-00000.h5": kinds.CANDIDATES_FILE,
    "unfinished": kinds.UNFINISHED_CANDIDATES,
    "unfinished/.parts/rank-00000.journal": kinds.JOURNAL,
    "run": kinds.RUN,
    "run/checkpoints": kinds.CHECKPOINTS,
    "run/checkpoints/step-00000006": kinds.CHECKPOINT,
    "run/checkpoints/step-00000006/state.pt": kinds.CHECKPOINT,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_known_described_and_whole(house, name, capsys, tmp_path):
    path = house / name
    assert kinds.kind_of(path) == KINDS[name]
    assert inspect.main([str(path), "--json", str(tmp_path / "facts.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}: {KINDS[name]}\n")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["kind"] == KINDS[name] and facts["problems"] == [] and not facts["verified"]
    problems = [str(problem) for problem in inspect.verify(path, KINDS[name], jobs=0)]
    if KINDS[name] in (kinds.UNFINISHED_DATASET, kinds.UNFINISHED_CANDIDATES):
        assert len(problems) == 1 and "index.h5: missing; " in problems[0]
    else:
        assert problems == []


def test_what_a_dataset_holds(house, capsys):
    dataset = store.open_dataset(house / "data")
    facts = inspect.describe(house / "data", kinds.DATASET)
    assert (facts["events"], facts["hits"]) == (6, dataset.n_hits.sum())
    assert facts["digest"] == store.digest(dataset) == combined_digest(dataset.event_ids, dataset.checksums)
    assert facts["columns"]["truth.particle_id"] == {"dtype": "int64", "bytes": 8 * facts["hits"]}
    assert sum(facts["histograms"]["hits per event"]["counts"]) == 6
    shard = inspect.describe(house / "data" / "events-00000.h5", kinds.SHARD)
    assert shard["columns"]["hits.x"] == {"dtype": "float32", "bytes": 4 * shard["hits"], "layout": "contiguous"}
    assert list(inspect.describe(house / "half", kinds.UNFINISHED_DATASET)["shards"]) == dataset.shards


def test_what_candidates_hold(house):
    found = CandidateStore(house / "candidates")
    events = [found.read(i) for i in range(len(found))]
    facts = inspect.describe(house / "candidates", kinds.CANDIDATES)
    sizes = np.concatenate([np.diff(event.hit_offsets) for event in events])
    assert facts["digest"] == found.digest and facts["candidates"] == len(sizes) == sum(map(len, events))
    assert facts["histograms"]["hits per candidate"]["mean"] == pytest.approx(sizes.mean())
    assert facts["hits"] == sum(len(event.track_ids) for event in events)
    assert facts["columns"]["hit_offsets"] == {"dtype": "int64", "bytes": 8 * (len(sizes) + len(events))}
    assert facts["columns"].keys() == candidates.COLUMNS.keys()
    unfinished = inspect.describe(house / "unfinished", kinds.UNFINISHED_CANDIDATES)
    assert unfinished["candidates"] == facts["candidates"] and unfinished["histograms"] == facts["histograms"]


def test_track_parameters_are_listed_where_there_are_some(house, tmp_path):
    def estimated(one):
        return replace(one, parameters=np.ones((len(one), len(schema.ESTIMATE)), dtype=np.float32))

    write_candidates(tmp_path, house / "data", estimated)
    for path in (tmp_path, tmp_path / "candidates-00001.h5"):
        facts = inspect.describe(path, kinds.kind_of(path))
        wanted = {"dtype": "float32", "bytes": 4 * len(schema.ESTIMATE) * facts["candidates"]}
        assert facts["columns"]["parameters"] == wanted and facts["candidates"] > 0


def test_what_a_checkpoint_and_a_run_hold(house):
    facts = inspect.describe(house / "run/checkpoints/step-00000006", kinds.CHECKPOINT)
    model = toy_model(6)
    total = sum(weights.numel() for weights in model.parameters())
    assert facts["digest"] == checkpoint.digest(model)
    assert facts["parameters"] == total and facts["step"] == 6 and facts["dtype"] == "float64"
    assert sum(entry["parameters"] for entry in facts["modules"].values()) == total and len(facts["modules"]) > 2
    run = inspect.describe(house / "run", kinds.RUN)
    assert run["last_loss"] == "1" and run["tuned"] == "builder.radius=0.3" and run["trained_on_fingerprint"] == "abc"
    assert run["checkpoints"] == ["step-00000004", "step-00000006"]


def test_the_results_of_an_evaluation(house, capsys):
    results = house / "results.json"
    folder = house / "evaluated"
    command = [str(folder / "candidates"), "--data", str(folder / "data"), "--out", str(results)]
    assert evaluate.main(command) == 0
    capsys.readouterr()
    assert inspect.main([str(results), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert f"{results}: results" in printed and "Efficiency" in printed and printed.endswith("verified: ok\n")
    changed = json.loads(results.read_text())
    changed["candidates"]["metrics"]["efficiency"]["value"] = 0.123
    (house / "changed.json").write_text(json.dumps(changed))
    assert inspect.main([str(house / "changed.json"), "--verify"]) == 2
    assert "candidates.efficiency: is 0.123" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere", "odd.txt", "odd.json", "empty", "odd.h5"])
def test_an_unknown_path_is_one_line_and_exit_2(tmp_path, name, capsys):
    (tmp_path / "empty").mkdir()
    for odd in ("odd.txt", "odd.h5"):
        (tmp_path / odd).write_text("nonsense")
    (tmp_path / "odd.json").write_text("{}")
    assert inspect.main([str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hpctrack inspect: error: ") and err.count("\n") == 1 and name in err


def test_torch_is_imported_for_checkpoints_only(house):
    code = "import sys; from hpctrack import inspect; inspect.main([sys.argv[1]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(house / "data")], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_nine_thousand_events_are_described_from_the_index_alone(tmp_path):
    n, rng = 9000, np.random.default_rng(0)
    table = {"event_id": np.arange(n), "shard": np.zeros(n, np.int32), "row": np.arange(n)}
    table |= {"n_hits": rng.integers(80_000, 130_000, n), "n_noise": rng.integers(9_000, 20_000, n)}
    table |= {"n_particles": rng.integers(8_000, 12_000, n), "checksum": rng.integers(0, 2**63, n).astype(np.uint64)}
    table |= {"shard_files": np.array(["events-00000.h5"], "S"), "shard_bytes": np.array([8])}
    (tmp_path / "events-00000.h5").write_bytes(b"no shard")  # it must not be opened
    with h5py.File(tmp_path / "index.h5", "w") as file:
        file.attrs.update({"format": schema.FORMAT, "version": schema.VERSION, "kind": "index"})
        for key, values in table.items():
            file[key] = values
        file["index_checksum"] = np.uint64(table_checksum(table, store.INDEX_COLUMNS))
    begin = time.perf_counter()
    facts = inspect.describe(tmp_path, kinds.kind_of(tmp_path))
    assert facts["events"] == n and time.perf_counter() - begin < 1


# ------------------------------------------------------------------------------------------------ --verify


def changed_event(table, column, row, value):
    """A toy event, one value of it changed before it is written (so that all checksums fit)."""
    event = toy_event(0, 6)
    event.tables[table][column][row] = value
    return event


def with_particle(event, column, value):
    event.tables["particles"][column][0] = value
    return event


PLANTED = {
    "hit_id": (lambda: changed_event("hits", "hit_id", 3, 3), "hits.hit_id: is not increasing: 3, then 3 in row 3"),
    "coordinate": (lambda: changed_event("hits", "y", 2, np.nan), "hits.y: row 2 is nan, must be a finite number"),
    "weight": (lambda: changed_event("truth", "weight", 1, -1), "truth.weight: row 1 is -1.0, must not be negative"),
    "weight inf": (lambda: changed_event("truth", "weight", 1, np.inf), "truth.weight: row 1 is inf"),
    "row": (lambda: changed_event("truth", "particle_row", 0, 6), "row 0 is 6, must be from -1 to 5"),
    "row -2": (lambda: changed_event("truth", "particle_row", 0, -2), "row 0 is -2, must be from -1 to 5"),
    "id": (lambda: changed_event("truth", "particle_id", 0, 77), "row 0 is 77, but particle_row says"),
    "nhits": (
        lambda: with_particle(toy_event(0, 6), "nhits", -1),
        "particles.nhits: row 0 is -1, must not be negative",
    ),
    "nhits too small": (lambda: with_particle(toy_event(0, 6), "nhits", 2), "particles.nhits: row 0 is 2, but"),
    "twice": (lambda: with_particle(toy_event(0, 6), "particle_id", 1001), "holds a particle twice"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_reference_error_is_found(tmp_path, name):
    make, what = PLANTED[name]
    with shard_writer.ShardWriter(tmp_path / "events-00000.h5") as writer:
        writer.add(make())
        writer.add(toy_event(1, 3))
    shard_writer.write_index(tmp_path, ["events-00000.h5"])
    problems = list(map(str, check_dataset(tmp_path, jobs=0)))
    assert problems and all("events-00000.h5: event 0: " in problem for problem in problems)
    assert any(what in problem for problem in problems), problems


def rewrite(path, name, change):
    """Change one dataset of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        values = change(file[name][()].copy())
        del file[name]
        file[name] = values


def bump(place, by=1):
    def change(values):
        values[place] += by
        return values

    return change


DAMAGE = {
    ("events-00000.h5", "hits/x", bump(0)): "events-00000.h5: event 0: hits.x: fails its checksum",
    ("events-00000.h5", "checksums/cells/size_u", bump(1)): "event 1: cells.size_u: fails its checksum",
    ("events-00000.h5", "checksum", bump(2)): "event 2: checksum: does not follow from the columns' checksums",
    ("events-00000.h5", "n_noise", bump(1)): "event 1: n_noise: is 4, but 3 hits are noise",
    ("events-00000.h5", "offsets/hits", bump(1, 10**6)): "offsets/hits: decreases from",
    ("events-00000.h5", "offsets/particles", bump(0, 1)): "offsets/particles: must begin with 0, not with 1",
    ("events-00000.h5", "offsets/hits", bump(-1)): "hits/x: has shape (",
    ("events-00000.h5", "hits/z", lambda v: v.astype("f8")): "hits/z: has type float64, must be float32",
    ("events-00000.h5", "event_id", bump(3, 50)): "event 3: event_id: is 53, but index.h5 says 3",
    ("index.h5", "n_hits", bump(4)): "index.h5: fails its checksum",
    ("index.h5", "shard", bump(4, 7)): "index.h5: event 4: shard: is 8, must be from 0 to 1",
}


@pytest.mark.parametrize("key", DAMAGE, ids=lambda key: f"{key[0]}-{key[1]}")
def test_damage_of_each_part_is_named(tmp_path, key):
    toy_dataset(tmp_path / "data")
    rewrite(tmp_path / "data" / key[0], key[1], key[2])
    problems = list(map(str, check_dataset(tmp_path / "data", jobs=0)))
    assert any(DAMAGE[key] in problem for problem in problems), problems
    assert all(len(problem.splitlines()) == 1 for problem in problems)


def test_all_problems_are_listed_by_the_verb(tmp_path, capsys):
    folder = toy_dataset(tmp_path / "data")
    rewrite(folder / "events-00000.h5", "hits/x", bump(0))
    rewrite(folder / "events-00001.h5", "truth/tx", bump(0))
    (folder / "events-00007.h5").write_bytes((folder / "events-00001.h5").read_bytes())
    assert inspect.main([str(folder), "--verify", "--jobs", "2", "--json", str(tmp_path / "f.json")]) == 2
    out, err = capsys.readouterr()
    for text_ in ("event 0: hits.x: fails", "event 4: truth.tx: fails", "events-00007.h5: is not named by index.h5"):
        assert f"{text_}" in out
    listed = json.loads((tmp_path / "f.json").read_text())["problems"]
    assert (listed[0]["event"], listed[0]["column"]) == (0, "hits.x")
    said = [line for line in err.splitlines() if "files verified" not in line]  # progress, on a busy machine
    assert said == [f"hpctrack inspect: error: {folder}: {len(listed)} problems found"]


def test_a_check_that_kills_its_process_is_named_and_the_others_go_on(tmp_path):
    paths = [tmp_path / name for name in ("a", "die", "b")]
    found = dict(run_checks(die_of_one, paths, 2, None))
    assert found[paths[0]] == found[paths[2]] == "fine" and "ends the process" in found[paths[1]]


def changed(**columns):
    """A change of the first event's candidates."""

    def change(one):
        values = {name: getattr(one, name).copy() for name in candidates.COLUMNS}
        if one.event_id == 0:
            for name, (place, value) in columns.items():
                values[name][place] = value
        return Candidates(one.event_id, **values)

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed(hit_rows=(0, 10**6)), "event 0: hit_rows: holds the row 1000000"),
        (changed(hit_rows=(0, -1)), "event 0: hit_rows: holds the row -1"),
        (changed(hit_rows=(slice(0, 2), 5)), "event 0: hit_rows: candidate 0 has its rows not ascending"),
        (changed(scores=(0, np.nan)), "event 0: scores: must be finite numbers"),
        (changed(track_ids=(0, -3)), "event 0: track_ids: holds -3, must not be negative"),
        (changed(hit_offsets=(-1, 10**6)), "event 0: hit_offsets: ends at 1000000"),
        (changed(hit_offsets=(0, 1)), "event 0: hit_offsets: must begin with 0"),
    ],
)
def test_planted_errors_of_candidates_are_found(tmp_path, change, what):
    data = toy_dataset(tmp_path / "data")
    folder = write_candidates(tmp_path / "c", data, change)
    problems = [str(problem) for problem in inspect.verify(folder, kinds.CANDIDATES, data, jobs=0)]
    assert what in problems[0], problems


def test_candidates_of_another_dataset_are_found(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data")
    other = toy_dataset(tmp_path / "other", sizes=(4, 6, 5, 9))
    folder = write_candidates(tmp_path / "c", data)
    assert inspect.main([str(folder), "--verify", "--data", str(data)]) == 0
    assert inspect.main([str(folder), "--verify", "--data", str(other)]) == 2
    out = capsys.readouterr().out
    for what in (
        "made from a dataset with fingerprint",
        "event 4: has candidates, but is not in",
        "but the dataset has",
    ):
        assert what in out
    rewrite(folder / "candidates-00001.h5", "scores", bump(0, 0.5))
    (problem, *_) = inspect.verify(folder, kinds.CANDIDATES, data, jobs=0)
    assert "candidates-00001.h5: fails its digest" in str(problem)
    assert inspect.main([str(data), "--data", str(data)]) == 2


def test_a_cut_journal_is_named(house, tmp_path):
    path = tmp_path / "rank-00000.journal"
    path.write_bytes((house / "unfinished/.parts/rank-00000.journal").read_bytes()[:-5])
    (problem,) = inspect.verify(path, kinds.kind_of(path), jobs=0)
    assert "no whole record in the last" in str(problem)


def test_problems_of_checkpoints_are_found(tmp_path):
    name, weights = next((name, value) for name, value in toy_model(2).state_dict().items() if value.ndim == 2)

    def poison(state):
        state["model"][name][0, 0] = np.nan

    folder = tmp_path / "checkpoints"
    toy_checkpoint(folder, 2, poison)
    toy_checkpoint(folder, 4)
    toy_checkpoint(folder, 6)
    content = bytearray((folder / "step-00000004/state.pt").read_bytes())
    content[content.find(b"/data/0") + 200] ^= 1
    (folder / "step-00000004/state.pt").write_bytes(content)
    (folder / "step-00000006/meta.json").write_text("{")
    (folder / "latest").write_text("step-00000008")
    found = [str(problem) for problem in inspect.verify(folder, kinds.kind_of(folder), jobs=0)]
    expected = ["latest: names 'step-00000008'", f"{name}: 1 of {weights.numel()} weights are not finite"]
    expected += ["fails its checksum", "meta.json: not a checkpoint's meta data"]
    assert len(found) == 4 and all(any(what in one for one in found) for what in expected), found


def test_problems_of_a_run_are_found(house, tmp_path):
    run = tmp_path / "run"
    toy_checkpoint(run / "checkpoints", 2)
    (run / "config.yaml").write_text((house / "run/config.yaml").read_text() + "\nodd: 1\n")
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr\n')
    lines = [{"events": 3}, {"step": 1, "epoch": 0, "events": [7, 8]}, {"step": 3, "epoch": 0, "events": [8]}]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [str(problem) for problem in inspect.verify(run, kinds.RUN, jobs=0)]
    assert "ledger.jsonl: steps are not 1 to 2" in found[2] and "1 events consumed more than once" in found[3]
    (run / "ledger.jsonl").write_text("nonsense\n")
    assert "ledger.jsonl: not a run's ledger" in str(inspect.verify(run, kinds.RUN, jobs=0)[2])
    assert len(found) == 4 and "odd" in found[0] and "metrics.jsonl: line 2 is not a metrics line" in found[1], found


def test_histograms_count_every_value():
    values = np.random.default_rng(1).integers(3, 1234, 500)
    found = text.histogram(values)
    assert sum(found["counts"]) == 500 and found["edges"][0] <= values.min() and found["edges"][-1] > values.max()
    assert len(found["counts"]) <= text.MAX_BINS + 1
    assert text.histogram(np.zeros(0))["n"] == 0
    one = text.histogram_lines("x", text.histogram(np.array([7])))
    assert len(one) == 2 and one[1].strip().startswith("7")


def test_random_bits_pass_where_only_checksums_speak(tmp_path):
    """Events without order or references fail those checks, but no checksum."""
    with shard_writer.ShardWriter(tmp_path / "events-00000.h5") as writer:
        writer.add(random_event(1, 20, 3))
    shard_writer.write_index(tmp_path, ["events-00000.h5"])
    assert not any("checksum" in str(problem) for problem in check_dataset(tmp_path, jobs=0))


def test_the_synthetic_event_of_other_tests_is_whole(tmp_path):
    with shard_writer.ShardWriter(tmp_path / "events-00000.h5") as writer:
        writer.add(make_event(3, 40))
    shard_writer.write_index(tmp_path, ["events-00000.h5"])
    assert check_dataset(tmp_path, jobs=1) == []

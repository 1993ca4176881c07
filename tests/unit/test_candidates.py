"""Candidates on disk: journals survive cuts, the joined files are canonical, damage is named."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import tracemalloc

import h5py
import numpy as np
import pytest
from helpers import commit
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack import inspect
from hpctrack.errors import InputError
from hpctrack.inference import run
from hpctrack.inspection import kinds
from hpctrack.storage import candidates, edges, hits, journals, products
from hpctrack.storage.candidates import CANDIDATES, CandidateStore
from hpctrack.storage.journals import Journal, committed
from hpctrack.storage.schema import Candidates


def random_candidates(event_id: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng([seed, event_id])
    n_hits, n = int(rng.integers(0, 30)), int(rng.integers(0, 6))
    sizes = rng.integers(0, n_hits + 1, n)
    rows = [np.sort(rng.choice(n_hits, size, replace=False)) for size in sizes] or [np.zeros(0)]
    return Candidates(
        event_id,
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(rows).astype(np.int32),
        rng.random(n).astype(np.float32),
        rng.integers(0, 4, n_hits).astype(np.int32),
    )


def same(a: Candidates, b: Candidates) -> bool:
    return a.event_id == b.event_id and all(np.array_equal(getattr(a, c), getattr(b, c)) for c in candidates.COLUMNS)


def write(folder, events, writers=1, shards=2):
    journals = [Journal(folder, f"w{k}") for k in range(writers)]
    for i, event in enumerate(events):
        commit(journals[i % writers], random_candidates(event))
    for journal in journals:
        journal.close()
    files = []
    for k, part in enumerate(np.array_split(np.array(events), shards)):
        name = f"candidates-{k:05d}.h5"
        files.append((name, part, CANDIDATES.write_shard(folder, name, part, committed(folder))))
    CANDIDATES.write_index(folder, files, {"dataset_fingerprint": "x"})
    return CandidateStore(folder)


@settings(max_examples=20)
@given(st.integers(0, 12), st.integers(1, 3))
def test_round_trip_and_digest_do_not_depend_on_the_writers(tmp_path_factory, n, writers):
    events = [7 * k for k in range(n)]
    one = write(tmp_path_factory.mktemp("a"), events)
    many = write(tmp_path_factory.mktemp("b"), events[::-1][::-1], writers)
    assert one.digest == many.digest and one.event_ids.tolist() == events
    assert all(same(one.read(i), random_candidates(event)) for i, event in enumerate(events))


@settings(max_examples=40)
@given(st.data())
def test_a_journal_cut_anywhere_keeps_its_whole_records_and_goes_on(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    journal = Journal(folder, "w")
    ends = []
    for event in range(4):
        commit(journal, random_candidates(event))
        ends.append(journal.file.tell())
    journal.close()
    path = folder / journals.PARTS / "w.journal"
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    whole = sum(end <= cut for end in ends)
    assert sorted(committed(folder)) == list(range(whole))
    journal = Journal(folder, "w")
    for event in range(whole, 4):
        commit(journal, random_candidates(event))
    journal.close()
    assert sorted(committed(folder)) == [0, 1, 2, 3]
    CANDIDATES.write_shard(folder, "c.h5", [3, 1, 0, 2], committed(folder))


def test_a_flipped_bit_ends_the_journal(tmp_path):
    journal = Journal(tmp_path, "w")
    for event in (1, 2, 3):
        commit(journal, random_candidates(event, seed=5))
        end = journal.file.tell()
        if event == 1:
            middle = end + journals.HEADER.size + 3
    journal.close()
    path = tmp_path / journals.PARTS / "w.journal"
    content = bytearray(path.read_bytes())
    content[middle] ^= 1
    path.write_bytes(content)
    assert sorted(committed(tmp_path)) == [1]


def test_files_stay_open_and_pass_through_fork_and_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "MAX_OPEN", 2)
    store = write(tmp_path, list(range(9)), shards=3)
    assert all(same(store.read(i), random_candidates(i)) for i in (0, 8, 4, 0, -1)[:4]) and len(store._files) == 2
    opened = dict(store._files)
    store.read(5)
    assert dict(store._files).keys() == opened.keys()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(map(same, pool.map(store.read, range(9)), map(random_candidates, range(9))))
    again = pickle.loads(pickle.dumps(store))
    store.close()
    assert same(again.read(3), random_candidates(3)) and same(store.read(3), random_candidates(3))
    with pytest.raises(IndexError):
        store.read(9)


def lie(path, name: str, change) -> None:
    """Replace a dataset by `change` of it."""
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        file[name] = values


def moved(k: int, by: int):
    def change(values):
        values[k] += by
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("offsets/hits", moved(1, 10**6), "offsets/hits must rise from 0 to the"),
        ("offsets/candidates", moved(0, 1), "offsets/candidates must rise from 0"),
        ("offsets/candidate_hits", moved(-1, 1), "rows of hit_rows"),
        ("offsets/hits", lambda v: v[:-1], r"offsets/hits is int64 \(6,\), must be int64 \(7,\)"),
        ("event_id", moved(2, 1), "does not hold the events that index.h5 says"),
        ("track_ids", lambda v: v.astype("f8"), "track_ids is float64"),
        ("scores", lambda v: np.float32(1), "scores is float32"),
        ("hit_offsets", lambda v: v[1:], "hit_offsets has"),
        ("hit_offsets", lambda v: v[::-1].copy(), "event 1: hit_offsets must rise from 0"),
        ("hit_rows", lambda v: v + 1000, "hit_rows from 1"),
        ("hit_rows", lambda v: np.full_like(v, -1), "hit_rows from -1 to -1"),
    ],
)
def test_lies_are_named(tmp_path, name, change, message):
    store = write(tmp_path, [1, 2, 3, 4, 5, 6], shards=1)
    path = tmp_path / "candidates-00000.h5"
    lie(path, name, change)
    with pytest.raises(InputError, match=message) as caught:
        for i in range(6):
            store.read(i)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def write_edges(folder, events):
    journal, rng, sources = Journal(folder, "w"), np.random.default_rng(0), {}
    for event in events:
        sender, receiver = rng.integers(0, 9, (2, event)).astype(np.int32)
        one = edges.Edges(event, sender, receiver, rng.random(event, dtype=np.float32))
        sources[event] = journal.append(event, edges.encode(one))
    journal.close()
    digest = edges.EDGES.write_shard(folder, "edges-00000.h5", events, sources)
    edges.EDGES.write_index(folder, [("edges-00000.h5", events, digest)], {})
    return edges.EdgeStore(folder)


def write_hits(folder, events):
    journal, rng, sources = Journal(folder, "w"), np.random.default_rng(0), {}
    for event in events:
        row = np.sort(rng.choice(20, event, replace=False)).astype(np.int32)
        one = hits.Hits(event, row, rng.random(event, dtype=np.float32))
        sources[event] = journal.append(event, hits.encode(one))
    journal.close()
    digest = hits.HITS.write_shard(folder, "hits-00000.h5", events, sources)
    hits.HITS.write_index(folder, [("hits-00000.h5", events, digest)], {"dataset_fingerprint": "abc"})
    return hits.HitStore(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("offsets/hits", moved(-1, 1), "offsets/hits must rise from 0 to the 6 rows of row"),
        ("row", lambda v: v[[0, 2, 1, 3, 4, 5]], "event 2: row must rise from 0 or more, each hit once"),
        ("row", lambda v: v - 30, "event 1: row must rise from 0 or more"),
        ("row", lambda v: v + 1, "event 1 fails its checksum"),
        ("score", moved(0, 1.5), "event 1: score must be from 0 to 1"),
        ("score", lambda v: v * np.float32(np.nan), "event 1: score must be from 0 to 1"),
    ],
)
def test_lies_of_kept_hits_are_named(tmp_path, name, change, message):
    store = write_hits(tmp_path, [1, 2, 3])
    assert store.n_kept.tolist() == [1, 2, 3] and kinds.kind_of(tmp_path) == kinds.HITS
    assert inspect.describe(tmp_path, kinds.HITS)["hits"] == 6 and not inspect.verify(tmp_path, kinds.HITS)
    assert [len(store.of_event(event)) for event in (3, 1)] == [3, 1]
    store.close()
    lie(tmp_path / "hits-00000.h5", name, change)
    with pytest.raises(InputError, match=f"{message}.*; {hits.HITS.advice}"):
        for i in range(3):
            hits.HitStore(tmp_path).read(i)
    assert inspect.verify(tmp_path, kinds.HITS)


@pytest.mark.parametrize("product", [edges.EDGES, hits.HITS], ids=lambda product: product.name)
def test_what_a_stage_has_begun_is_said_and_checked(tmp_path, product):
    assert not run.prepare(tmp_path, {"dataset_fingerprint": "abc"}, product.name)
    columns = {name: np.arange(2).astype(dtype) for name, dtype in product.columns.items()}
    journal = Journal(tmp_path, "w")
    for event in (3, 4):
        journal.append(event, product.encode(product.record(event, columns)))
    journal.close()
    kind = kinds.kind_of(tmp_path)
    facts = inspect.describe(tmp_path, kind)
    assert kind == f"unfinished {product.name}" and (facts["events"], facts[product.name]) == (2, 4)
    assert [problem.what for problem in inspect.verify(tmp_path, kind)] == [
        "missing; inference has not finished, run it again"
    ]
    assert kinds.kind_of(journal.path) == kinds.JOURNAL and not inspect.verify(journal.path, kinds.JOURNAL)
    assert inspect.describe(journal.path, kinds.JOURNAL)[product.name] == 4
    with open(journal.path, "ab") as file:
        file.write(b"cut")
    assert "no whole record in the last 3 bytes" in inspect.verify(tmp_path, kind)[1].what


def test_kept_hits_know_their_dataset_and_events(tmp_path):
    store = write_hits(tmp_path, [1])
    store.check_made_for(tmp_path, "abc")
    with pytest.raises(InputError, match="made for a dataset with fingerprint abc, but data has def; run the stage"):
        store.check_made_for("data", "def")
    with pytest.raises(InputError, match="has no event 7"):
        store.of_event(7)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("offsets/edges", moved(0, 1), "offsets/edges must rise from 0"),
        ("offsets/edges", moved(-1, 1), "offsets/edges must rise from 0 to the 6 rows of sender"),
        ("event_id", moved(2, 1), "does not hold the events that index.h5 says"),
        ("receiver", lambda v: v[1:], "to the 5 rows of receiver"),
        ("score", lambda v: v.astype("f8"), "score is float64"),
        ("score", moved(1, 0.5), "event 2 fails its checksum"),
    ],
)
def test_lies_of_edges_are_named(tmp_path, name, change, message):
    assert write_edges(tmp_path, [1, 2, 3]).n_edges.tolist() == [1, 2, 3]
    lie(tmp_path / "edges-00000.h5", name, change)
    with pytest.raises(InputError, match=f"{message}.*; {edges.EDGES.advice}"):
        for i in range(3):
            edges.EdgeStore(tmp_path).read(i)


def test_a_changed_index_is_named(tmp_path):
    write(tmp_path, [1, 2, 3])
    lie(tmp_path / "index.h5", "row", moved(1, -1))
    with pytest.raises(InputError, match=r"index\.h5: fails its checksum"):
        CandidateStore(tmp_path)


def test_a_damaged_record_is_named_at_the_join(tmp_path):
    journal = Journal(tmp_path, "w")
    places = {event: commit(journal, random_candidates(event)) for event in (4, 5)}
    journal.close()
    assert committed(tmp_path) == places
    content = bytearray(journal.path.read_bytes())
    content[-1] ^= 1
    journal.path.write_bytes(content)
    with pytest.raises(InputError, match="the record of event 5 is damaged; run the inference again"):
        CANDIDATES.write_shard(tmp_path, "c.h5", [4, 5], places)
    assert committed(tmp_path).keys() == {4} and not (tmp_path / "c.h5").exists()


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="not a candidates folder, index.h5 is missing"):
        CandidateStore(tmp_path)
    Journal(tmp_path, "w").close()
    with pytest.raises(InputError, match="has not finished"):
        CandidateStore(tmp_path)
    (tmp_path / "index.h5").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="index.h5: not a readable HDF5 file"):
        CandidateStore(tmp_path)
    folder = tmp_path / "whole"
    store = write(folder, [1, 2, 3])
    (folder / "candidates-00000.h5").unlink()
    with pytest.raises(InputError, match=r"candidates-00000\.h5: missing"):
        store.read(0)


def test_edges_of_a_shard_are_joined_event_by_event(tmp_path, monkeypatch):
    """Memory is that of one event's edges, however many events a shard has."""
    monkeypatch.setattr(products, "BLOCK", 1 << 12)  # of the digest
    n_events, n_edges = 24, 40_000
    journal, rng, sources = Journal(tmp_path, "w"), np.random.default_rng(0), {}
    for event in range(n_events):
        ends = rng.integers(0, 9_000, (2, n_edges), dtype=np.int32)
        found = edges.Edges(event, *ends, rng.random(n_edges, dtype=np.float32))
        payload = edges.encode(found)
        sources[event] = journal.append(event, payload)
    journal.close()
    tracemalloc.start()
    edges.EDGES.write_shard(tmp_path, "edges-00000.h5", range(n_events), sources)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(payload), (peak, len(payload))


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_fault_of_the_machine_is_none_of_the_file(tmp_path, monkeypatch, code):
    (tmp_path / "index.h5").touch()

    def fails(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(h5py, "File", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        CANDIDATES.open_file(tmp_path / "index.h5")

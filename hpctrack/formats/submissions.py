"""Candidates as files that others read: TrackML's submission, ColliderML's, ACTS' proto-tracks, plain parquet.

Submissions have one track a hit, the exclusive reading. Proto-tracks and plain parquet have the candidates' lists,
which may overlap.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.atomic import publish, remove, temporary_name, write_text
from hpctrack.files.jsonlines import TIMINGS, read_lines
from hpctrack.files.outputs import check_folder, check_output, output
from hpctrack.formats.colliderml.schema import source_ids
from hpctrack.formats.trackml import write_submission
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.schema import ESTIMATE, Candidates, Event
from hpctrack.storage.store import Dataset

TIMED: dict[str, type | tuple[type, ...]] = {"event_id": int, "rank": int}
SECONDS = ("read_s", "model_s", "build_s")


@dataclass(frozen=True)
class Found:
    """A folder of candidates and the dataset that they were made from."""

    store: CandidateStore
    data: Dataset
    n_params: int | None = None  # parameters of the model, for ColliderML's task of small models

    def events(self, *columns: str) -> Iterator[tuple[Event, Candidates]]:
        """Every event that has candidates, with `columns`, in the order of the folder."""
        for i, row in enumerate(self.store.rows_in(self.data)):
            yield self.data.read(int(row), list(columns)), self.store.read(i)

    @property
    def source(self) -> str:
        """The kind of files that the dataset was converted from."""
        return source_of(self.data)


def source_of(data: Dataset) -> str:
    """The kind of files that a dataset was converted from: `trackml`, `colliderml`, `acts`, …"""
    return str(json.loads(str(data.attributes.get("origin", "{}"))).get("kind", "trackml"))


def load_pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`; InputError if they are not there."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"parquet needs pyarrow, which is not installed or does not load ({error}): pip install 'hpctrack[parquet]'"
        ) from error


def write_tables(path: Path, tables: Iterator[dict[str, Any]], types: Callable[[Any], dict[str, Any]]) -> None:
    """A parquet file of tables {column: values}, a row group each; `types(pyarrow)` says the columns' types."""
    pa, pq = load_pyarrow()
    schema = pa.schema(list(types(pa).items()))
    with output(path) as file, pq.ParquetWriter(file, schema) as writer:
        for columns in tables:
            writer.write_table(pa.table(columns, schema=schema))


# ------------------------------------------------------------------------------------------------ formats


def trackml(found: Found, out: Path) -> None:
    """CSV of event_id, hit_id, track_id: every hit; 0 is no track."""
    blocks = ((e.event_id, e.column("hits.hit_id"), c.track_ids) for e, c in found.events("hits.hit_id"))
    write_submission(out, blocks)


def colliderml(found: Found, out: Path) -> None:
    """Parquet of event_id, hit_id, track_id for tasks tracking and tracking_small, a row a hit that is on a track.

    The scorer takes all hits with one track_id for a track, so hits of none are left out. With `n_params` a column of
    it. If the dataset has truth, `majority_particle_id` of each track, which physics_eff_pt1 asks for.
    """
    truth = "truth.particle_id" in found.data.columns and "truth.particle_id" not in found.data.lacks

    def types(pa: Any) -> dict[str, Any]:
        own = {"event_id": pa.int64(), "hit_id": pa.int64(), "track_id": pa.int64()}
        own |= {"n_params": pa.int64()} if found.n_params is not None else {}
        return own | ({"majority_particle_id": pa.uint64()} if truth else {})

    def tables() -> Iterator[dict[str, Any]]:
        for event, candidates in found.events("hits.hit_id", *(["truth.particle_id"] if truth else [])):
            on = np.flatnonzero(candidates.track_ids > 0)
            track = candidates.track_ids[on].astype(np.int64)
            columns = {"event_id": np.full(len(on), event.event_id), "hit_id": event.column("hits.hit_id")[on]}
            columns["track_id"] = track
            if found.n_params is not None:
                columns["n_params"] = np.full(len(on), found.n_params)
            if truth:
                columns["majority_particle_id"] = majority_ids(
                    event.column("truth.particle_id")[on], track, found.source
                )
            yield {
                name: np.ascontiguousarray(v, v.dtype if v.dtype == np.uint64 else np.int64)
                for name, v in columns.items()
            }

    write_tables(out, tables(), types)


def majority_ids(particle_id: np.ndarray, track: np.ndarray, source: str) -> np.ndarray:
    """Of each hit on a track, the particle with most of the track's hits, uint64, as its files name it; [n]."""
    pairs, of_hit, counts = np.unique(np.stack([track, particle_id]), axis=1, return_inverse=True, return_counts=True)
    best = np.lexsort((-counts, pairs[0]))
    tracks, first = np.unique(pairs[0][best], return_index=True)
    chosen = pairs[1][best[first]][np.searchsorted(tracks, track)]
    return source_ids(chosen) if source == "colliderml" else chosen.view(np.uint64)


def colliderml_latency(found: Found, out: Path) -> None:
    """Parquet of one row, wallclock_s and n_events, for task tracking_latency: the slowest rank's sum of seconds."""
    path = found.store.folder / TIMINGS
    if not path.is_file():
        raise InputError(f"{path}: missing; candidates of `hpctrack infer` have the seconds of each event there")
    seconds = dict.fromkeys(SECONDS, (int, float))
    last = {line["event_id"]: line for line in read_lines(path, "no timing of an event", TIMED | seconds)}
    ranks: dict[int, float] = {}
    for line in last.values():
        ranks[line["rank"]] = ranks.get(line["rank"], 0.0) + sum(line[name] for name in SECONDS)
    row = {"wallclock_s": [max(ranks.values(), default=0.0)], "n_events": [len(last)]}
    write_tables(out, iter([row]), lambda pa: {"wallclock_s": pa.float64(), "n_events": pa.int64()})


def acts(found: Found, out: Path) -> None:
    """A new folder of event%09d-prototracks.csv: trackId, measurementId, x, y, z, as ACTS' CsvProtoTrackWriter.

    A measurement's index is its hit_id in a dataset of ACTS' files, else the row of the hit, from 0.
    """
    columns = ("hits.hit_id", "hits.x", "hits.y", "hits.z")
    temporary = temporary_name(out)
    try:
        temporary.mkdir(parents=True)
        for event, candidates in found.events(*columns):
            track = np.repeat(np.arange(len(candidates)), np.diff(candidates.hit_offsets))
            rows = candidates.hit_rows
            index = event.column("hits.hit_id")[rows] if found.source == "acts" else rows
            place = (event.column(name)[rows].astype(np.float64).tolist() for name in columns[1:])
            lines = (f"{t},{i},{x:.9g},{y:.9g},{z:.9g}\n" for t, i, x, y, z in zip(track, index, *place, strict=True))
            text = "trackId,measurementId,x,y,z\n" + "".join(lines)
            write_text(temporary / f"event{event.event_id:09d}-prototracks.csv", text)
        publish(temporary, out)
    finally:
        remove(temporary)


def parquet(found: Found, out: Path) -> None:
    """Parquet for pandas and polars, a row a candidate: event_id, candidate, score, hit_ids, and track parameters."""
    with_parameters = any(found.store.read(i).parameters is not None for i in range(min(1, len(found.store))))

    def types(pa: Any) -> dict[str, Any]:
        own = {"event_id": pa.int64(), "candidate": pa.int32(), "score": pa.float32(), "hit_ids": pa.list_(pa.int64())}
        return own | (dict.fromkeys(ESTIMATE, pa.float32()) if with_parameters else {})

    def tables() -> Iterator[dict[str, Any]]:
        pa, _ = load_pyarrow()
        for event, candidates in found.events("hits.hit_id"):
            n = len(candidates)
            hit_ids = event.column("hits.hit_id")[candidates.hit_rows].astype(np.int64)
            columns: dict[str, Any] = {
                "event_id": np.full(n, event.event_id),
                "candidate": np.arange(n, dtype=np.int32),
            }
            columns["score"] = candidates.scores
            columns["hit_ids"] = pa.ListArray.from_arrays(
                pa.array(candidates.hit_offsets, pa.int32()), pa.array(hit_ids)
            )
            if with_parameters and candidates.parameters is not None:
                columns |= dict(zip(ESTIMATE, np.ascontiguousarray(candidates.parameters.T), strict=True))
            yield columns

    write_tables(out, tables(), types)


WRITERS: dict[str, Callable[[Found, Path], None]] = {
    "trackml": trackml,
    "colliderml": colliderml,
    "colliderml-latency": colliderml_latency,
    "acts": acts,
    "parquet": parquet,
}


def check_place(name: str, out: Path) -> None:
    """InputError if the format `name` cannot be written to `out`: its folder is missing, or something stands there."""
    if name != "acts":
        check_output(out)
        return
    check_folder(out.absolute().parent)
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists; name a new folder")

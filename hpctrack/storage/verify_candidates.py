"""Check candidates from end to end: digests, offsets, rows, and, beside their dataset, that they are of its events."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.storage import hdf5, journals, store
from hpctrack.storage.candidates import CANDIDATES, COLUMNS, PARAMETERS, CandidateStore
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.products import Product, content_digest
from hpctrack.storage.schema import ESTIMATE, Candidates
from hpctrack.storage.verify import Notes, Problem, Progress, check_offsets, complete, reason, run_checks

OFFSETS = ("offsets/candidates", "offsets/candidate_hits", "offsets/hits")


def check_candidates(
    folder: Path, data: Path | None = None, jobs: int = 1, progress: Progress | None = None
) -> list[Problem]:
    """Every problem of the candidates in `folder`, alone or against the dataset they were made from."""
    index, notes = folder / INDEX, Notes(folder / INDEX)
    try:
        if not index.exists():
            raise InputError("missing; inference has not finished, run it again")
        with hdf5.damage(index):
            found = CandidateStore(folder)
            _check_index(found, notes)
    except (InputError, OSError) as error:
        notes.add(reason(error, index))
        found = None
    hits = None
    if data is not None:
        dataset = store.open_dataset(data)
        hits = dict(zip(dataset.event_ids.tolist(), dataset.n_hits.tolist(), strict=True))
        if found is not None:
            _check_against(found, dataset, notes)
    problems = notes.problems
    named = found.shards if found is not None else []
    present = sorted(path.name for path in folder.glob("candidates-*.h5"))
    paths = [folder / name for name in dict.fromkeys([*named, *present])]
    check = functools.partial(check_candidates_file, hits=hits)
    results = dict(run_checks(check, [path for path in paths if path.is_file()], jobs, progress))
    for number, path in enumerate(paths):
        result = results.get(path, f"missing, but {INDEX} names it")
        if isinstance(result, str):
            problems.append(Problem(str(path), result))
            continue
        problems += result[0]
        if found is not None and number >= len(named):
            problems.append(Problem(str(path), f"is not named by {INDEX}"))
        elif found is not None:
            problems += _compare(path, found, number, *result[1:])
    for journal in sorted((folder / journals.PARTS).glob("*.journal")):
        problems += check_journal(journal, hits)
    return problems


def _check_index(found: CandidateStore, notes: Notes) -> None:
    n = len(found.event_ids)
    for name, values in (("shard", found.shard), ("row", found.row)):
        if values.shape != (n,):
            notes.add(f"has shape {values.shape}, must be ({n},)", column=name)
            return
    twice = np.flatnonzero(np.bincount(np.unique(found.event_ids, return_inverse=True)[1]) > 1)
    if len(twice):
        notes.add("stands twice", np.unique(found.event_ids)[twice[0]], "event_id")
    for place in np.flatnonzero((found.shard < 0) | (found.shard >= len(found.shards)))[:1]:
        notes.add(
            f"is {found.shard[place]}, must be from 0 to {len(found.shards) - 1}", found.event_ids[place], "shard"
        )
    if len(found.digests) != len(found.shards):
        notes.add(f"holds {len(found.digests)} digests of {len(found.shards)} files", column="digests")


def _check_against(found: CandidateStore, dataset: store.Dataset, notes: Notes) -> None:
    made_from = found.attributes.get("dataset_fingerprint")
    if made_from != dataset.fingerprint:
        notes.add(f"made from a dataset with fingerprint {made_from}, but {dataset.folder} has {dataset.fingerprint}")
    for event in np.setdiff1d(dataset.event_ids, found.event_ids)[:3]:
        notes.add(f"has no candidates, but stands in {dataset.folder}", event)
    for event in np.setdiff1d(found.event_ids, dataset.event_ids)[:3]:
        notes.add(f"has candidates, but is not in {dataset.folder}", event)


def _compare(path: Path, found: CandidateStore, number: int, ids: Any, digest: str | None) -> list[Problem]:
    notes = Notes(path)
    if digest is not None and number < len(found.digests) and digest != found.digests[number]:
        notes.add(f"has the digest {digest}, but {INDEX} says {found.digests[number]}")
    mine = np.flatnonzero(found.shard == number)
    if ids is None:
        return notes.problems
    if len(mine) != len(ids):
        notes.add(f"holds {len(ids)} events, but {INDEX} says {len(mine)}")
    for place in mine:
        row, event = int(found.row[place]), found.event_ids[place]
        if not 0 <= row < len(ids) or ids[row] != event:
            notes.add(f"is not in row {row}, where {INDEX} says", event)
    return notes.problems


def check_candidates_file(
    path: Path, hits: dict[int, int] | None = None
) -> tuple[list[Problem], np.ndarray | None, str | None]:
    """(problems, event ids, content digest) of one candidates file; `hits`: the dataset's hits of each event."""
    notes = Notes(path)
    ids = digest = None
    try:
        with hdf5.damage(path), CANDIDATES.open_file(path) as file:
            ids = _check_open_file(file, notes, hits)
            digest = content_digest(file, CANDIDATES.advice)
            if digest != file.attrs.get("digest"):
                notes.add(f"fails its digest ({digest}, but it says {file.attrs.get('digest')})")
    except (InputError, OSError) as error:
        notes.add(reason(error, path))
    return notes.problems, ids, digest


def _check_open_file(file: Any, notes: Notes, hits: dict[int, int] | None) -> np.ndarray | None:
    ids = notes.array(file, "event_id", np.int64)
    n = None if ids is None else len(ids)
    columns = complete({name: notes.dataset(file, name, dtype) for name, dtype in COLUMNS.items()})
    parameters = file.get("parameters")
    bounds = complete({name: notes.array(file, name, np.int64, None if n is None else n + 1) for name in OFFSETS})
    if ids is None or columns is None or bounds is None:
        return ids
    if len(np.unique(ids)) != len(ids):
        notes.add("holds an event id twice", column="event_id")
    extent = {"scores": 0, "hit_rows": 1, "track_ids": 2}
    totals = {OFFSETS[k]: len(columns[name]) for name, k in extent.items()}
    faults = [(name, what) for name in OFFSETS for what in check_offsets(bounds[name], totals[name])]
    if not faults and len(columns["hit_offsets"]) != totals["offsets/candidates"] + len(ids):
        faults = [("hit_offsets", f"holds {len(columns['hit_offsets'])} values, must hold one more than candidates")]
    if parameters is not None and parameters.shape != (len(columns["scores"]), *PARAMETERS.shape):
        faults.append(("parameters", f"has shape {parameters.shape}, must have a row of {len(ESTIMATE)} a candidate"))
    for name, what in faults:
        notes.add(what, column=name)
    for row, event in enumerate([] if faults else ids):
        (first, last), (lo, hi), (begin, end) = (bounds[name][row : row + 2] for name in OFFSETS)
        with hdf5.damage(notes.path):
            one = Candidates(
                int(event),
                columns["hit_offsets"][first + row : last + row + 1],
                columns["hit_rows"][lo:hi],
                columns["scores"][first:last],
                columns["track_ids"][begin:end],
                parameters=parameters[first:last] if parameters is not None else None,
            )
        check_event(one, notes, hits)
    return ids


def check_event(event: Candidates, notes: Notes, hits: dict[int, int] | None) -> None:
    """Take down what is wrong with one event's candidates; `hits` says how many hits it must have."""
    n_hits, rows = len(event.track_ids), event.hit_rows
    if hits is not None and hits.get(event.event_id, n_hits) != n_hits:
        notes.add(f"holds {n_hits} hits, but the dataset has {hits[event.event_id]}", event.event_id, "track_ids")
    for what in check_offsets(event.hit_offsets, len(rows)):
        notes.add(what, event.event_id, "hit_offsets")
        return
    outside = np.flatnonzero((rows < 0) | (rows >= n_hits))
    if len(outside):
        notes.add(f"holds the row {rows[outside[0]]}, but there are {n_hits} hits", event.event_id, "hit_rows")
    owner = np.repeat(np.arange(len(event)), np.diff(event.hit_offsets))
    back = np.flatnonzero((rows[1:] <= rows[:-1]) & (owner[1:] == owner[:-1]))
    if len(back):
        notes.add(f"candidate {owner[back[0]]} has its rows not ascending", event.event_id, "hit_rows")
    if not np.isfinite(event.scores).all():
        notes.add("must be finite numbers", event.event_id, "scores")
    if event.parameters is not None:
        known = event.parameters[~np.isnan(event.parameters).all(axis=1)]  # a row of NaN: not estimated
        if not np.isfinite(known).all():
            notes.add("must be finite numbers, or NaN in a whole row", event.event_id, "parameters")
    if (event.track_ids < 0).any():
        notes.add(f"holds {event.track_ids.min()}, must not be negative", event.event_id, "track_ids")


def check_journal(path: Path, hits: dict[int, int] | None = None, product: Product = CANDIDATES) -> list[Problem]:
    """Problems of an unfinished inference's journal: what follows the last whole record, and what the records hold."""
    notes, end = Notes(path), 0
    for event_id, offset, payload in journals.records(path):
        end = offset + len(payload)
        try:
            with hdf5.damage(path):
                event = product.decode(event_id, payload)
        except InputError as error:
            notes.add(reason(error, path), event_id)
            continue
        if isinstance(event, Candidates):
            check_event(event, notes, hits)
    if (left := path.stat().st_size - end) > 0:
        notes.add(f"no whole record in the last {left} bytes, from byte {end}; run the inference again to redo them")
    return notes.problems

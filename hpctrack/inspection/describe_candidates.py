"""What a candidates folder, file or journal holds, and what a folder of edges or kept hits does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.inspection.text import histogram
from hpctrack.storage import hdf5, journals
from hpctrack.storage.candidates import CANDIDATES, COLUMNS, CandidateStore, decode
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.products import VERSION, Product
from hpctrack.storage.verify import Problem, reason
from hpctrack.storage.verify_candidates import check_journal

NEXT = {"next": "run the same `hpctrack infer` again: it does what is left and joins the files"}  # of unfinished ones


def describe_candidates(folder: Path) -> dict[str, Any]:
    """A finished candidates folder: totals, settings, histograms, digest."""
    with hdf5.damage(folder / INDEX):
        found = CandidateStore(folder)
    per_event, sizes, n_hits, columns = _sizes([folder / name for name in found.shards])
    return {
        "format": f"{CANDIDATES.format} {VERSION}",
        "events": len(found),
        **_totals(per_event, sizes, n_hits),
        "files": len(found.shards),
        "bytes": sum((folder / name).stat().st_size for name in found.shards),
        "digest": found.digest,
        "made_with": found.attributes,
        "columns": columns,
        "histograms": _histograms(per_event, sizes),
    }


def describe_file(path: Path) -> dict[str, Any]:
    """One candidates file."""
    per_event, sizes, n_hits, columns = _sizes([path])
    with CANDIDATES.open_file(path) as file, hdf5.damage(path):
        digest = str(file.attrs["digest"])
    return {
        "format": f"{CANDIDATES.format} {VERSION}",
        "events": len(per_event),
        **_totals(per_event, sizes, n_hits),
        "bytes": path.stat().st_size,
        "digest": digest,
        "columns": columns,
        "histograms": _histograms(per_event, sizes),
    }


def describe_journals(paths: list[Path], settings: Path | None = None) -> dict[str, Any]:
    """The journals of an inference that has not finished."""
    states, per_event, sizes, n_hits = {}, [], [], 0
    for path in paths:
        end = count = 0
        for event_id, offset, payload in journals.records(path):
            with hdf5.damage(path):
                event = decode(event_id, payload)
            end, count = offset + len(payload), count + 1
            per_event.append(len(event))
            sizes.append(np.diff(event.hit_offsets))
            n_hits += len(event.track_ids)
        states[path.name] = _state(count, path.stat().st_size - end)
    all_sizes, counts = np.concatenate([np.zeros(0, np.int64), *sizes]), np.array(per_event, dtype=np.int64)
    out = {"events": len(counts), **_totals(counts, all_sizes, n_hits)}
    if settings and settings.is_file():
        with hdf5.damage(settings):
            out["made_with"] = json.loads(settings.read_text())
    return out | {"journals": states, "histograms": _histograms(counts, all_sizes)}


def _state(events: int, left: int) -> dict[str, str]:
    return {"state": f"{events} events" + (f", then {left} bytes of no whole record" if left else "")}


def describe_unfinished(folder: Path) -> dict[str, Any]:
    """A candidates folder without an index."""
    parts = folder / journals.PARTS
    return NEXT | describe_journals(sorted(parts.glob("*.journal")), parts / journals.SETTINGS)


def _sizes(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, int, dict[str, dict[str, Any]]]:
    """(candidates of each event, hits of each candidate, hits of the events, types and bytes of columns) of files."""
    per_event, sizes, n_hits = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    columns = {name: {"dtype": dtype.name, "bytes": 0} for name, dtype in COLUMNS.items()}
    for path in paths:
        with CANDIDATES.open_file(path) as file, hdf5.damage(path):
            offsets = hdf5.small_array(file, "offsets/candidates")
            per_event.append(np.diff(offsets))
            steps = np.diff(hdf5.small_array(file, "hit_offsets"))
            between = offsets[1:-1] + np.arange(len(offsets) - 2)  # from one event's end to the next one's beginning
            sizes.append(np.delete(steps, between))
            n_hits += int(file["offsets/hits"][-1])
            for name in [*COLUMNS, "parameters"]:
                if name in file:
                    column = columns.setdefault(name, {"dtype": file[name].dtype.name, "bytes": 0})
                    column["bytes"] += file[name].nbytes
    return np.concatenate(per_event), np.concatenate(sizes), n_hits, columns


def _totals(per_event: np.ndarray, sizes: np.ndarray, n_hits: int) -> dict[str, int]:
    return {"hits": n_hits, "candidates": int(per_event.sum()), "hits_in_candidates": int(sizes.sum())}


def _histograms(per_event: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    return {"candidates per event": histogram(per_event), "hits per candidate": histogram(sizes)}


# ------------------------------------------------------------------------------------ what a stage makes for others


def describe_product(product: Product, folder: Path) -> dict[str, Any]:
    """Totals, settings and digest of a folder of edges, or of kept hits."""
    found = product.open(folder)
    return {
        "format": f"{product.format} {VERSION}",
        "events": len(found),
        product.name: int(found.counts[product.count_name].sum()),
        "files": len(found.shards),
        "bytes": sum((folder / name).stat().st_size for name in found.shards),
        "digest": found.digest,
        "made_with": found.attributes,
    }


def check_product(product: Product, folder: Path) -> list[Problem]:
    """Problems of such a folder: files and events that cannot be read or fail their checksums."""
    try:
        found = product.open(folder)
    except InputError as error:
        return [Problem(str(folder), reason(error, folder / INDEX))]
    problems = []
    for i, event_id in enumerate(found.event_ids):
        try:
            found.read(i)
        except InputError as error:
            path = folder / found.shards[found.shard[i]]
            problems.append(Problem(str(path), reason(error, path), event=int(event_id)))
    return problems


def describe_begun(product: Product, folder: Path) -> dict[str, Any]:
    """The journals of an inference of them that has not finished."""
    settings = folder / journals.PARTS / journals.SETTINGS
    with hdf5.damage(settings, product.advice):
        made_with = json.loads(settings.read_text())
    return NEXT | {"made_with": made_with} | _begun(product, sorted((folder / journals.PARTS).glob("*.journal")))


def describe_journal(product: Product, path: Path) -> dict[str, Any]:
    """One journal of any kind."""
    return describe_journals([path]) if product is CANDIDATES else _begun(product, [path])


def _begun(product: Product, paths: list[Path]) -> dict[str, Any]:
    states, events, rows = {}, 0, 0
    for path in paths:
        end = count = 0
        for event_id, offset, payload in journals.records(path):
            with hdf5.damage(path, product.advice):
                rows += len(product.decode(event_id, payload))
            end, count = offset + len(payload), count + 1
        states[path.name] = _state(count, path.stat().st_size - end)
        events += count
    return {"events": events, product.name: rows, "journals": states}


def check_begun(product: Product, folder: Path) -> list[Problem]:
    """Problems of such journals, the first that they are not all."""
    problems = [Problem(str(folder / INDEX), "missing; inference has not finished, run it again")]
    for journal in sorted((folder / journals.PARTS).glob("*.journal")):
        problems += check_journal(journal, product=product)
    return problems

"""What a dataset, a shard or an index holds; of a dataset only the index is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.formats.conversion import cut_down, left_out_of
from hpctrack.inspection.text import histogram
from hpctrack.storage import hdf5, schema, store
from hpctrack.storage.columns import TYPES, axis_of, combined_digest
from hpctrack.storage.detector import TRACKML, Detector
from hpctrack.storage.hdf5 import ATTRIBUTES_DIGEST, INDEX, SHARDS, TEXTS, read_attributes


def describe_dataset(folder: Path) -> dict[str, Any]:
    """A dataset folder (or its index): totals, columns, histograms, digest; InputError if the index is no whole one."""
    dataset = store.open_dataset(folder)
    with hdf5.damage(folder / INDEX):
        attributes, origin = dataset.attributes, _origin(dataset.attributes)
    rows = {"hits": int(dataset.n_hits.sum()), "particles": int(dataset.n_particles.sum())}
    sizes = [path.stat().st_size for path in (folder / name for name in dataset.shards)]
    return {
        "format": f"{attributes['format']} {attributes['version']}",
        "writer": f"hpctrack {attributes.get('writer')}",
        "attributes": _covered(attributes),
        **_totals(dataset.n_hits, dataset.n_noise, dataset.n_particles),
        "field_t": dataset.field_t,
        "field": "as the source says" if dataset.field_is_known else "assumed, TrackML's: the source does not say",
        "detector": _detector(dataset.detector),
        "lacks": _lacks(dataset),
        "shards": len(dataset.shards),
        "bytes": sum(sizes),
        "digest": combined_digest(dataset.event_ids, dataset.checksums),
        "fingerprint": dataset.fingerprint,
        "event_ids": _range(dataset.event_ids),
        **origin,
        **({"cut_down": cut} if (cut := cut_down(dataset)) else {}),
        "left_out": [f"event {entry['event_id']}: {entry['reason']}" for entry in left_out_of(dataset)],
        "columns": _schema_columns(dataset.columns, rows),
        "histograms": _histograms(dataset.n_hits, dataset.n_particles),
    }


def _detector(found: Detector) -> str:
    if found is TRACKML:
        return "TrackML's"
    if not found.is_known:
        return "not known: `hpctrack convert --detectors` names its file"
    names = {"barrels": found.barrels, "endcaps at z < 0": found.below, "endcaps at z > 0": found.above}
    places = [f"{name}: volumes {', '.join(map(str, of))}" for name, of in names.items() if of]
    return "; ".join([*places, *(f"{part}: volumes {', '.join(map(str, of))}" for part, of in found.parts.items())])


def describe_shard(path: Path) -> dict[str, Any]:
    """One shard: totals, its columns as they are stored, histograms, digest."""
    with hdf5.open_h5(path, "shard") as file, hdf5.damage(path):
        attributes = read_attributes(file)
        ids, checksums, n_noise = (hdf5.small_array(file, name) for name in ("event_id", "checksum", "n_noise"))
        n_hits, n_particles = (np.diff(hdf5.small_array(file, f"offsets/{axis}")) for axis in ("hits", "particles"))
        columns = {}
        for table in file:
            if hasattr(file[table], "items") and table not in ("offsets", "checksums", TEXTS):
                for name, found in file[table].items():
                    if not hasattr(found, "chunks"):
                        raise ValueError(f"{table}/{name} is no dataset")
                    columns[f"{table}.{name}"] = _stored(found)
    return {
        "format": f"{attributes['format']} {attributes['version']}",
        "writer": f"hpctrack {attributes.get('writer')}",
        "attributes": _covered(attributes),
        **_totals(n_hits, n_noise, n_particles),
        "bytes": path.stat().st_size,
        "digest": combined_digest(ids, checksums),
        "event_ids": _range(ids),
        "columns": columns,
        "histograms": _histograms(n_hits, n_particles),
    }


def describe_unfinished(folder: Path) -> dict[str, Any]:
    """A folder of shards without an index: which shards are whole."""
    shards: dict[str, dict[str, object]] = {}
    for path in sorted(folder.glob(SHARDS)):
        found = store.shard_attributes(path)
        shards[path.name] = {"state": f"{found['n_events']} events" if found else "not a whole shard"}
    return {
        "next": "run the same `hpctrack convert` again: it keeps whole shards and writes the index",
        "shards": shards,
    }


def _covered(attributes: dict[str, Any]) -> str:
    return "fit their checksum" if ATTRIBUTES_DIGEST in attributes else "have no checksum: written before there was one"


def _totals(n_hits: np.ndarray, n_noise: np.ndarray, n_particles: np.ndarray) -> dict[str, int]:
    values = {"events": len(n_hits), "hits": n_hits.sum(), "noise": n_noise.sum(), "particles": n_particles.sum()}
    return {key: int(value) for key, value in values.items()}


def _histograms(n_hits: np.ndarray, n_particles: np.ndarray) -> dict[str, Any]:
    return {"hits per event": histogram(n_hits), "particles per event": histogram(n_particles)}


def _range(ids: np.ndarray) -> str:
    return f"{ids.min()} to {ids.max()}" if len(ids) else "none"


def _lacks(dataset: store.Dataset) -> str:
    """What the events have not, if the index says it."""
    if not dataset.says_what_it_lacks:
        return "not said (written before datasets said it); the events are asked where something is needed"
    return ", ".join(schema.parts_of(dataset.lacks)) or "nothing"


def _schema_columns(names: Sequence[str], rows: dict[str, int]) -> dict[str, dict[str, object]]:
    return {name: {"dtype": TYPES[name].name, "bytes": rows[axis_of(name)] * TYPES[name].itemsize} for name in names}


def _stored(found: Any) -> dict[str, object]:
    layout = f"chunks of {found.chunks[0]}" if found.chunks else "contiguous"
    how = f"{layout}, {found.compression}" if found.compression else layout
    return {"dtype": found.dtype.name, "bytes": int(found.id.get_storage_size()), "layout": how}


def _origin(attributes: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {key: int(attributes[key]) for key in ("n_source", "n_skipped") if key in attributes}
    if "origin" in attributes:
        out["origin"] = json.loads(str(attributes["origin"]))
    return out

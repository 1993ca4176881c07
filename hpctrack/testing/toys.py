"""Small events, datasets and runs to test with: straight tracks in six layers, and random batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from hpctrack.config import RunConfig, parse
from hpctrack.graphs.triplets import triplets
from hpctrack.storage import schema
from hpctrack.storage.shard_writer import ShardWriter, write_index

RADII = np.array([30.0, 70.0, 120.0, 170.0, 260.0, 360.0])  # mm
FEATURES = ["r", "cos_phi", "sin_phi", "z"]


def toy_event(
    event_id: int, n_tracks: int = 6, n_noise: int = 3, seed: int = 0, lacks: Collection[str] = ()
) -> schema.Event:
    """Straight tracks from the origin through six layers, and noise; hits in random order.

    Without the columns `lacks`, as if nobody had measured them (storage/schema.py has what goes together).
    """
    rng = np.random.default_rng([seed, event_id])
    phi, eta = rng.uniform(-np.pi, np.pi, n_tracks), rng.uniform(-1, 1, n_tracks)
    pt = rng.uniform(1.0, 3.0, n_tracks)
    row = np.append(np.repeat(np.arange(n_tracks), len(RADII)), np.full(n_noise, -1)).astype(np.int32)
    r = np.append(np.tile(RADII, n_tracks), rng.choice(RADII, n_noise))
    hit_phi = np.append(np.repeat(phi, len(RADII)), rng.uniform(-np.pi, np.pi, n_noise))
    hit_eta = np.append(np.repeat(eta, len(RADII)), rng.uniform(-1, 1, n_noise))
    order = rng.permutation(len(row))
    row, r, hit_phi, hit_eta = row[order], r[order], hit_phi[order], hit_eta[order]
    n = len(row)
    given: dict[str, dict[str, np.ndarray]] = {
        "hits": {
            "hit_id": np.arange(1, n + 1),
            "x": r * np.cos(hit_phi),
            "y": r * np.sin(hit_phi),
            "z": r * np.sinh(hit_eta),
            "volume_id": np.full(n, 8),
            "layer_id": 2 * (1 + np.searchsorted(RADII, r)),
            "module_id": np.ones(n),
            "r": r,
            "phi": hit_phi,
            "eta": hit_eta,
        },
        "truth": {
            "particle_id": np.where(row >= 0, 1000 + row, 0),
            "particle_row": row,
            "weight": (row >= 0) / max(1, (row >= 0).sum()),
        },
        "particles": {
            "particle_id": 1000 + np.arange(n_tracks),
            "px": pt * np.cos(phi),
            "py": pt * np.sin(phi),
            "pz": pt * np.sinh(eta),
            "q": np.ones(n_tracks),
            "nhits": np.full(n_tracks, len(RADII)),
        },
        "cells": {},
    }
    rows = {"hits": n, "truth": n, "cells": n, "particles": n_tracks}
    tables = {
        table: {
            name: np.asarray(given[table].get(name, np.zeros(rows[table]))).astype(dtype)
            for name, dtype in columns.items()
            if f"{table}.{name}" not in lacks
        }
        for table, columns in schema.TABLES.items()
    }
    return schema.Event(event_id, tables)


def toy_dataset(folder: Path, sizes: Sequence[int] = (4, 6, 5, 7, 3, 6), per_shard: int = 4, **event: Any) -> Path:
    """A dataset with one toy event of so many tracks for each entry of `sizes`."""
    folder.mkdir(parents=True)
    names = []
    for start in range(0, len(sizes), per_shard):
        names.append(f"events-{start // per_shard:05d}.h5")
        with ShardWriter(folder / names[-1]) as writer:
            for event_id in range(start, min(start + per_shard, len(sizes))):
                writer.add(toy_event(event_id, sizes[event_id], **event))
    write_index(folder, names)
    return folder


def toy_config(run: Path, data: Path, valid: Path | None = None, **sections: dict[str, Any]) -> RunConfig:
    """A tiny influencer run in float64; keyword arguments add to sections (`reading` to `data`)."""
    values: dict[str, Any] = {
        "run": str(run),
        "data": {
            "train": str(data),
            "valid": str(valid) if valid else None,
            "features": FEATURES,
            "augment": {"rotate": True, "mirror": True},
        },
        "model": {
            "name": "influencer",
            "embedding": 3,
            "backbone": {"name": "transformer", "width": 8, "layers": 1, "heads": 2},
        },
        "loss": {"name": "influencer", "compactness": 1.0},
        "builder": {"name": "radius", "radius": 0.4},
        "plan": {"events_per_step": 4},
        "optim": {"lr": 1e-2, "warmup_steps": 3},
        "train": {"steps": 6, "precision": "fp64", "log_every": 1, "checkpoint_every": 2, "valid_every": 3},
    }
    for name, section in sections.items():
        key = "data" if name == "reading" else name
        values[key] = values.get(key, {}) | section
    return parse(RunConfig, values, "toy")


def toy_batch(
    sizes: Sequence[int] = (4, 1, 3),
    n_noise: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    edges: int = 0,
) -> Batch:
    """A batch of events with so many tracks each (0: only noise), random features and hits in random order.

    `edges`: a graph with so many random edges per hit, some of them true; the last hits of an event have none.
    """
    rng = np.random.default_rng(seed)
    events = []
    for event_id, n_tracks in enumerate(sizes):
        track = np.concatenate([np.repeat(np.arange(n_tracks), rng.integers(1, 6, n_tracks)), np.full(n_noise, -1)])
        track = rng.permutation(track)
        events.append(toy_data(track, rng.normal(size=(len(track), len(FEATURES))), event_id, n_tracks, dtype))
        if edges:
            ends = np.random.default_rng([seed, event_id]).integers(0, max(1, len(track) - 2), (2, edges * len(track)))
            events[-1].edge_index = torch.from_numpy(ends)
            events[-1].edge_truth = torch.from_numpy((track[ends[0]] == track[ends[1]]) | (ends.sum(0) % 3 == 0))
    return Batch.from_data_list(events)


def toy_data(
    track: np.ndarray, x: np.ndarray, event_id: int, n_tracks: int, dtype: torch.dtype = torch.float64
) -> Data:
    """One in-memory event."""
    return Data(
        x=torch.tensor(x, dtype=dtype),
        track=torch.tensor(track, dtype=torch.long),
        n_tracks=torch.tensor([n_tracks]),
        hit_row=torch.arange(len(track)),
        event_id=torch.tensor([event_id]),
        parameters=torch.tensor(np.random.default_rng([7, event_id]).normal(size=(n_tracks, 5)), dtype=dtype),
        lines=torch.tensor(np.random.default_rng([8, event_id]).normal(size=(n_tracks, 4)), dtype=dtype),
        num_nodes=len(track),
    )


def gradient(x: torch.Tensor) -> torch.Tensor:
    """The gradient of a leaf after a backward pass that reached it."""
    assert x.grad is not None
    return x.grad


def rows_of(name: str, batch: Batch) -> torch.Tensor:
    """The event of each row of an output.

    A row stands for a hit, in `edge_…` for an edge, in `triplet_…` for two, in `event_…` for an event.
    """
    if name.startswith("event_"):
        return torch.arange(batch.num_graphs)
    if name.startswith("triplet_"):
        return batch.batch[batch.edge_index[0, triplets(batch.edge_index, batch.num_nodes)[0]]]
    return batch.batch[batch.edge_index[0]] if name.startswith("edge_") else batch.batch


def reordered(name: str, batch: Batch, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Which row of an output stands where, when the batch of one event has its hits and edges in another order."""
    if name.startswith("event_"):
        return torch.arange(batch.num_graphs)
    if not name.startswith("triplet_"):
        return edges if name.startswith("edge_") else hits
    then, now = (triplets(edge_2M, batch.num_nodes) for edge_2M in (batch.edge_index, batch.edge_index[:, edges]))
    then, now = (a * batch.num_edges + b for a, b in (then, edges[now]))
    return then.argsort()[torch.searchsorted(then.sort().values, now)]

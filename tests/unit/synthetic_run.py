"""A small dataset, candidates and a run folder made from helices, for the tests of evaluate and report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers import commit

from hpctrack.storage import journals, schema
from hpctrack.storage.candidates import CANDIDATES
from hpctrack.storage.schema import Candidates, Event
from hpctrack.storage.shard_writer import ShardWriter, write_index
from hpctrack.storage.store import Dataset

LAYERS_MM = (32, 72, 116, 172, 260, 360, 500, 660, 820, 1020)


def make_event(event_id: int, n_particles: int, noise: float = 0.15, seed: int = 0) -> Event:
    """Helices from the beam line in 2 T through ten cylinders; hits in random order."""
    rng = np.random.default_rng([seed, event_id])
    pt = 0.4 + rng.exponential(1.2, n_particles)
    eta, phi = rng.uniform(-2, 2, n_particles), rng.uniform(-np.pi, np.pi, n_particles)
    charge, z0 = rng.choice([-1, 1], n_particles), rng.normal(0, 5.5, n_particles)
    radius = pt / (0.299792458e-3 * 2.0)
    r = np.array(LAYERS_MM, dtype=float)
    bend = np.arcsin(np.minimum(r / (2 * radius[:, None]), 1))
    angle = phi[:, None] - charge[:, None] * bend
    z = z0[:, None] + 2 * radius[:, None] * bend * np.sinh(eta)[:, None]
    reached = (r < 2 * radius[:, None]) & (np.abs(z) < 1200)
    particle, layer = np.nonzero(reached)
    angle, z, r = angle[reached], z[reached], r[layer]
    n_noise = int(noise * len(particle))
    noise_layer = rng.integers(0, len(LAYERS_MM), n_noise)
    particle = np.concatenate([particle, np.full(n_noise, -1)])
    layer = np.concatenate([layer, noise_layer])
    angle = np.concatenate([angle, rng.uniform(-np.pi, np.pi, n_noise)])
    z = np.concatenate([z, rng.uniform(-1000, 1000, n_noise)])
    r = np.array(LAYERS_MM, dtype=float)[layer]
    order = rng.permutation(len(particle))
    particle, layer, angle, z, r = (a[order] for a in (particle, layer, angle, z, r))
    ids = 1000 + np.arange(n_particles)
    real = particle >= 0
    hits = {
        "hit_id": 1 + np.arange(len(particle)),
        **{"x": r * np.cos(angle), "y": r * np.sin(angle), "z": z, "r": r, "phi": angle, "eta": np.arcsinh(z / r)},
        **{"volume_id": np.full(len(r), 8), "layer_id": 2 * layer + 2, "module_id": np.ones(len(r))},
    }
    truth = {
        "particle_id": np.where(real, ids[particle] if n_particles else 0, 0),
        "particle_row": particle,
        "weight": np.where(real, 1 / max(real.sum(), 1), 0),
    }
    particles = {
        "particle_id": ids,
        **{"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "vz": z0, "q": charge},
        "nhits": np.bincount(particle[real], minlength=n_particles),
    }
    given = {"hits": hits, "truth": truth, "particles": particles, "cells": {}}
    length = {table: n_particles if table == "particles" else len(r) for table in schema.TABLES}
    return Event(
        event_id,
        {
            table: {c: np.asarray(given[table].get(c, np.zeros(length[table])), dtype) for c, dtype in columns.items()}
            for table, columns in schema.TABLES.items()
        },
    )


def truth_candidates(event: Event) -> Candidates:
    """One candidate a particle with hits, of all its hits; track ids the same."""
    row = event.column("truth.particle_row")
    lists = [np.flatnonzero(row == p) for p in np.unique(row[row >= 0])]
    return as_candidates(event.event_id, lists, row + 1)


def imperfect_candidates(event: Event, seed: int = 0) -> Candidates:
    """Truth with lost and foreign hits, some tracks missing, some twice, and a few random lists."""
    rng = np.random.default_rng([seed, event.event_id, 1])
    row = event.column("truth.particle_row")
    lists, ids = [], np.zeros(len(row), np.int32)
    for p in np.unique(row[row >= 0]):
        own = np.flatnonzero(row == p)
        if rng.random() < 0.06:
            continue
        kept = own[rng.random(len(own)) > 0.08]
        foreign = rng.choice(len(row), rng.poisson(0.4), replace=False)
        lists.append(np.union1d(kept, foreign))
        ids[lists[-1]] = len(lists)
        if rng.random() < 0.1:
            lists.append(kept[: max(3, len(kept) - 2)])
    for _ in range(max(1, len(lists) // 20)):
        lists.append(np.sort(rng.choice(len(row), min(5, len(row)), replace=False)))
    return as_candidates(event.event_id, lists, ids)


def as_candidates(event_id: int, lists: list[np.ndarray], track_ids: np.ndarray) -> Candidates:
    """Lists of hit rows as schema.Candidates."""
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    rows = np.concatenate([*lists, np.zeros(0)]).astype(np.int32)
    scores = np.linspace(1, 0.5, len(lists), dtype=np.float32)
    return Candidates(event_id, offsets, rows, scores, track_ids.astype(np.int32))


def write_dataset(folder: Path, events: list[Event]) -> Dataset:
    """A dataset of one shard."""
    folder.mkdir(parents=True)
    with ShardWriter(folder / "events-00000.h5") as shard:
        for event in events:
            shard.add(event)
    write_index(folder, ["events-00000.h5"] if events else [])
    return Dataset(folder)


def write_candidates(folder: Path, dataset: Dataset, found: list[Candidates], **attributes: object) -> Path:
    """A candidates folder of one file, with timings."""
    journal = journals.Journal(folder, "rank-0")
    for candidates in found:
        commit(journal, candidates)
    journal.close()
    ids = [candidates.event_id for candidates in found]
    name = "candidates-00000.h5"
    digest = CANDIDATES.write_shard(folder, name, ids, journals.committed(folder))
    attributes = {"dataset": str(dataset.folder), "dataset_fingerprint": dataset.fingerprint} | attributes
    CANDIDATES.write_index(folder, [(name, ids, digest)], attributes)
    with open(folder / "timings.jsonl", "w") as file:
        for k, candidates in enumerate(found):
            n = len(candidates.track_ids)
            steps = {"read_s": 0.002 + 1e-6 * n, "model_s": 2e-5 * n + 3e-9 * n * n, "build_s": 4e-6 * n}
            row = {"event_id": candidates.event_id, "n_hits": n, "n_candidates": len(candidates), **steps}
            file.write(json.dumps(row | {"rank": k % 2}) + "\n")
    return folder


def write_run(folder: Path, steps: int = 400, seed: int = 0) -> Path:
    """A run folder: config.yaml and metrics.jsonl of a falling loss."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\nmodel:\n  name: influencer\noptim:\n  lr: 0.001\n")
    rng = np.random.default_rng(seed)
    names = {"loss/attraction": 0.5, "loss/repulsion_ui": 0.3, "loss/repulsion_ii": 0.2}
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(10, steps + 1, 10):
            level = 0.05 + np.exp(-step / 80)
            terms = {name: share * level * rng.lognormal(0, 0.08) for name, share in names.items()}
            lr = 1e-3 * min(step / 50, 0.5 * (1 + np.cos(np.pi * step / steps)))
            row = {"kind": "train", "step": step, "epoch": step // 50, "loss": sum(terms.values()), **terms, "lr": lr}
            speed = {"grad_norm": 1.0, "events": 8, "hits": 8000, "hits_per_s": 9000 * rng.lognormal(0, 0.05)}
            row |= speed | {
                "step_s": 0.9,
                "data_s": 0.02,
                "peak_gib": 1.4,
                "gpu_busy": 0.75,
                "gpu_power_w": 250.0,
                "energy_j_per_event": 5.5,
            }
            file.write(json.dumps(row) + "\n")
            if step % 50 == 0:
                terms = {name: 1.1 * share * level for name, share in names.items()}
                row = {"kind": "valid", "step": step, "epoch": step // 50, "loss": sum(terms.values()), **terms}
                file.write(json.dumps(row) + "\n")
    return folder


def with_few_tables(path: Path, kinds: tuple[str, ...] = ("pt", "n_tracks")) -> None:
    """Keep two metrics' tables by these kinds in results: all have one shape, and a page draws every one."""
    results = json.loads(path.read_text())
    for reading in ("candidates", "exclusive"):
        binned = results[reading]["binned"]
        kept = {metric: {kind: binned[metric][kind] for kind in kinds} for metric in ("efficiency", "fake_rate")}
        results[reading]["binned"] = kept
    path.write_text(json.dumps(results))

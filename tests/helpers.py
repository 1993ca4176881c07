"""Small TrackML events and store events for tests."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hpctrack.storage import schema
from hpctrack.storage.candidates import encode
from hpctrack.storage.journals import Journal, Place

LAYERS = (2, 4, 6, 8)  # of volume 8, at r = 40, 80, 120, 160 mm; 16 modules each


def make_detectors_csv(folder: Path, name: str = "detectors.csv") -> Path:
    """Write the detector of `make_event_csv`: four barrel layers of 16 flat modules."""
    rows = []
    for layer in LAYERS:
        for module in range(1, 17):
            angle = 2 * np.pi * (module - 0.5) / 16
            c, s = np.cos(angle), np.sin(angle)
            center = [20 * layer * c, 20 * layer * s, 0.0]
            rotation = [-s, 0, c, c, 0, s, 0, 1, 0]
            rows.append([8, layer, module, *center, *rotation, 0.15, 8.4, 8.4, 36, 0.05, 0.05625])
    rot = [f"rot_{a}{b}" for a in "xyz" for b in "uvw"]
    columns = ["volume_id", "layer_id", "module_id", "cx", "cy", "cz", *rot]
    columns += ["module_t", "module_minhu", "module_maxhu", "module_hv", "pitch_u", "pitch_v"]
    return write_csv(folder / name, pd.DataFrame(rows, columns=columns))


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """Write a CSV as TrackML's, gzipped if the name ends in .gz."""
    data = frame.to_csv(index=False, lineterminator="\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def make_event_tables(n_particles: int = 5, n_noise: int = 4, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The four tables of an event: every particle is straight, from the origin, with a hit in each of the 4 layers."""
    rng = np.random.default_rng([seed, n_particles, n_noise])
    phi, eta = rng.uniform(-np.pi, np.pi, n_particles), rng.uniform(-1, 1, n_particles)
    pt, particle_id = rng.uniform(0.5, 3, n_particles), 2**60 + 1 + np.arange(n_particles)  # no float64 holds these
    hits = [(20 * layer, phi[p], eta[p], layer, p) for p in range(n_particles) for layer in LAYERS]
    hits += [
        (20 * layer, rng.uniform(-np.pi, np.pi), rng.uniform(-1, 1), layer, -1) for layer in rng.choice(LAYERS, n_noise)
    ]
    r, hit_phi, hit_eta, layer, owner = (
        np.array(column) for column in zip(*[hits[i] for i in rng.permutation(len(hits))], strict=True)
    )
    owner = owner.astype(int)
    x, y, z = np.round([r * np.cos(hit_phi), r * np.sin(hit_phi), r * np.sinh(hit_eta)], 4)
    hit_id, real = np.arange(1, len(r) + 1), owner >= 0
    module = np.minimum((hit_phi % (2 * np.pi)) / (2 * np.pi) * 16, 15).astype(int) + 1
    table = {
        "hit_id": hit_id,
        "x": x,
        "y": y,
        "z": z,
        "volume_id": 8,
        "layer_id": layer.astype(int),
        "module_id": module,
    }
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    at = np.where(real, np.round(p4[:, owner], 6), 1e6) if n_particles else np.full((3, len(r)), 1e6)
    truth = {"hit_id": hit_id, "particle_id": np.where(real, 2**60 + 1 + owner, 0), "tx": x, "ty": y, "tz": z}
    truth |= {"tpx": at[0], "tpy": at[1], "tpz": at[2], "weight": real / max(real.sum(), 1)}
    particles = {"particle_id": particle_id, "particle_type": rng.choice([211, -211], n_particles)}
    particles |= {"vx": np.zeros(n_particles), "vy": np.zeros(n_particles), "vz": np.zeros(n_particles)}
    particles |= dict(zip(("px", "py", "pz"), np.round(p4, 6), strict=True))
    particles |= {"q": rng.choice([1, -1], n_particles), "nhits": np.full(n_particles, len(LAYERS))}
    cells = np.repeat(hit_id, rng.integers(1, 4, len(r)))
    ch = rng.integers(0, 300, (2, len(r)))[:, cells - 1] + rng.integers(0, 3, (2, len(cells)))
    cells = {"hit_id": cells, "ch0": ch[0], "ch1": ch[1], "value": np.round(rng.uniform(0.01, 1, len(cells)), 6)}
    return {k: pd.DataFrame(v) for k, v in dict(hits=table, cells=cells, particles=particles, truth=truth).items()}


def write_event_csv(folder: Path, event_id: int, tables: dict[str, pd.DataFrame], suffix: str = ".csv") -> None:
    """Write an event's tables under TrackML's names."""
    for kind, frame in tables.items():
        write_csv(folder / f"event{event_id:09d}-{kind}{suffix}", frame)


def make_event_csv(folder: Path, event_id: int, n_particles: int = 5, n_noise: int = 4, suffix: str = ".csv") -> None:
    """Write a small event; its content follows from its id and sizes."""
    write_event_csv(folder, event_id, make_event_tables(n_particles, n_noise, seed=event_id), suffix)


def make_trackml(folder: Path, event_ids: range | list[int], suffix: str = ".csv", **sizes: int) -> Path:
    """A folder of small events with their detectors."""
    make_detectors_csv(folder)
    for event_id in event_ids:
        make_event_csv(folder, event_id, suffix=suffix, **sizes)
    return folder


def random_event(event_id: int, n_hits: int, n_particles: int, seed: int = 0) -> schema.Event:
    """A store event of random bits in every column (floats finite), a valid particle_row, and some noise."""
    rng = np.random.default_rng([seed, event_id, n_hits, n_particles])
    tables = {}
    for table, columns in schema.TABLES.items():
        rows = n_hits if table in schema.HIT_TABLES else n_particles
        tables[table] = {name: _random_column(rng, rows, np.dtype(dtype)) for name, dtype in columns.items()}
    row = rng.integers(-1, n_particles, n_hits).astype(np.int32)
    tables["truth"]["particle_row"] = row
    known = np.append(tables["particles"]["particle_id"], 0)
    tables["truth"]["particle_id"] = known[row].astype(np.int64)
    return schema.Event(event_id, tables)


def _random_column(rng: np.random.Generator, rows: int, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return rng.normal(0, 100, rows).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**62)), min(info.max, 2**62), rows, endpoint=True).astype(dtype)


def assert_same_event(a: schema.Event, b: schema.Event) -> None:
    """Every column equal, bit for bit."""
    assert a.event_id == b.event_id
    for name in schema.all_columns():
        left, right = a.column(name), b.column(name)
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), name


def commit(journal: Journal, candidates: schema.Candidates) -> Place:
    """Commit the candidates of an event; where their record stands."""
    return journal.append(candidates.event_id, encode(candidates))


def quietly(verb: Callable[[list[str]], int], argv: Sequence[object]) -> tuple[int, str]:
    """Exit code and standard error of a verb in this process, on this rank."""
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            code = verb([str(word) for word in argv])
        except SystemExit as end:  # of a rank that ends because another one has said why
            code = end.code
    return code, error.getvalue()

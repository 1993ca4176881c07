"""An event as large as ColliderML's largest: simulated events over each other, written as its parquet.

    python -m tests.campaigns.large_events data/valid overlay --events 3 --hits 342000

Of the noise so much is left out that HITS are left; the hits' order is random. OUT holds `…tracker_hits` and
`…particles`, which `hpctrack convert OUT …` reads. The dataset must be of TrackML's detector.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpctrack.formats.colliderml.schema import DETECTORS, NO_PARTICLE, PARTICLES, TRACKER_HITS, Table
from hpctrack.storage.detector import TRACKML
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

NAME = "overlay"
Columns = dict[str, np.ndarray]


def tables_of(event: Event, first_id: int) -> tuple[Columns, Columns]:
    """Hits and particles of one event; its particles are numbered from `first_id`."""
    row, names = event.column("truth.particle_row"), TRACKML.names()
    hits = {axis: event.column(f"hits.{axis}") for axis in "xyz"} | {"time": np.zeros(event.n_hits)}
    hits |= {f"true_{axis}": event.column(f"truth.t{axis}") for axis in "xyz"}
    hits["particle_id"] = np.where(row < 0, np.uint64(NO_PARTICLE), (row + first_id).astype(np.uint64))
    hits |= {name: event.column(f"hits.{name}") for name in ("volume_id", "layer_id")}
    hits["surface_id"] = event.column("hits.module_id")
    number = np.zeros(256, np.uint8)
    for volume, name in names.items():
        number[volume] = DETECTORS.index(name)
    hits["detector"] = number[hits["volume_id"]]
    n = event.n_particles
    particles = {name: np.zeros(n) for name in PARTICLES}
    particles |= {name: event.column(f"particles.{name}") for name in ("vx", "vy", "vz", "px", "py", "pz")}
    particles |= {"pdg_id": event.column("particles.particle_type"), "charge": event.column("particles.q")}
    particles |= {"particle_id": first_id + np.arange(n), "parent_id": np.full(n, -1), "primary": np.ones(n, bool)}
    return hits, particles


def write(folder: Path, columns: Columns, types: Table) -> None:
    """One event, as one row."""
    folder.mkdir(parents=True)
    lists = {
        name: pa.array([columns[name].astype(of)], pa.list_(pa.from_numpy_dtype(of))) for name, of in types.items()
    }
    pq.write_table(pa.table({"event_id": pa.array([0], pa.uint32())} | lists), folder / "train-00000-of-00001.parquet")


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--events", type=int, default=3)
    p.add_argument("--hits", type=int, default=342_000)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    data, rng, first_id, found = Dataset(args.data), np.random.default_rng(args.seed), 0, []
    for i in range(args.events):
        event = data.read(i)
        found.append(tables_of(event, first_id))
        first_id += event.n_particles
    hits, particles = ({name: np.concatenate([one[k][name] for one in found]) for name in found[0][k]} for k in (0, 1))
    noise = np.flatnonzero(hits["particle_id"] == NO_PARTICLE)
    out = rng.choice(noise, len(hits["x"]) - args.hits, replace=False)
    kept = rng.permutation(np.setdiff1d(np.arange(len(hits["x"])), out))
    write(args.out / f"{NAME}_tracker_hits", {name: values[kept] for name, values in hits.items()}, TRACKER_HITS)
    write(args.out / f"{NAME}_particles", particles, PARTICLES)
    print(f"{args.out}: {args.hits} hits, {first_id} particles")


if __name__ == "__main__":
    main()

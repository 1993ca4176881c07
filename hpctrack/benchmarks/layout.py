"""How columns are best laid out in HDF5: contiguous or in chunks, compressed or not, 4- or 8-byte floats, shard size.

Every layout holds the same simulated events; each is written and read by h5py alike, from the page cache.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.benchmarks.io import SOME
from hpctrack.benchmarks.measure import Figure, Page, command, ratio, simulate
from hpctrack.storage import hdf5, schema, shard_writer, store
from hpctrack.storage.columns import AXES

EVENT = 110_000  # hits, about
WHY = """
Why the store's columns are contiguous, uncompressed float32:

- An event is one slice of each column, so a contiguous column is one copy, of exactly the bytes that are needed.
  Chunks that are not compressed gain nothing (events do not end where chunks do) and cost twice the time; small
  ones more.
- The quickest compression (blosc or bitshuffle with lz4) saves 40 % of the size and reads 3 to 4 times slower; the
  best (zstd, gzip) saves half and reads 6 to 30 times slower. Hits are close to random bits in their low digits, so
  none saves more. A reader process that decompresses has no time to compute features; 40 % of the disk is cheaper.
  Compression also needs plugins on every machine. A dataset on a slow disk is better staged (`data.stage_to`) than
  compressed.
- float64 doubles size and time, and TrackML's coordinates have six digits: float32 holds them to 0.03 um at 1 m.
- The figures above are h5py's. The package's reader looks up where contiguous columns lie and copies them itself
  (`shards_of_..._read`), which it can do for contiguous columns only.
- Opening a shard takes some milliseconds a process; with 16 events a shard this is under the time of reading them
  all once, and 9,000 events are 563 files. Larger shards (`--events-per-shard`) read alike; conversion then has
  fewer units of work to share, and a rerun more to redo.
"""


@dataclass(frozen=True)
class Layout:
    """One way to write a column: keywords of h5py's create_dataset, and the type of floats."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None  # of a chunk
    floats: str = "<f4"

    def create(self, file: Any, name: str, rows: int, dtype: np.dtype) -> Any:
        """The dataset of a column."""
        dtype = np.dtype(self.floats) if dtype.kind == "f" else dtype
        chunks = {"chunks": (min(self.rows, rows),)} if self.rows and rows else {}
        return file.create_dataset(name, shape=(rows,), dtype=dtype, **chunks, **(self.options if chunks else {}))


def layouts() -> list[Layout]:
    """All that can be measured here; those of hdf5plugin only where it is installed."""
    found = [Layout("contiguous"), Layout("contiguous_f8", floats="<f8")]
    found += [Layout(f"chunks_{rows}", {}, rows) for rows in (4096, 32768, EVENT)]
    found += [
        Layout("lzf", {"compression": "lzf"}, EVENT),
        Layout("shuffle_lzf", {"compression": "lzf", "shuffle": True}, EVENT),
        Layout("gzip_1", {"compression": "gzip", "compression_opts": 1}, EVENT),
        Layout("shuffle_gzip_1", {"compression": "gzip", "compression_opts": 1, "shuffle": True}, EVENT),
        Layout("shuffle_gzip_4", {"compression": "gzip", "compression_opts": 4, "shuffle": True}, EVENT),
    ]
    if importlib.util.find_spec("hdf5plugin"):
        import hdf5plugin

        shuffled = hdf5plugin.Blosc.SHUFFLE
        found += [
            Layout("zstd_3", hdf5plugin.Zstd(clevel=3), EVENT),
            Layout("blosc_lz4", hdf5plugin.Blosc("lz4", 5, shuffled), EVENT),
            Layout("blosc_zstd_3", hdf5plugin.Blosc("zstd", 3, shuffled), EVENT),
            Layout("blosc_zstd_3_chunks_32768", hdf5plugin.Blosc("zstd", 3, shuffled), 32768),
            Layout("bitshuffle_lz4", hdf5plugin.Bitshuffle(), EVENT),
        ]
    else:
        print("zstd, blosc and bitshuffle are left out: pip install hdf5plugin", file=sys.stderr)
    return found


def run(quick: bool) -> Page:
    """Size, and seconds to read and to write an event, of every layout; shard sizes by the package's own reader."""
    repeats = 3 if quick else 7
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as name:
        folder = Path(name)
        csv = simulate(folder / "csv", simulated=2 if quick else 4, events=2 if quick else 4)
        dataset = convert(csv, folder / "data")
        events = [dataset.read(i) for i in range(len(dataset))] * (2 if quick else 4)
        figures = []
        tried = {layout.name: Written(folder / f"{layout.name}.h5", layout, events) for layout in layouts()}
        seconds: dict[str, dict[str, list[float]]] = {kind: {} for kind in ("some", "all")}
        for round_ in range(-1, repeats):
            for layout, written in tried.items():
                for kind, columns in (("some", SOME), ("all", schema.all_columns())):
                    spent = written.read(columns, np.random.default_rng(round_ + 1))
                    if round_ >= 0:
                        seconds[kind].setdefault(layout, []).append(1e3 * spent / len(events))
        for layout, written in tried.items():
            mib, plain = written.path.stat().st_size / len(events) / 2**20, tried["contiguous"]
            megabytes = plain.path.stat().st_size / 1e6
            some = seconds["some"][layout]
            figures += [
                Figure(f"{layout}_mib", [mib], "MiB", "an event, on disk"),
                Figure(f"{layout}_write", [megabytes / written.seconds], "MB/s", "of float32 data, on disk (synced)"),
                Figure(f"{layout}_read_8", some, "ms", "an event's 8 columns"),
                Figure(f"{layout}_read_all", seconds["all"][layout], "ms", "an event's 37 columns"),
                Figure(
                    f"{layout}_slower", ratio(some, seconds["some"]["contiguous"]), "x", "8 columns, against contiguous"
                ),
            ]
        figures += shard_sizes(events, folder, repeats)
        return Page(figures, table(figures, list(tried)))


def table(figures: list[Figure], names: list[str]) -> str:
    """The layouts as Markdown, a line each, medians."""
    median = {figure.name: float(np.median(figure.values)) for figure in figures}
    lines = ["| layout | MiB an event | write, MB/s | 8 columns, ms | all 37, ms | 8 columns, times contiguous |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in names:
        kinds = ("mib", "write", "read_8", "read_all", "slower")
        lines.append(f"| {name} | " + " | ".join(f"{median[f'{name}_{kind}']:.3g}" for kind in kinds) + " |")
    if not importlib.util.find_spec("hdf5plugin"):
        lines += ["", "zstd, blosc and bitshuffle were not measured: hdf5plugin is not installed."]
    return "\n".join(lines) + "\n" + WHY


def convert(csv: Path, out: Path) -> store.Dataset:
    """The dataset of the CSV files."""
    command([sys.executable, "-m", "hpctrack.convert", str(csv), str(out), "--jobs", "1"])
    return store.open_dataset(out)


class Written:
    """Events written in a layout."""

    def __init__(self, path: Path, layout: Layout, events: list[schema.Event]) -> None:
        self.path, begin = path, time.perf_counter()
        lengths = {axis: [len(e.column(name)) for e in events] for axis, name in ENDS.items()}
        self.offsets = {axis: np.append(0, np.cumsum(n)) for axis, n in lengths.items()}
        with hdf5.atomic_h5(path) as file:
            for table, columns in schema.TABLES.items():
                offsets = self.offsets[AXES[table]]
                for column, dtype in columns.items():
                    name = f"{table}/{column}"
                    dataset = layout.create(file, name, int(offsets[-1]), np.dtype(dtype))
                    dataset[:] = np.concatenate([event.tables[table][column] for event in events])
            file.attrs.update({"format": schema.FORMAT, "version": schema.VERSION, "kind": "shard"})
        self.seconds = time.perf_counter() - begin

    def read(self, columns: list[str], rng: np.random.Generator) -> float:
        """Seconds to read these columns of all events in shuffled order, with the file opened before."""
        with hdf5.open_h5(self.path, "shard") as file:
            datasets = {name: file[name.replace(".", "/")] for name in columns}
            axes = {name: self.offsets[AXES[name.split(".")[0]]] for name in columns}
            begin = time.perf_counter()
            for i in rng.permutation(len(self.offsets["hits"]) - 1):
                for name, dataset in datasets.items():
                    dataset[axes[name][i] : axes[name][i + 1]]
            return time.perf_counter() - begin


ENDS = {"hits": "hits.hit_id", "particles": "particles.particle_id"}  # a column of each axis


def shard_sizes(events: list[schema.Event], folder: Path, repeats: int) -> list[Figure]:
    """Shuffled reads of 8 columns by the package's reader, and its first reads, which open the shards."""
    figures = []
    for per_shard in (1, 4, 16):
        out, names = folder / f"per-{per_shard}", []
        out.mkdir()
        for number, start in enumerate(range(0, len(events), per_shard)):
            names.append(shard_writer.shard_name(number))
            with shard_writer.ShardWriter(out / names[-1]) as writer:
                for k in range(start, min(start + per_shard, len(events))):
                    writer.add(schema.Event(k, events[k].tables))
        shard_writer.write_index(out, names)
        first, later = list[float](), list[float]()
        for round_ in range(repeats):
            dataset = store.open_dataset(out)
            order = np.random.default_rng(round_).permutation(len(dataset))
            for spent in (first, later):
                begin = time.perf_counter()
                for i in order:
                    dataset.read(int(i), SOME)
                spent.append(1e3 * (time.perf_counter() - begin) / len(dataset))
        about = f"an event's 8 columns by the store, {per_shard} events a shard"
        figures += [
            Figure(f"shards_of_{per_shard}_first", first, "ms", f"{about}, opening included"),
            Figure(f"shards_of_{per_shard}_read", later, "ms", about),
        ]
    return figures

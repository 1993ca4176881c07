"""The store against one sequential read, against a torch file per event, and against CSV; and conversion's speed.

All read the same simulated events into torch tensors, from the page cache (`cold_…`: after it was told to forget them).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from hpctrack.benchmarks.measure import Figure, command, ratio, simulate, time_in_turn
from hpctrack.events.readers import pack, unpack
from hpctrack.files.reading import read_into
from hpctrack.storage import schema
from hpctrack.storage.store import Dataset, digest, open_dataset

SOME = ["hits.x", "hits.y", "hits.z", "hits.r", "hits.phi", "hits.eta", "cells.cell_charge", "cells.size_u"]
ALL = [
    *(f"hits.{name}" for name in schema.HITS),
    *(f"truth.{name}" for name in ("particle_id", "particle_row", "tpx", "tpy", "tpz", "weight")),
    *(f"cells.{name}" for name in schema.CELLS),
]  # 24
CSV = {  # 8 columns that the CSV files hold as they are
    "hits": ["x", "y", "z", "volume_id", "layer_id", "module_id"],
    "truth": ["particle_id", "weight"],
}
FROM_CSV = [f"{table}.{column}" for table, columns in CSV.items() for column in columns]
Tensors = dict[str, torch.Tensor]
PASSES = 4  # over all events in one timing, so that it is longer than the machine's hiccups


def run(quick: bool) -> list[Figure]:
    """Figures of reading and of conversion on events of about 110,000 hits."""
    repeats = 5 if quick else 15
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as folder:
        csv = simulate(Path(folder) / "csv", simulated=2 if quick else 6, events=8 if quick else 48)
        figures = conversion(csv, Path(folder), repeats=1 if quick else 3)
        bench = Readings(open_dataset(Path(folder) / "jobs-1"), csv, Path(folder))
        bench.warm()
        with bench.workers(1) as one, bench.workers(2) as two:
            figures = reading(bench, one, two, repeats) + cold(bench, max(repeats // 3, 2)) + figures
        return figures + loading(bench, repeats)


# ------------------------------------------------------------------------------------------------ what is read


class Readings:
    """The same events as a store, a raw file of the columns in SOME, torch files and CSV, and how each is read."""

    def __init__(self, dataset: Dataset, csv: Path, folder: Path) -> None:
        self.dataset, self.csv = dataset, csv
        self.raw, self.pt = folder / "columns.raw", folder / "pt"
        self.pt.mkdir()
        with open(self.raw, "wb") as raw:
            for i in range(len(dataset)):
                tensors = self.from_store(i, ALL)
                torch.save(Data(**{name.replace(".", "_"): value for name, value in tensors.items()}), self.pt_file(i))
                for name in SOME:
                    raw.write(tensors[name].numpy().data)
        self.bytes = self.raw.stat().st_size
        self.memory = np.zeros(self.bytes, np.uint8)
        self.order = np.random.default_rng(0).permutation(len(dataset))
        self.check_same()

    def pt_file(self, i: int) -> Path:
        """The torch file of event i."""
        return self.pt / f"{i}.pt"

    def from_store(self, i: int, columns: Sequence[str], verify: bool = False) -> Tensors:
        """Columns of event i by the reader of this package."""
        event = self.dataset.read(i, columns, verify)
        return {name: torch.from_numpy(event.column(name)) for name in columns}

    def from_pt(self, i: int, columns: Sequence[str]) -> Tensors:
        """The same from the event's torch file."""
        data = torch.load(self.pt_file(i), weights_only=False)
        return {name: data[name.replace(".", "_")] for name in columns}

    def from_csv(self, i: int, columns: Sequence[str]) -> Tensors:
        """The same from the CSV files, reading no other columns."""
        tensors: Tensors = {}
        for table, names in CSV.items():
            types = {name: schema.TABLES[table][name] for name in names}
            path = self.csv / f"event{self.dataset.event_ids[i]:09d}-{table}.csv"
            frame = pd.read_csv(path, usecols=names, dtype=types)
            tensors |= {f"{table}.{name}": torch.from_numpy(frame[name].to_numpy(copy=True)) for name in names}
        return tensors

    def check_same(self) -> None:
        """All ways must give the same tensors."""
        for read, columns in ((self.from_pt, ALL), (self.from_csv, FROM_CSV)):
            mine, other = self.from_store(0, columns), read(0, columns)
            for name in columns:
                assert mine[name].dtype == other[name].dtype and torch.equal(mine[name], other[name]), name

    def sequential(self, passes: int = PASSES) -> None:
        """The raw file from begin to end into memory of its size, which is there already."""
        descriptor = os.open(self.raw, os.O_RDONLY)
        for _ in range(passes):
            read_into(descriptor, self.memory, 0, self.raw)
        os.close(descriptor)

    def overwriting(self, passes: int = PASSES) -> None:
        """The same in blocks of an event's size, each over the one before, so that memory stays in the cache."""
        block = np.empty(self.bytes // len(self.dataset), np.uint8)
        descriptor = os.open(self.raw, os.O_RDONLY)
        for _ in range(passes):
            for k in range(len(self.dataset)):
                read_into(descriptor, block, k * len(block), self.raw)
        os.close(descriptor)

    def events(
        self, read: Callable[..., Tensors], *args: object, share: slice = slice(None), passes: int = PASSES
    ) -> Callable[[], None]:
        """Work: every event, or a share of them, in shuffled order, so many times."""

        def work() -> None:
            for _ in range(passes):
                for i in self.order[share]:
                    read(int(i), *args)

        return work

    @contextmanager
    def workers(self, count: int) -> Iterator[Callable[[], None]]:
        """Work: `count` forked processes read all events, shuffled, SOME columns, each event once."""
        context, started = multiprocessing.get_context("fork"), []
        for k in range(count):
            here, there = context.Pipe()
            work = self.events(self.from_store, SOME, share=slice(k, None, count))
            process = context.Process(target=serve, args=(there, work), daemon=True)
            process.start()
            started.append((process, here))

        def together() -> None:
            for _, pipe in started:
                pipe.send(True)
            for _, pipe in started:
                pipe.recv()

        yield together
        for process, pipe in started:
            pipe.send(False)
            process.join()

    def files(self) -> list[Path]:
        """The store's shards, the raw file and the torch files."""
        return [self.raw, *(self.dataset.folder / name for name in self.dataset.shards), *self.pt.iterdir()]

    def warm(self) -> None:
        """Bring every file into the page cache alike: from the disk, once from begin to end.

        How fast the cache gives a file back depends on the size of the writes or reads that brought it in.
        """
        self.forget()
        for path in self.files():
            with open(path, "rb", buffering=0) as file:
                while file.read(8 << 20):
                    pass

    def forget(self) -> None:
        """Tell the page cache to forget every file."""
        for path in self.files():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def serve(pipe: multiprocessing.connection.Connection, work: Callable[[], None]) -> None:
    """Work whenever asked to."""
    while pipe.recv():
        work()
        pipe.send(True)


# ------------------------------------------------------------------------------------------------ reading


def reading(bench: Readings, one: Callable[[], None], two: Callable[[], None], repeats: int) -> list[Figure]:
    """Ratios of rates, from the page cache."""
    n, shares = len(bench.dataset), f"{len(SOME)} of {len(ALL)} columns"
    some_csv = slice(0, 2)
    seconds = time_in_turn(
        {
            "sequential": bench.sequential,
            "overwriting": bench.overwriting,
            "one": one,
            "two": two,
            "store_8": bench.events(bench.from_store, SOME),
            "store_8_verified": bench.events(bench.from_store, SOME, True),
            "pt_8": bench.events(bench.from_pt, SOME),
            "store_24": bench.events(bench.from_store, ALL),
            "store_24_verified": bench.events(bench.from_store, ALL, True),
            "pt_24": bench.events(bench.from_pt, ALL),
            "store_csv": bench.events(bench.from_store, FROM_CSV, share=some_csv, passes=25 * PASSES),
            "csv": bench.events(bench.from_csv, FROM_CSV, share=some_csv, passes=1),
        },
        repeats,
    )
    seconds["store_csv"] = [s / (25 * PASSES) for s in seconds["store_csv"]]
    by_workers = {k: ratio(seconds["sequential"], seconds[name]) for k, name in ((1, "one"), (2, "two"))}
    worse = min(by_workers.values(), key=np.median)
    about = f"bytes/s of {shares} of shuffled events over those of one sequential read into memory"
    figures = [Figure("shuffled_over_sequential", worse, "x", f"{about}; the worse of 1 and 2 reader processes")]
    overwriting = ratio(seconds["overwriting"], seconds["one"])
    text = "one reader process, over a sequential read whose blocks overwrite each other"
    figures.append(Figure("shuffled_over_overwriting", overwriting, "x", text))
    figures += [
        Figure(f"shuffled_over_sequential_{k}", values, "x", f"with {k} reader process{'es' * (k > 1)}")
        for k, values in by_workers.items()
    ]
    against = {
        "store_over_pt_files": (
            "pt_8",
            "store_8",
            f"torch.load of a PyG file per event, {shares}, checksums not verified",
        ),
        "store_over_pt_files_verified": ("pt_8", "store_8_verified", "those, the store verifying checksums"),
        "store_over_pt_all": ("pt_24", "store_24", f"torch.load of a PyG file per event, all {len(ALL)} columns"),
        "store_over_pt_all_verified": ("pt_24", "store_24_verified", "those, the store verifying checksums"),
        "store_over_csv": ("csv", "store_csv", "pandas.read_csv of 8 columns from two files"),
    }
    figures += [
        Figure(name, ratio(seconds[peer], seconds[own]), "x", f"events/s of the store over {what}")
        for name, (peer, own, what) in against.items()
    ]
    figures += [
        Figure(f"{name}_ms", [1e3 * s / n / PASSES for s in seconds[name]], "ms", "an event, one process")
        for name in ("store_8", "store_8_verified", "store_24", "store_24_verified", "pt_8", "pt_24")
    ]
    rates = {"sequential": "one sequential read", "one": "1 reader process", "two": "2 reader processes"}
    return figures + [
        Figure(f"{name}_mb_per_s", [bench.bytes * PASSES / s / 1e6 for s in seconds[name]], "MB/s", about)
        for name, about in rates.items()
    ]


def cold(bench: Readings, repeats: int) -> list[Figure]:
    """The same from the disk."""
    store, pt = (bench.events(read, SOME, passes=1) for read in (bench.from_store, bench.from_pt))
    works = {"sequential": lambda: bench.sequential(1), "store": store, "pt": pt}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            bench.forget()
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return [
        Figure(
            "cold_shuffled_over_sequential",
            ratio(seconds["sequential"], seconds["store"]),
            "x",
            "as shuffled_over_sequential, one process, from the disk",
        ),
        Figure("cold_store_over_pt_files", ratio(seconds["pt"], seconds["store"]), "x", "from the disk"),
    ]


class _Items(torch.utils.data.Dataset):
    def __init__(self, bench: Readings) -> None:
        self.bench = bench

    def __getitem__(self, i: int) -> tuple[bytes, torch.Tensor]:
        return pack(self.bench.from_store(int(i), SOME))

    def __len__(self) -> int:
        return len(self.bench.dataset)


def unpack_all(items: Iterable[tuple[bytes, torch.Tensor]]) -> None:
    """Have the tensors of each item."""
    for item in items:
        unpack(item)


def loading(bench: Readings, repeats: int) -> list[Figure]:
    """What arrives in the training process by way of a DataLoader, whose workers copy through shared memory."""
    works: dict[str, Callable[[], None]] = {"sequential": bench.sequential}
    for k in (1, 2):
        order = bench.order.tolist() * PASSES
        loader = DataLoader(_Items(bench), batch_size=None, sampler=order, num_workers=k, persistent_workers=True)
        works[f"loader_{k}"] = partial(unpack_all, loader)
    seconds = time_in_turn(works, repeats, warm_up=2)
    return [
        Figure(
            f"delivered_over_sequential_{k}",
            ratio(seconds["sequential"], seconds[f"loader_{k}"]),
            "x",
            f"bytes/s that {k} DataLoader worker{'s' * (k > 1)} bring into the training process",
        )
        for k in (1, 2)
    ]


# ------------------------------------------------------------------------------------------------ conversion


def conversion(csv: Path, folder: Path, repeats: int) -> list[Figure]:
    """`hpctrack convert` on 1 and 2 processes, and its memory for one event and for many. Leaves `folder`/jobs-1."""

    def convert(name: str, *options: str) -> tuple[float, float]:
        return command([sys.executable, "-m", "hpctrack.convert", str(csv), str(folder / name), *options])

    events = len(list(csv.glob("*-hits.csv")))
    megabytes = sum(path.stat().st_size for path in csv.glob("event*.csv")) / 1e6
    size = ["--events-per-shard", str(max(events // 8, 1))]
    start, few = convert("one-event", "--jobs", "1", "--limit", "1")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for jobs in (1, 2):
            seconds[jobs].append(convert(f"jobs-{jobs}", "--jobs", str(jobs), "--overwrite", *size)[0])
    _, many = convert("one-shard", "--jobs", "1", "--events-per-shard", str(events))
    datasets = [open_dataset(folder / name) for name in ("jobs-1", "jobs-2", "one-shard")]
    assert len({digest(dataset) for dataset in datasets}) == 1, "conversions differ"
    return [
        Figure("convert_2_over_1", ratio(seconds[1], seconds[2]), "x", f"{events} events, seconds of 1 process over 2"),
        Figure("convert_mb_per_s", [megabytes / s for s in seconds[1]], "MB/s", "of CSV, one process, start included"),
        Figure(
            "convert_memory_growth",
            [many / few],
            "x",
            f"peak memory with a shard of {events} events over that with one event",
        ),
        Figure("convert_memory_mib", [many], "MiB", f"peak memory, one process, a shard of {events} events"),
        Figure("convert_start_s", [start], "s", "one event, from the command to its end"),
    ]

"""Run the events of a data set over processes, continuing where an earlier run stopped."""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hpctrack
from hpctrack.errors import InputError, MachineError
from hpctrack.files.lock import only_writer_of
from hpctrack.files.outputs import check_folder
from hpctrack.process import pools
from hpctrack.simulation import (
    MeasuringSource,
    OwnDetector,
    detector_of,
    package_versions,
    source_class,
    unused_by,
    writer,
)
from hpctrack.simulation.digitization import add_noise, digitize
from hpctrack.simulation.event import Tables, trackml_tables
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.settings import MAX_EVENT_ID, Settings


class Simulation:
    """One process' simulation: the source and the detector, ready to make any event of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.geometry: Geometry = detector_of(settings.source)
        self.source: Any = source_class(settings.source)(settings, self.geometry)

    @property
    def own_detector(self) -> bool:
        """Whether the source has a detector of its own, and hits without cells."""
        return isinstance(self.source, OwnDetector)

    def tables(self, event_id: int) -> Tables:
        """The four TrackML tables of one event; they depend on the settings and the event's id alone."""
        settings = self.settings
        if self.own_detector:
            return self.source.tables(event_id)
        if isinstance(self.source, MeasuringSource):
            particles, measured, weighs = self.source.measure(event_id)
            return trackml_tables(particles, measured, self.geometry, settings.stream(event_id, "order"), weighs)
        particles, crossings = self.source.generate(event_id)
        rng = settings.stream(event_id, "digitization")
        measured = digitize(crossings, self.geometry, settings.digitization, settings.efficiency, rng)
        measured = add_noise(measured, self.geometry, settings.noise, settings.stream(event_id, "noise"))
        return trackml_tables(particles, measured, self.geometry, settings.stream(event_id, "order"))


@dataclass(frozen=True)
class Done:
    """What became of an event."""

    event_id: int
    n_hits: int
    n_noise: int
    n_particles: int


def run(settings: Settings, folder: Path, event_ids: range, jobs: int) -> Iterator[Done | None]:
    """Write the events that are not there yet; yields None once for what was there already, then each event made.

    Raises InputError for settings that differ from the folder's, MachineError or OSError for faults of the machine.
    """
    settings.check()
    check_ids(event_ids)
    versions = package_versions(settings.source)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer_of(folder, event_ids):
        yield from _owned(settings, folder, event_ids, jobs, versions)


def check_ids(event_ids: range) -> None:
    """InputError for numbers of events that file names cannot hold."""
    if event_ids and not 0 <= event_ids[0] <= event_ids[-1] <= MAX_EVENT_ID:
        raise InputError(f"--first-event {event_ids[0]} --events {len(event_ids)}: ids must lie in 0 … {MAX_EVENT_ID}")


def _owned(
    settings: Settings, folder: Path, event_ids: range, jobs: int, versions: dict[str, str]
) -> Iterator[Done | None]:
    """`run`, by the only one that makes these events here."""
    everything = {"hpctrack": hpctrack.__version__, "numpy": np.__version__, "python": platform.python_version()}
    recorded = settings.as_dict() | dict.fromkeys(unused_by(settings.source))
    writer.claim(folder, recorded, {**everything, **versions}, decisive=versions)
    todo = []
    for event_id in event_ids:
        if writer.is_finished(folder, event_id, settings.gzip):
            yield None
        else:
            todo.append(event_id)
    writer.clean(folder, todo)
    if not issubclass(source_class(settings.source), OwnDetector):
        writer.write_detectors(folder, detector_of(settings.source), settings.gzip)
    if todo:
        yield from _in_processes(settings, folder, todo, min(jobs, len(todo)))


def _in_processes(settings: Settings, folder: Path, todo: list[int], jobs: int) -> Iterator[Done]:
    if jobs == 1:
        simulation = Simulation(settings)
        for event_id in todo:
            yield _make(simulation, folder, event_id)
        return
    # spawn: neither ACTS nor an MPI parent may be forked.
    named = "event {}".format
    for outcome in pools.run(Making(settings, folder), enumerate(todo), jobs, "spawn", named):
        if isinstance(outcome.error, pools.WorkerDied):
            raise MachineError(f"{outcome.error}; run again to continue")
        yield outcome.result()


def _make(simulation: Simulation, folder: Path, event_id: int) -> Done:
    tables = simulation.tables(event_id)
    writer.write_event(folder, event_id, tables, simulation.settings.gzip)
    particle_id = tables["truth"]["particle_id"]
    n_noise = int(np.count_nonzero(particle_id == 0))
    return Done(event_id, len(particle_id), n_noise, len(tables["particles"]["particle_id"]))


class Making:
    """Makes events in a worker process, which sets its simulation up at the first one."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder

    def __call__(self, event_id: int) -> Done:
        return _make(self.simulation, self.folder, event_id)

    @functools.cached_property
    def simulation(self) -> Simulation:
        """Of this process."""
        return Simulation(self.settings)


def show_progress(results: Iterable[Done | None], total: int, every_s: float = 10.0) -> list[Done]:
    """Collect the results; events done, events/s and ETA go to stderr, over one line on a terminal."""
    terminal = sys.stderr.isatty()
    made, there, begin, shown = [], 0, time.monotonic(), 0.0
    for result in results:
        if result is None:
            there += 1
            continue
        made.append(result)
        now, done = time.monotonic(), there + len(made)
        if terminal or now - shown >= every_s or done == total:
            rate = len(made) / max(now - begin, 1e-9)
            line = f"simulate: {done}/{total} events, {rate:.3g} events/s, ETA {_duration((total - done) / rate)}"
            print(f"\r{line:<72}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
            shown = now
    if terminal and made:
        print(file=sys.stderr)
    return made


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

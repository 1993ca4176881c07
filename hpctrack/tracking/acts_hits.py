"""Hits as ACTS sees them: on the modules of TrackML's detector, as measurements on its whiteboard.

Each hit is a two-dimensional measurement on its module, with the standard deviations of a single cell, pitch /
sqrt(12).

N hits seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import acts
import numpy as np
from acts import examples

from hpctrack.errors import InputError, MachineError
from hpctrack.formats.detectors import module_key
from hpctrack.simulation.acts_detector import Acts, ActsDetector
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.storage.schema import Event

OFF_MODULE_MM = 0.1
QUIET = acts.logging.FATAL
COLUMNS = [f"hits.{name}" for name in ("x", "y", "z", "volume_id", "layer_id", "module_id")]
SUBSET, CONTAINER = "measurements", "measurement_container"  # keys on the whiteboard: algorithms want one or the other


class HitsOnModules:
    """The detector in a field of `field_t` tesla along z, and the places of hits on it."""

    def __init__(self, field_t: float) -> None:
        self.geometry = trackml_geometry()
        ids = (self.geometry.columns[name] for name in ("volume_id", "layer_id", "module_id"))
        self._keys = module_key(*ids)  # ascending
        self.detector = ActsDetector(field_t, self.geometry)

    def place(self, event: Event, rows: np.ndarray, who: str) -> tuple[np.ndarray, np.ndarray]:
        """Module of each hit [N], as row of the geometry, and its place there [N, 2] in mm.

        InputError for a hit that is not on a module, which says that `who` is for TrackML's detector.
        """
        x, y, z, *ids = (event.column(name)[rows] for name in COLUMNS)
        keys = module_key(*ids)
        modules_N = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        local_N3 = self.geometry.to_local(modules_N, np.stack([x, y, z], axis=1).astype(np.float64))
        size_N3 = np.pad(self.geometry.half[modules_N], ((0, 0), (0, 1))) + OFF_MODULE_MM
        wrong = (self._keys[modules_N] != keys) | ~(np.abs(local_N3) <= size_N3).all(axis=1)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            where = "/".join(str(values[i]) for values in ids)
            raise InputError(
                f"event {event.event_id}: hit row {rows[i]} at ({x[i]}, {y[i]}, {z[i]}) mm is not on module {where} "
                f"(volume/layer/module) of TrackML's detector, which {who} is for"
            )
        return modules_N, local_N3[:, :2]

    def reader(self, modules_N: np.ndarray, uv_N2: np.ndarray) -> Measurements:
        """What gives ACTS the measurements."""
        identifiers = [self.detector.identifiers[module] for module in modules_N]
        return Measurements(identifiers, uv_N2, self.geometry.pitch[modules_N] ** 2 / 12)

    def space_points(self, volumes: Iterable[int]) -> Any:
        """The algorithm that makes a space point, `points` on the whiteboard, of each measurement in some volumes."""
        return examples.SpacePointMaker(
            level=QUIET,
            inputMeasurements=SUBSET,
            outputSpacePoints="points",
            trackingGeometry=self.detector.tracking_geometry,
            geometrySelection=[acts.GeometryIdentifier(volume=volume) for volume in volumes],
            stripGeometrySelection=[],
        )


class Measurements(examples.IReader):
    """Puts the measurements of one event on ACTS' whiteboard, as SUBSET and as CONTAINER.

    ACTS never lets go of an instance, so `run` empties it.
    """

    def __init__(self, identifiers: list, uv_N2: np.ndarray, variance_N2: np.ndarray) -> None:
        examples.IReader.__init__(self, "measurements", QUIET)
        self._hits = identifiers, uv_N2.tolist(), variance_N2.tolist()
        self._handle = examples.WriteDataHandle(self, examples.MeasurementSubset, "OutputMeasurements")
        self._handle.initialize(SUBSET)
        self._whole = examples.WriteDataHandle(self, examples.MeasurementContainer, "OutputContainer")
        self._whole.initialize(CONTAINER)

    def availableEvents(self) -> tuple[int, int]:
        return 0, 1

    def read(self, context: Acts) -> Acts:
        self._container = self._filled()  # the subset refers to it, so it must live as long
        self._handle(context, examples.MeasurementSubset(self._container, range(len(self._hits[0]))))
        self._whole(context, self._filled())  # the whiteboard takes what it is given
        return examples.ProcessCode.SUCCESS

    def _filled(self) -> Acts:
        container = examples.MeasurementContainer()
        container.reserve(len(self._hits[0]))
        for identifier, uv, variance in zip(*self._hits, strict=True):
            container.emplaceMeasurement(identifier, (0, 1), uv, variance)
        return container

    def run(self, algorithms: Iterable[Any], event_id: int) -> None:
        """The algorithms, one after the other, on the measurements, once; MachineError if ACTS fails."""
        sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=QUIET, trackFpes=False)
        sequencer.addReader(self)
        for algorithm in algorithms:
            sequencer.addAlgorithm(algorithm)
        try:
            sequencer.run()
        except RuntimeError as error:
            raise MachineError(f"event {event_id}: ACTS failed: {error}") from error
        del self._hits, self._container

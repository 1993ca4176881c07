"""ACTS' Generic Detector, which is TrackML's, in a constant field: for the simulation and the reference tracking."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpctrack.errors import InputError, MachineError
from hpctrack.simulation.geometry import Geometry

Acts = Any  # a module, class or object of pyacts, which has no types
CENTRE_TOLERANCE_MM = 0.01


def import_acts() -> tuple[Acts, Acts]:
    """The modules `acts` and `acts.examples`; InputError if pyacts is not there."""
    try:
        import acts
        import acts.examples
    except ImportError as error:
        raise InputError(
            f"ACTS needs pyacts, which is not installed or does not load ({error}): pip install 'hpctrack[sim]'"
        ) from error
    return acts, acts.examples


class ActsDetector:
    """The detector in a field of `field_t` tesla along z; ACTS is silent below fatal errors.

    `identifiers[i]` is ACTS' identifier of the module in row i of `geometry`. Raises MachineError unless the installed
    pyacts has the detector that `geometry` describes.
    """

    def __init__(self, field_t: float, geometry: Geometry) -> None:
        acts, examples = import_acts()
        self.quiet = acts.logging.FATAL
        levels = dict.fromkeys(("logLevel", "surfaceLogLevel", "layerLogLevel", "volumeLogLevel"), self.quiet)
        self._detector = examples.GenericDetector(examples.GenericDetector.Config(**levels))
        self.tracking_geometry = self._detector.trackingGeometry()
        self.field = acts.ConstantBField(acts.Vector3(0.0, 0.0, field_t * acts.UnitConstants.T))
        self._sorted_ids, self._modules = _surface_map(geometry)
        self.identifiers = self._checked_identifiers(acts, geometry)

    def modules(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the geometry of ACTS' identifiers (uint64 [H])."""
        surface = np.searchsorted(self._sorted_ids, ids)
        return self._modules[np.minimum(surface, len(self._modules) - 1)]

    def _checked_identifiers(self, acts: Acts, geometry: Geometry) -> list[Acts]:
        surfaces = {
            key.value: (key, surface)
            for key, surface in self.tracking_geometry.geoIdSurfaceMap().items()
            if key.sensitive
        }
        if sorted(surfaces) != self._sorted_ids.tolist():
            raise MachineError(f"pyacts' GenericDetector: {len(surfaces)} modules, numbered otherwise than TrackML's")
        context = acts.GeometryContext.dangerouslyDefaultConstruct()
        identifiers: list[Acts] = [None] * len(geometry)
        for value, module in zip(self._sorted_ids.tolist(), self._modules.tolist(), strict=True):
            identifiers[module], surface = surfaces[value]
            centre = surface.center(context)
            gap = max(abs(centre[i] - geometry.centre[module, i]) for i in range(3))
            if gap > CENTRE_TOLERANCE_MM:
                raise MachineError(f"pyacts' GenericDetector: module {value} is {gap:.3g} mm away from TrackML's")
        return identifiers


def _surface_map(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """ACTS' geometry identifiers, sorted, and the row of the geometry that each stands for."""
    ids = [geometry.columns["volume_id"], geometry.columns["layer_id"], geometry.acts_module]
    shifted = [values.astype(np.uint64) << np.uint64(shift) for values, shift in zip(ids, (56, 36, 8), strict=True)]
    value = shifted[0] | shifted[1] | shifted[2]
    order = np.argsort(value)
    return value[order], order

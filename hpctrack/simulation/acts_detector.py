"""ACTS' Generic Detector, which is TrackML's, in a constant field: for the simulation and the reference tracking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpctrack.errors import InputError, MachineError
from hpctrack.simulation.geometry import Geometry

Acts = Any  # a module, class or object of pyacts, which has no types
CENTRE_TOLERANCE_MM = 0.01
_SLAB = re.compile(r"\|l0=([\d.e+-]+)\|ar=([\d.e+-]+)\|z=([\d.e+-]+)\|.*\|t=([\d.e+-]+)")
PLANE, DISC, CYLINDER = range(3)


@dataclass(frozen=True)
class Material:
    """The material on surfaces [S], those of modules and the passive ones between them."""

    surface: np.ndarray  # uint64 [S] ACTS' identifiers, sorted
    shape: np.ndarray  # int64 [S] PLANE (a module), DISC or CYLINDER around the beam
    module: np.ndarray  # int64 [S] row of the geometry, -1 if it is passive
    in_l0: np.ndarray  # [S] thickness in nuclear interaction lengths; 0 without material
    z: np.ndarray  # int64 [S] protons of its nuclei
    a: np.ndarray  # int64 [S] nucleons

    def rows(self, surface: np.ndarray) -> np.ndarray:
        """[H] rows of surfaces that are here."""
        return np.searchsorted(self.surface, surface)


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
        self.geometry = geometry
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

    def material(self) -> Material:
        """The detector's material; MachineError if ACTS says it otherwise than as homogeneous slabs."""
        surfaces = {key.value: surface for key, surface in self.tracking_geometry.geoIdSurfaceMap().items()}
        ids = np.array(sorted(surfaces), np.uint64)
        module = np.searchsorted(self._sorted_ids, ids)
        module = np.where(np.isin(ids, self._sorted_ids), self._modules[np.minimum(module, len(self._modules) - 1)], -1)
        rows = []
        for value, row in zip(ids.tolist(), module.tolist(), strict=True):
            surface = surfaces[value]
            found, text = surface.surfaceMaterial, ""
            if found is not None:
                text = found.toString()
            slab = _SLAB.search(text)
            kind = str(surface.type).rpartition(".")[2]
            if (found is not None and slab is None) or kind not in ("Plane", "Disc", "Cylinder"):
                raise MachineError(
                    f"pyacts' GenericDetector: surface {value} is a {kind} of '{text}', not a known slab"
                )
            l0, a, z, thickness = map(float, slab.groups()) if slab else (1.0, 0.0, 0.0, 0.0)
            shape = PLANE if row >= 0 else ("Plane", "Disc", "Cylinder").index(kind)
            rows.append((shape, thickness / l0, round(z), round(a)))
        shape, in_l0, z, a = np.array(rows, float).T
        whole = {"shape": shape, "z": z, "a": a}
        return Material(ids, module=module, in_l0=in_l0, **{name: c.astype(np.int64) for name, c in whole.items()})

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

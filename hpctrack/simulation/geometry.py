"""The TrackML detector (the Generic Detector of ACTS) as arrays: 18,728 planar modules on 10 cylinders and 38 disks.

Built from its layout rules, so that it needs no file and no package; ids are TrackML's own. Checked against pyacts'
GenericDetector and the challenge's detectors.csv: centres within 4 um, rotations within 6e-7, the rest equal.
Frame of a module: u along the measured (fine) direction, v along the strips, w the normal; u x v = w. Units: mm, rad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class _Sensor:
    """What the modules of a volume have in common."""

    half_thickness: float  # mm, `module_t`
    pitch: tuple[float, float]  # mm, u and v
    depth: float  # mm of silicon that gives signal, as TrackML's clusters show it: twice the barrels' in endcaps
    digital: bool  # cells say 1 instead of their charge


@dataclass(frozen=True)
class _Barrel:
    sensor: _Sensor
    half_u: float
    half_v: float
    tilt: float  # rad, of the module's normal against the radius
    stagger: float  # mm, +- in radius from one z row to the next
    z_pitch: float
    n_z: int
    layers: tuple[tuple[float, int], ...]  # radius, modules in phi


@dataclass(frozen=True)
class _Ring:
    radius: float
    n_phi: int
    half_u: tuple[float, float]  # at the inner and the outer edge
    half_v: float
    z_offsets: tuple[float, ...]  # from the disk, away from the origin; repeats over phi


@dataclass(frozen=True)
class _Endcap:
    sensor: _Sensor
    disks: tuple[float, ...]  # |z|
    rings: tuple[_Ring, ...]
    sequence: str  # ring of each module in the order of TrackML's module_id


_PIXEL_PITCH, _SHORT_PITCH = (0.05, 0.05625), (0.08, 1.2)
_STRIP_DISKS = (1220.0, 1500.0, 1800.0, 2150.0, 2550.0, 2950.0)
_BARRELS = {
    8: _Barrel(
        _Sensor(0.15, _PIXEL_PITCH, 0.15, False),
        *(8.4, 36.0, 0.14, 0.25, 70.0, 14),
        layers=((32.0, 16), (72.0, 32), (116.0, 52), (172.0, 78)),
    ),
    13: _Barrel(
        _Sensor(0.25, _SHORT_PITCH, 0.25, True),
        *(24.0, 54.0, -0.15, 1.5, 103.0, 21),
        layers=((260.0, 40), (360.0, 56), (500.0, 78), (660.0, 102)),
    ),
    17: _Barrel(
        _Sensor(0.35, (0.12, 10.8), 0.35, True),
        *(24.0, 54.0, -0.15, 1.5, 103.0, 21),
        layers=((820.0, 120), (1020.0, 152)),
    ),
}
# In the endcaps TrackML numbers a layer's modules roughly in phi, the rings interleaved as these sequences say; the
# rule behind them is not published. ACTS numbers ring by ring.
_ENDCAPS = {
    (7, 9): _Endcap(
        _Sensor(0.15, _PIXEL_PITCH, 0.30, False),
        disks=(600.0, 700.0, 820.0, 960.0, 1100.0, 1300.0, 1500.0),
        rings=(
            _Ring(66.0, 40, (8.4, 8.4), 36.0, (2.5, -2.0, 2.0, -2.5)),
            _Ring(140.0, 68, (8.4, 8.4), 36.0, (2.0, -2.0)),
        ),
        sequence="011010110110101101101101011011010110110110101101101011011010110110101101101101011011010110110110101101101011",
    ),
    (12, 14): _Endcap(
        _Sensor(0.25, _SHORT_PITCH, 0.50, True),
        disks=_STRIP_DISKS,
        rings=(
            _Ring(318.0, 54, (16.4, 24.2), 78.0, (-1.5, -4.5)),
            _Ring(470.0, 56, (24.2, 32.2), 78.0, (4.5, 1.5)),
            _Ring(622.0, 60, (32.2, 40.0), 78.0, (-1.5, -4.5)),
        ),
        sequence="0122012012102102102102102102102120120120120120120210210210212012012012012012012012012012201201210210"
        "2102102102102102120120120120120120210210210212012012012012012012012012",
    ),
    (16, 18): _Endcap(
        _Sensor(0.35, (0.12, 10.4), 0.70, True),
        disks=_STRIP_DISKS,
        rings=(
            _Ring(828.0, 48, (54.0, 64.2), 78.0, (-2.5, -5.5)),
            _Ring(942.0, 50, (66.0, 72.0), 78.0, (5.5, 2.5)),
        ),
        sequence="01101010101010101010101010101010101010101010101010101010101101010101010101010101010101010101010101",
    ),
}


@dataclass(frozen=True)
class Row:
    """Modules that differ in phi only: one z row of a barrel layer, or one ring of a disk."""

    volume_id: int
    layer_id: int
    barrel: bool
    position: float  # mm, the layer's radius (barrel) or z (endcap)
    centre: float  # mm, along the row's width: z (barrel) or r (endcap)
    half_width: float  # mm
    modules: np.ndarray  # [n_phi] rows of Geometry, at phi = -pi + (i + 1/2) 2 pi / n_phi


@dataclass(frozen=True)
class Geometry:
    """Modules [M] in the order of detectors.csv (volume, layer, module) and their grouping into rows.

    `columns` has detectors.csv's columns; `depth` and `digital` describe the signal; `acts_module` is the number ACTS
    gives the module within its layer.
    """

    columns: Mapping[str, np.ndarray]
    depth: np.ndarray
    digital: np.ndarray
    acts_module: np.ndarray
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.depth)

    @cached_property
    def centre(self) -> np.ndarray:
        """[M, 3] mm."""
        return np.stack([self.columns[name] for name in ("cx", "cy", "cz")], axis=1)

    @cached_property
    def rotation(self) -> np.ndarray:
        """[M, 3, 3]; column 0 is u, 1 is v, 2 is w in the global frame."""
        return np.stack([self.columns[f"rot_{i}{j}"] for i in "xyz" for j in "uvw"], axis=1).reshape(-1, 3, 3)

    @cached_property
    def pitch(self) -> np.ndarray:
        """[M, 2] mm."""
        return np.stack([self.columns["pitch_u"], self.columns["pitch_v"]], axis=1)

    @cached_property
    def half(self) -> np.ndarray:
        """[M, 2] mm, of the rectangle around the module: channel 0 starts at minus this."""
        return np.stack([self.columns["module_maxhu"], self.columns["module_hv"]], axis=1)

    @cached_property
    def n_channels(self) -> np.ndarray:
        """[M, 2] channels along u and v."""
        return np.rint(2 * self.half / self.pitch).astype(np.int64)

    @cached_property
    def layer(self) -> np.ndarray:
        """[M] key of the layer: 1000 volume_id + layer_id."""
        return 1000 * self.columns["volume_id"] + self.columns["layer_id"]

    def half_u(self, modules: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Half width along u at height v: modules of the strip endcaps are trapezoids, wider outside."""
        low, high = self.columns["module_minhu"][modules], self.columns["module_maxhu"][modules]
        return (low + high) / 2 + (high - low) / 2 * v / self.columns["module_hv"][modules]

    def to_local(self, modules: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Global points [H, 3] in the frames of their modules."""
        return np.einsum("hij,hi->hj", self.rotation[modules], points - self.centre[modules])

    def to_global(self, modules: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """Points [H, 2] in the planes of their modules, in the global frame [H, 3]."""
        return self.centre[modules] + np.einsum("hij,hj->hi", self.rotation[modules][:, :, :2], uv)


def trackml_geometry() -> Geometry:
    """The whole detector."""
    parts: list[dict[str, np.ndarray]] = []
    rows: list[tuple[int, int, bool, float, float, float]] = []  # of Row, but its modules
    for volume, barrel in _BARRELS.items():
        for i, (radius, n_phi) in enumerate(barrel.layers):
            _add_barrel_layer(parts, rows, volume, 2 * i + 2, barrel, radius=radius, n_phi=n_phi)
    for (negative, positive), endcap in _ENDCAPS.items():
        n = len(endcap.disks)
        for i, z in enumerate(endcap.disks):
            _add_disk(parts, rows, negative, 2 * (n - i), endcap, z=-z)
            _add_disk(parts, rows, positive, 2 * i + 2, endcap, z=z)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort([columns[name] for name in ("module_id", "layer_id", "volume_id")])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    columns = {name: values[order] for name, values in columns.items()}
    extra = {name: columns.pop(name) for name in ("depth", "digital", "acts_module")}
    starts = np.cumsum([0] + [len(part["cx"]) for part in parts])
    numbered = tuple(Row(*head, place[starts[i] : starts[i + 1]]) for i, head in enumerate(rows))
    return Geometry(columns, rows=numbered, **extra)


def _part(sensor: _Sensor, centre: list, axes: list, half_u: tuple[float, float], half_v: float, *, ids: dict) -> dict:
    """Columns of one row of modules; `axes` are u, v, w, each its x, y, z."""
    n = len(ids["module_id"])
    part = {name: np.broadcast_to(np.asarray(value, np.int64), n) for name, value in ids.items()}
    for i, x in enumerate("xyz"):
        part[f"c{x}"] = np.broadcast_to(np.asarray(centre[i], float), n)
        for j, u in enumerate("uvw"):
            part[f"rot_{x}{u}"] = np.broadcast_to(np.asarray(axes[j][i], float), n)
    single = {"module_t": sensor.half_thickness, "module_minhu": half_u[0], "module_maxhu": half_u[1]}
    single |= {"module_hv": half_v, "pitch_u": sensor.pitch[0], "pitch_v": sensor.pitch[1], "depth": sensor.depth}
    part |= {name: np.full(n, value) for name, value in single.items()}
    part["digital"] = np.full(n, sensor.digital)
    return part


def _phi(n: int) -> np.ndarray:
    return -np.pi + (np.arange(n) + 0.5) * 2 * np.pi / n


def _add_barrel_layer(
    parts: list, rows: list, volume: int, layer: int, barrel: _Barrel, *, radius: float, n_phi: int
) -> None:
    phi = _phi(n_phi)
    psi = phi + barrel.tilt
    axes = [(-np.sin(psi), np.cos(psi), 0.0), (0.0, 0.0, 1.0), (np.cos(psi), np.sin(psi), 0.0)]
    for i in range(barrel.n_z):
        z = (i - (barrel.n_z - 1) / 2) * barrel.z_pitch
        r = radius + barrel.stagger * (1 if i % 2 == 0 else -1)
        number = i * n_phi + np.arange(1, n_phi + 1)
        ids = {"volume_id": volume, "layer_id": layer, "module_id": number, "acts_module": number}
        centre = [r * np.cos(phi), r * np.sin(phi), z]
        parts.append(_part(barrel.sensor, centre, axes, (barrel.half_u, barrel.half_u), barrel.half_v, ids=ids))
        rows.append((volume, layer, True, radius, z, barrel.half_v))


def _add_disk(parts: list, rows: list, volume: int, layer: int, endcap: _Endcap, *, z: float) -> None:
    side = np.sign(z)
    sequence = np.array([int(c) for c in endcap.sequence])
    first = 0
    for k, ring in enumerate(endcap.rings):
        phi = _phi(ring.n_phi)
        cos, sin = np.cos(phi), np.sin(phi)
        axes = [(side * sin, -side * cos, 0.0), (cos, sin, 0.0), (0.0, 0.0, side)]
        offsets = np.resize(ring.z_offsets, ring.n_phi)
        ids = {"volume_id": volume, "layer_id": layer, "module_id": 1 + np.flatnonzero(sequence == k)}
        ids["acts_module"] = first + np.arange(1, ring.n_phi + 1)
        centre = [ring.radius * cos, ring.radius * sin, z + side * offsets]
        parts.append(_part(endcap.sensor, centre, axes, ring.half_u, ring.half_v, ids=ids))
        rows.append((volume, layer, False, z, ring.radius, ring.half_v))
        first += ring.n_phi

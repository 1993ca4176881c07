"""Source `planes`: tracks through a stack of pixel planes, as HEP.TrkX' toys (2017), in numpy.

S. Farrell et al., "The HEP.TrkX Project: deep neural networks for HL-LHC online and offline tracking", EPJ Web Conf.
150 (2017) 00003, and the notebooks of HEPTrkX/heptrkx-ctd. A track enters and leaves at uniform places and turns on the
one pixel of each plane that it crosses. With a signal, the first planes, the seed, are free of all other tracks and of
noise.

Plane i is at z = i mm, a pixel is 1 mm wide: pixel p covers p <= x < p + 1 (and so y; where planes are lines of
pixels, y = 0). Layer ids are the planes' numbers; the signal is particle 1.

Legend: T tracks, L planes, A axes of a plane (1 or 2), W pixels along each.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from hpctrack.simulation.event import Tables
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.planes.pixels import Pixels, joined, number_of_tracks, pixel_tables
from hpctrack.simulation.settings import Settings

GROWTH = 1.7  # planes by which a window's half width grows by one pixel


def window_widths(planes: int, pixels: int) -> np.ndarray:
    """Pixels of each plane where the first are narrow, even, int64 [L]: 2, 4, 4, 6, … up to `pixels`."""
    return np.minimum(pixels, 2 * np.floor(np.arange(1, planes + 1) / GROWTH + 1).astype(np.int64))


class PlanesSource:
    """Makes events by their ids alone."""

    OPTIONS: ClassVar = (
        *("planes", "pixels", "axes", "windows", "signal", "seed_planes", "tracks", "tracks_number", "tracks_max"),
        *("pixel_noise", "sagitta"),
    )
    UNUSED: ClassVar = ("pt_min_gev", "eta_max", "field_t", "digitization", "efficiency", "noise")
    PACKAGES: ClassVar = ()

    def __init__(self, settings: Settings, geometry: Geometry | None = None) -> None:
        self._settings = settings

    @cached_property
    def windows(self) -> np.ndarray:
        """First pixel of each plane's window along an axis, and the end, int64 [L, 2]."""
        planes, pixels = self._settings.planes, self._settings.pixels
        width = window_widths(planes, pixels) if self._settings.windows else np.full(planes, pixels)
        return np.stack([(pixels - width) // 2, (pixels + width) // 2], axis=1)

    def tables(self, event_id: int) -> Tables:
        """The four tables of one event."""
        s = self._settings
        rng = s.stream(event_id, "particles")
        n = s.signal + number_of_tracks(s, rng)
        entry_TA, slope_TA, bend_T = self.tracks(n, rng)
        particles, own = self.crossings(entry_TA, slope_TA, bend_T)
        hidden = (own.layer < s.seed_planes) & ((own.owner > 0) | (not s.signal))
        pixels = joined(own.take(~hidden), self.noise(s.stream(event_id, "noise")))
        first, end = self.windows[pixels.layer].T
        inside = np.ones(len(pixels.layer), dtype=bool)
        for place in self._along(pixels.position):
            inside &= (place >= first) & (place < end)
        return pixel_tables(particles, pixels.take(inside))

    def tracks(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entry [T, A] and slope [T, A] (pixels, and pixels a plane), and bend [T]: pixels a plane squared, along x.

        x_i = entry + slope i + bend i (L - 1 - i); curved tracks that leave the planes are drawn again.
        """
        s = self._settings
        last = s.planes - 1
        first, end = self.windows[0]
        most = 4 * s.sagitta / last**2
        parts: list[tuple[np.ndarray, ...]] = []
        missing = n
        while missing:
            entry, leave = rng.uniform(first, end, (missing, s.axes)), rng.uniform(0, s.pixels, (missing, s.axes))
            bend = rng.uniform(-most, most, missing) if most else np.zeros(missing)
            found = (entry, (leave - entry) / last, bend)
            x = _places(*found, s.planes)[..., 0]
            good = ((x >= 0) & (x < s.pixels)).all(axis=1) if most else np.ones(missing, dtype=bool)
            parts.append(tuple(values[good] for values in found))
            missing -= int(good.sum())
        if not parts:
            return np.zeros((0, s.axes)), np.zeros((0, s.axes)), np.zeros(0)
        entry, slope, bend = (np.concatenate(column) for column in zip(*parts, strict=True))
        return entry, slope, bend

    def crossings(
        self, entry_TA: np.ndarray, slope_TA: np.ndarray, bend_T: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Pixels]:
        """The particles, of 1 GeV each, and the pixel that each turns on in every plane."""
        n, planes = len(entry_TA), self._settings.planes
        place = _places(entry_TA, slope_TA, bend_T, planes)
        plane_TL = np.broadcast_to(np.arange(planes), (n, planes))
        place = np.minimum(place, np.nextafter(float(self._settings.pixels), 0))  # rounding at the far edge
        tangent = np.repeat(slope_TA[:, None, :], planes, axis=1)
        tangent[..., 0] += bend_T[:, None] * (planes - 1 - 2 * plane_TL)
        momentum = _in_space(tangent, 1.0)
        momentum /= np.linalg.norm(momentum, axis=-1, keepdims=True)
        truth = _in_space(place, plane_TL)
        pixel = np.floor(place).astype(np.int64)
        flat = (n * planes, 3)
        owner = np.repeat(np.arange(n), planes)
        centre = _in_space(pixel + 0.5, plane_TL).reshape(flat)
        own = Pixels(
            plane_TL.ravel(),
            self._number(pixel).ravel(),
            owner,
            centre,
            truth=truth.reshape(flat),
            momentum=momentum.reshape(flat),
        )
        at_start = {f"v{axis}": truth[:, 0, k] for k, axis in enumerate("xyz")}
        at_start |= {f"p{axis}": momentum[:, 0, k] for k, axis in enumerate("xyz")}
        return at_start | {"q": np.where(bend_T < 0, -1, 1)}, own

    def noise(self, rng: np.random.Generator) -> Pixels:
        """Pixels behind the seed that are on by chance."""
        s = self._settings
        of_plane = s.pixels**s.axes
        on = np.flatnonzero(rng.random((s.planes - s.seed_planes) * of_plane) < s.pixel_noise)
        plane, number = s.seed_planes + on // of_plane, on % of_plane
        pixel = np.stack([number // s.pixels**k % s.pixels for k in range(s.axes)], axis=1)
        centre = _in_space(pixel + 0.5, plane)
        owner = np.full(len(on), -1)
        return Pixels(plane, number, owner, centre, truth=centre, momentum=np.zeros((len(on), 3)))

    def _number(self, pixel: np.ndarray) -> np.ndarray:
        """Of pixels [..., A], their numbers in the plane."""
        return pixel @ (self._settings.pixels ** np.arange(self._settings.axes))

    def _along(self, position: np.ndarray) -> list[np.ndarray]:
        """Coordinates along the axes of the planes."""
        return [position[:, k] for k in range(self._settings.axes)]


def _places(entry_TA: np.ndarray, slope_TA: np.ndarray, bend_T: np.ndarray, planes: int) -> np.ndarray:
    """Where tracks cross the planes, [T, L, A]."""
    i = np.arange(planes)
    place = entry_TA[:, None, :] + slope_TA[:, None, :] * i[:, None]
    place[..., 0] += bend_T[:, None] * i * (planes - 1 - i)
    return place


def _in_space(along: np.ndarray, z: np.ndarray | float) -> np.ndarray:
    """[..., A] along the axes of planes, and z -> x, y and z; y is 0 where there is one axis."""
    x = along[..., 0]
    y = along[..., 1] if along.shape[-1] > 1 else np.zeros_like(x)
    return np.stack([x, y, np.broadcast_to(np.asarray(z, dtype=float), x.shape)], axis=-1)

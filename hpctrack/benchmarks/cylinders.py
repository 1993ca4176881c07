"""A kind toy: ten cylinders with the radii of TrackML's barrel layers, no modules, no gaps, no inefficiency.

Tracks of pT > 1 GeV from the beam line bend in 2 T and scatter in 2 % of a radiation length at each layer; hits are
smeared by TrackML's pitches / sqrt(12). Noise hits lie anywhere on the cylinders.

Legend: P tracks, L layers.
"""

from __future__ import annotations

import numpy as np

from hpctrack.storage.detector import TRACKML
from hpctrack.storage.schema import FIELD_T, GEV_PER_T_MM, Event

RADII_MM = (32.0, 72.0, 116.0, 172.0, 260.0, 360.0, 500.0, 660.0, 820.0, 1020.0)
PITCH_MM = ((0.05, 0.05625), (0.08, 1.2), (0.12, 10.8))  # around and along the beam: pixels, short and long strips
PITCH_OF = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)
BEAM_SPOT_MM = 5.5  # along z
ETA_MAX = 1.0
PT_MIN_GEV, PT_SCALE_GEV, PT_POWER, PT_MAX_GEV = 1.0, 1.0, 7.0, 100.0  # as simulation/helix.py
SCATTERING_GEV = 0.0136 * 0.02**0.5  # sigma of an angle x p at a layer


def event(tracks: int, noise: float = 0.0, seed: int = 1) -> Event:
    """An event of so many tracks, with the share `noise` of noise among all hits, which are in random order."""
    rng = np.random.default_rng([seed, tracks])
    hits_PL = _hits(tracks, rng)
    n_noise = round(noise / (1 - noise) * tracks * len(RADII_MM))
    layer = rng.integers(0, len(RADII_MM), n_noise)
    radius = np.array(RADII_MM)
    own = np.stack(
        [rng.uniform(-np.pi, np.pi, n_noise), radius[layer] * np.sinh(rng.uniform(-ETA_MAX, ETA_MAX, n_noise))]
    )
    phi, z = np.concatenate([hits_PL.reshape(2, -1), own], axis=1)
    layer = np.append(np.tile(np.arange(len(RADII_MM)), tracks), layer)
    track = np.append(np.repeat(np.arange(tracks), len(RADII_MM)), np.full(n_noise, -1))
    order = rng.permutation(len(layer))
    phi, z, layer, track = phi[order], z[order], layer[order], track[order]
    r = radius[layer]
    volume_of, layer_of = np.array(TRACKML.neighbours).T
    hits = {
        "x": r * np.cos(phi),
        "y": r * np.sin(phi),
        "z": z,
        "r": r,
        "phi": np.remainder(phi + np.pi, 2 * np.pi) - np.pi,
    }
    columns = {name: values.astype(np.float32) for name, values in hits.items()}
    columns |= {"volume_id": volume_of[layer].astype(np.uint8), "layer_id": layer_of[layer].astype(np.uint8)}
    truth = {"particle_row": track.astype(np.int32), "particle_id": track.astype(np.int64) + 1}
    tables = {"hits": columns, "truth": truth, "particles": {"particle_id": np.arange(1, tracks + 1)}}
    return Event(seed, tables)


def _hits(tracks: int, rng: np.random.Generator) -> np.ndarray:
    """Measured phi and z of the tracks on the layers, [2, P, L]."""
    grid = np.geomspace(PT_MIN_GEV, PT_MAX_GEV, 2000)
    density = grid * (1 + grid / PT_SCALE_GEV) ** -PT_POWER
    cdf = np.append(0.0, np.cumsum(np.diff(grid) * (density[1:] + density[:-1]) / 2))
    pt = np.interp(rng.random(tracks) * cdf[-1], cdf, grid)
    bend = rng.choice([-1.0, 1.0], tracks) * GEV_PER_T_MM * FIELD_T / pt  # 1/mm
    heading, eta = rng.uniform(-np.pi, np.pi, tracks), rng.uniform(-ETA_MAX, ETA_MAX, tracks)
    cot = np.sinh(eta)
    x, y, z = np.zeros(tracks), np.zeros(tracks), rng.normal(0, BEAM_SPOT_MM, tracks)
    found = np.empty((2, tracks, len(RADII_MM)))
    for k, radius in enumerate(RADII_MM):
        arc = _arc_to(x, y, heading, bend, radius)
        turned = heading + bend * arc
        x, y = x + (np.sin(turned) - np.sin(heading)) / bend, y - (np.cos(turned) - np.cos(heading)) / bend
        z = z + cot * arc
        around, along = (pitch / 12**0.5 for pitch in PITCH_MM[PITCH_OF[k]])
        found[0, :, k] = np.arctan2(y, x) + rng.normal(0, around, tracks) / radius
        found[1, :, k] = z + rng.normal(0, along, tracks)
        sine = 1 / np.hypot(1, cot)
        sigma = SCATTERING_GEV / (pt / sine) / np.sqrt(sine)  # the path in the layer is longer by 1 / sine
        heading = turned + rng.normal(0, 1, tracks) * sigma / sine
        cot = cot + rng.normal(0, 1, tracks) * sigma / sine**2
    return found


def _arc_to(x: np.ndarray, y: np.ndarray, heading: np.ndarray, bend: np.ndarray, radius: float) -> np.ndarray:
    """Length in the transverse plane from (x, y) to the cylinder, outwards [P]; Newton steps from a straight line."""
    along, square = x * np.cos(heading) + y * np.sin(heading), x**2 + y**2
    arc = -along + np.sqrt(along**2 + radius**2 - square)
    for _ in range(6):  # to rounding
        turned = heading + bend * arc
        px, py = x + (np.sin(turned) - np.sin(heading)) / bend, y - (np.cos(turned) - np.cos(heading)) / bend
        arc = arc - (np.hypot(px, py) - radius) / ((px * np.cos(turned) + py * np.sin(turned)) / np.hypot(px, py))
    return arc

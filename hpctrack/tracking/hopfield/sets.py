"""Named sets of parameters: what was published, and what suits tracks in a field.

`curvature`: for whole detectors, with what was measured of true tracks (segments.py), and walks, since where modules
overlap a track has two hits of a layer. `curvature-barrel`: the same coupling on the ten barrel layers, and chains.

`denby-peterson`: cos^5 / (r + r'), the number of segments held near that of the hits. `aleph`: cos^5 / (d^2 + d'^2), a
constant bias, one temperature. `aleph-annealed`: without lengths, cooled. `strongest`: the same, with one partner on
either side. `alpha-g`: the partner of the largest coupling, and half of temperature and bias from half the steps on.
`fizmat`: no lengths, a loose angle, slow cooling, little damping (hopfield-tracking, for SPD).

Published parameters belong to the lengths of their detectors and to updates one by one; here lengths are in units of
`length_mm`, and all neurons step at a time, damped.
"""

from __future__ import annotations

from typing import Any

ALEPH: dict[str, Any] = {
    "coupling": "cosine",
    "partners": "all",
    "cosine_power": 5.0,
    "length_power": 2.0,
    "cosine_min": 0.9,
    "support": 10.0,
    "competition": 5.0,
    "bias": 0.2,
    "crowding": 0.0,
    "start": 0.5,
    "t_begin": 1.0,
    "t_end": 1.0,
    "steps": 1,
    "rest": 200,
    "damping": 0.5,
    "halving": False,
    "threshold": 0.9,
    "tracks": "chains",
    "min_hits": 4,
}
ANNEALED: dict[str, Any] = {"t_begin": 10.0, "t_end": 1.0, "steps": 60, "rest": 0, "threshold": 0.5}
SETS: dict[str, dict[str, Any]] = {
    "curvature": ALEPH
    | ANNEALED
    | {"coupling": "curvature", "bias": 0.0, "threshold": 0.1, "tracks": "walks", "min_hits": 3},
    "curvature-barrel": ALEPH | ANNEALED | {"coupling": "curvature", "bias": -2.0},
    "denby-peterson": ALEPH | ANNEALED | {"length_power": 1.0, "cosine_min": 0.0, "bias": 0.0, "crowding": 0.001},
    "aleph": ALEPH,
    "aleph-annealed": ALEPH | ANNEALED | {"length_power": 0.0},
    "strongest": ALEPH | ANNEALED | {"length_power": 0.0, "partners": "strongest"},
    "alpha-g": ALEPH
    | {"length_power": 1.0, "partners": "fixed", "t_begin": 10.0, "halving": True, "steps": 20, "rest": 0}
    | {"threshold": 0.6},
    "fizmat": ALEPH
    | {"length_power": 0.0, "cosine_min": 0.45, "support": 2.0, "competition": 1.5, "bias": 0.0, "start": 0.2}
    | {"t_begin": 10.0, "t_end": 0.5, "steps": 60, "rest": 40, "damping": 0.2, "threshold": 0.5},
}

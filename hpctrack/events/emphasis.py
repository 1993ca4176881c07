"""How much each target counts in a loss's means over tracks: more for those that are rare and hard to find."""

from __future__ import annotations

import numpy as np

from hpctrack.config import EmphasisConfig
from hpctrack.events.selection import Selected
from hpctrack.storage.schema import Event

COLUMNS = ["truth.particle_row", "particles.px", "particles.py", "particles.vx", "particles.vy"]


def track_weights(event: Event, chosen: Selected, emphasis: EmphasisConfig) -> np.ndarray:
    """Weights [T] of the targets, at least 1. Hits are those of the whole event, whatever part of it is seen."""
    owner = event.column("truth.particle_row")
    n_hits = np.bincount(owner[owner >= 0], minlength=chosen.particles.max(initial=-1) + 1)[chosen.particles]
    px, py, vx, vy = (event.column(name)[chosen.particles].astype(np.float64) for name in COLUMNS[1:])
    return (
        1.0
        + emphasis.short * (n_hits <= emphasis.short_max_hits)
        + emphasis.displaced * (np.hypot(vx, vy) >= emphasis.displaced_min_mm)
        + emphasis.hard * (np.hypot(px, py) >= emphasis.hard_min_gev)
    )

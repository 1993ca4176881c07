"""Which particles are targets and which hits a model sees: pT cut, noise, number of tracks drawn per event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpctrack.config import AugmentConfig, CurriculumStage, SelectionConfig
from hpctrack.events.kept_hits import KeptHits
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

MOMENTA = ["particles.px", "particles.py", "particles.pz"]
COLUMNS = ["truth.particle_row", *MOMENTA, "hits.volume_id", "hits.phi"]  # what `select` reads


def readable(data: Dataset, columns: Sequence[str]) -> list[str]:
    """Those of a selection's columns that a dataset has; without momenta, ids say how many particles there are."""
    there = [name for name in columns if name in data.columns]
    without_momenta = len(there) < len(columns) and not any(name.startswith("particles.") for name in there)
    return [*there, "particles.particle_id"] if without_momenta else there


@dataclass(frozen=True)
class Selected:
    """What a model sees: `rows` [N] of the event's hit tables, ascending; `track` [N] = 0..T-1, or -1: no target.

    `particles` [T]: row of each track in the event's `particles`.
    """

    rows: np.ndarray
    track: np.ndarray
    particles: np.ndarray

    @property
    def n_tracks(self) -> int:
        """Tracks to be found."""
        return len(self.particles)


@dataclass(frozen=True)
class Draw:
    """What is seen of each event in each epoch: a pure function of (stream, epoch, event id).

    `kept`: which hits there are, None for all.
    """

    selection: SelectionConfig
    stream: tuple[int, ...] = ()
    part: AugmentConfig | None = None
    curriculum: Sequence[CurriculumStage] = ()
    kept: KeptHits | None = None

    def __call__(self, event: Event, epoch: int) -> tuple[Selected, np.random.Generator]:
        """What is seen of `event`, and the generator from which further choices of that epoch are drawn."""
        rng = np.random.default_rng([*self.stream, epoch, event.event_id])
        return select(event, self.in_epoch(epoch), rng, self.part, self.kept), rng

    def in_epoch(self, epoch: int) -> SelectionConfig:
        """The tracks of the epoch's stage of the curriculum; after the last, `selection`."""
        tracks = next((stage.tracks for stage in self.curriculum if epoch < stage.until_epoch), None)
        return self.selection.model_copy(update={"tracks": tracks}) if tracks is not None else self.selection

    def by_chance(self, epoch: int) -> bool:
        """Whether the number of hits is drawn: it may differ from epoch to epoch."""
        sector = self.part is not None and self.part.sector_rad is not None
        return sector or self.in_epoch(epoch).tracks is not None

    @property
    def whole(self) -> Draw:
        """The same, but all tracks of whole events: how many hits that leaves is no matter of chance."""
        return Draw(self.selection.model_copy(update={"tracks": None}), kept=self.kept)

    @property
    def keeps_all(self) -> bool:
        """Whether every hit of every event is seen."""
        chosen = self.selection
        cuts = (chosen.tracks, chosen.volumes, chosen.noise_share)
        all_of_them = chosen.noise and chosen.other_hits and cuts == (None, None, None) and self.kept is None
        return all_of_them and not self.by_chance(0)

    @property
    def columns(self) -> list[str]:
        """The columns that the choice needs."""
        volumes = ["hits.volume_id"] if self.selection.volumes is not None else []
        sector = ["hits.phi"] if self.part is not None and self.part.sector_rad is not None else []
        return ["truth.particle_row", *MOMENTA[: 2 if self.selection.eta_max is None else 3], *volumes, *sector]


def target_particles(
    event: Event,
    pt_min_gev: float = 0.0,
    min_hits: int = 3,
    seen: np.ndarray | None = None,
    eta_max: float | None = None,
) -> np.ndarray:
    """Particles to be found, bool [P]: pT >= the cut (GeV), >= `min_hits` hits in the event, |eta| <= `eta_max`.

    `seen` [N]: hits that count, default all.
    """
    row = event.column("truth.particle_row")
    row = row if seen is None else row[seen]
    enough = np.bincount(row[row >= 0], minlength=event.n_particles) >= min_hits
    if pt_min_gev <= 0 and eta_max is None:
        return enough
    pt = np.hypot(event.column("particles.px").astype(np.float64), event.column("particles.py"))
    enough &= pt >= pt_min_gev
    if eta_max is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            enough &= np.abs(np.arcsinh(event.column("particles.pz") / pt)) <= eta_max
    return enough


def draw_rows(
    event: Event, drawn: np.ndarray, background: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows of all hits of the `drawn` particles (bool [P]) and a random `fraction` of the `background` (bool [N])."""
    row = event.column("truth.particle_row")
    keep = (row >= 0) & drawn[row]  # row -1 reads the last particle; the first factor removes it
    if fraction < 1:
        background = background & (rng.random(len(row)) < fraction)
    return np.flatnonzero(keep | background)


def thin_noise(rows: np.ndarray, noise: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """`rows` [N] without so much of the `noise` (bool [N]), at random, that it is more than `share` of what is left."""
    wanted = round(share / (1 - share) * np.count_nonzero(~noise))
    surplus = np.count_nonzero(noise) - wanted
    return np.delete(rows, rng.choice(np.flatnonzero(noise), surplus, replace=False)) if surplus > 0 else rows


def existing(event: Event, selection: SelectionConfig, kept: KeptHits | None) -> np.ndarray | None:
    """Hits that are kept and in the chosen volumes, bool [N]; None for all."""
    seen = None if kept is None else kept(event)
    if selection.volumes is None:
        return seen
    inside = np.isin(event.column("hits.volume_id"), selection.volumes)
    return inside if seen is None else inside & seen


def in_sector(event: Event, sector_rad: float, rng: np.random.Generator) -> np.ndarray:
    """Hits in a random sector of phi, bool [N]."""
    return (event.column("hits.phi") - rng.uniform(0, 2 * np.pi)) % (2 * np.pi) < sector_rad


def select(
    event: Event,
    selection: SelectionConfig,
    rng: np.random.Generator,
    part: AugmentConfig | None = None,
    kept: KeptHits | None = None,
) -> Selected:
    """Apply `selection` to the `kept` hits of one event, or to a random sector and some hits outside, as `part` says.

    Hits that are not kept, or outside of the chosen volumes or of the sector, do not exist: a particle's track is what
    is left of it. Drawing fewer tracks than there are thins the background (noise, and hits of other particles where
    these are kept) by the same fraction, so that the densities keep their ratio. Then noise is thinned to
    `noise_share`. Hits that stay `outside` of the sector are of no track: without them, a model never learns that hits
    at other azimuths are others.
    """
    seen = existing(event, selection, kept)
    if part is None or part.sector_rad is None:
        return select_in(event, selection, rng, seen)
    inside = in_sector(event, part.sector_rad, rng)
    in_it, beyond = (mask if seen is None else mask & seen for mask in (inside, ~inside))
    near = select_in(event, selection, rng, in_it)
    if not part.outside:
        return near
    far_rows = select_in(event, selection, rng, beyond).rows
    far_rows = far_rows[rng.random(len(far_rows)) < part.outside]
    rows, track = np.append(near.rows, far_rows), np.append(near.track, np.full(len(far_rows), -1))
    order = np.argsort(rows)
    return Selected(rows[order], track[order], near.particles)


def select_in(event: Event, selection: SelectionConfig, rng: np.random.Generator, seen: np.ndarray | None) -> Selected:
    """Apply `selection` to the hits `seen` (bool [N], default all)."""
    row = event.column("truth.particle_row")
    target = target_particles(event, selection.pt_min_gev, selection.min_hits, seen, selection.eta_max)
    drawn, fraction = target, 1.0
    if selection.tracks is not None and selection.tracks < target.sum():
        chosen = rng.choice(np.flatnonzero(target), selection.tracks, replace=False)
        drawn = np.zeros_like(target)
        drawn[chosen] = True
        fraction = selection.tracks / target.sum()
    noise = row < 0
    background = np.zeros_like(noise)
    if selection.noise:
        background |= noise
    if selection.other_hits and len(target):
        background |= ~noise & ~target[row]
    if not len(target):
        rows = np.flatnonzero(background if seen is None else background & seen)
        return Selected(rows, np.full(len(rows), -1), np.zeros(0, dtype=np.int64))
    rows = draw_rows(event, drawn, background, fraction, rng)
    rows = rows if seen is None else rows[seen[rows]]
    if selection.noise_share is not None:
        rows = thin_noise(rows, row[rows] < 0, selection.noise_share, rng)
    number = np.full(len(target), -1)
    number[drawn] = np.arange(drawn.sum())
    track = np.where(row[rows] >= 0, number[row[rows]], -1)
    return Selected(rows, track, np.flatnonzero(drawn))

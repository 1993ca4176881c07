"""The event display: an event's hits in x-y and in r-z, coloured by track, with what went wrong marked.

Drawn are the exclusive tracks (one a hit) of at least 3 hits. A track is matched, a particle found or missed, as in
evaluation/metrics.py. Hits and lines become one image a view, so a page with 100k hits stays small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hpctrack.evaluation.matching import exclusive_lists, match
from hpctrack.evaluation.metrics import counted, matched, particles_of
from hpctrack.evaluation.tally import Cuts
from hpctrack.reporting.plots import INK, MUTED, RED, TRACK_COLOURS, png, styled, svg
from hpctrack.storage.schema import Candidates, Event

TARGETS_ONLY_HITS = 4_000  # from here on only tracks of targets are coloured, unless told otherwise
NO_OTHERS_HITS = 20_000  # and from here on the other hits are left out altogether
CROWDED_TARGETS = 150  # with more targets, a sector with about SECTOR_TARGETS of them is drawn as well
SECTOR_TARGETS = 50
SHORT, LONG = (5.6, 5.2), (9.2, 5.2)  # inches: x-y, r-z
GREY = "#b9c0c9"


@dataclass(frozen=True)
class Display:
    """What is drawn of one event: positions in mm, and the hits of each kind."""

    event_id: int
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    tracks: list[np.ndarray]  # right hits of each matched track, by distance from the origin
    colours: list[str]  # of the tracks
    wrong: list[np.ndarray]  # hits of each matched track that belong to another particle or to noise
    fakes: list[np.ndarray]  # hits of each unmatched track
    missed: list[np.ndarray]  # hits of each target particle without a matched track
    others: np.ndarray  # hits drawn in grey
    targets_only: bool
    n_targets: int
    in_sector: bool = False

    @property
    def n_drawn(self) -> int:
        """Hits on the picture."""
        lists = (*self.tracks, *self.wrong, *self.fakes, *self.missed, self.others)
        return sum(map(len, lists))

    def others_text(self) -> str:
        """What the grey hits are."""
        if self.targets_only:
            return f"other hit: noise, or of a particle that is no target ({len(self.others):,})"
        return f"hit in no track ({len(self.others):,})"


def make_display(event: Event, candidates: Candidates, cuts: Cuts, targets_only: bool | None = None) -> Display:
    """Sort the hits of an event into what the display shows.

    `targets_only` leaves out the tracks of particles that are no targets; None decides by the number of hits.
    """
    x, y, z = (event.column(f"hits.{axis}").astype(np.float64) for axis in "xyz")
    row = event.column("truth.particle_row")
    targets_only = len(x) > TARGETS_ONLY_HITS if targets_only is None else targets_only
    target = cuts.targets(event)
    offsets, rows = exclusive_lists(candidates.track_ids)
    found = match(offsets, rows, row, len(target))
    is_match, look = matched(found), counted(found)
    distance = np.sqrt(x * x + y * y + z * z)
    wanted = is_match & np.append(target, False)[found.majority] if targets_only else is_match
    tracks, wrong = [], []
    for track in np.flatnonzero(wanted):
        hits = rows[offsets[track] : offsets[track + 1]]
        right = row[hits] == found.majority[track]
        tracks.append(_outwards(hits[right], distance))
        wrong.append(hits[~right])
    fakes = [_outwards(rows[offsets[t] : offsets[t + 1]], distance) for t in np.flatnonzero(look & ~is_match)]
    missed = np.flatnonzero(target & ~particles_of(found, is_match))
    missed_hits = [_outwards(hits, distance) for hits in hits_of(row, missed)]
    is_other = np.full(len(x), len(x) <= NO_OTHERS_HITS or not targets_only)
    for hits in (*tracks, *wrong, *fakes, *missed_hits):
        is_other[hits] = False
    return Display(
        event.event_id,
        *(x, y, z),
        tracks=tracks,
        colours=colours_of(tracks, x, y),
        wrong=wrong,
        fakes=fakes,
        missed=missed_hits,
        others=np.flatnonzero(is_other),
        targets_only=targets_only,
        n_targets=int(target.sum()),
    )


def sector(display: Display) -> tuple[Display, float]:
    """The part around the x axis with about SECTOR_TARGETS targets, and its opening angle in degrees."""
    width = min(360.0, 360.0 * SECTOR_TARGETS / max(display.n_targets, 1))
    azimuth = np.degrees(np.abs(np.arctan2(display.y, display.x)))
    x, y = display.x, display.y

    def inside(hits: np.ndarray) -> bool:
        return bool(len(hits)) and abs(np.degrees(np.arctan2(y[hits].sum(), x[hits].sum()))) < width / 2

    kept = [k for k, hits in enumerate(display.tracks) if inside(hits)]
    part = replace(
        display,
        tracks=[display.tracks[k] for k in kept],
        colours=[display.colours[k] for k in kept],
        wrong=[display.wrong[k] for k in kept],
        fakes=[hits for hits in display.fakes if inside(hits)],
        missed=[hits for hits in display.missed if inside(hits)],
        others=display.others[azimuth[display.others] < width / 2],
        in_sector=True,
    )
    return part, width


def _outwards(hits: np.ndarray, distance: np.ndarray) -> np.ndarray:
    return hits[np.argsort(distance[hits], kind="stable")]


def hits_of(particle_row: np.ndarray, particles: np.ndarray) -> list[np.ndarray]:
    """The hits of each of the `particles` (rows)."""
    order = np.argsort(particle_row, kind="stable")
    sorted_rows = particle_row[order]
    first, last = (np.searchsorted(sorted_rows, particles, side) for side in ("left", "right"))
    return [order[a:b] for a, b in zip(first, last, strict=True)]


def colours_of(tracks: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[str]:
    """A colour a track, such that neighbours in azimuth differ."""
    azimuth = np.array([np.arctan2(y[hits].sum(), x[hits].sum()) for hits in tracks])
    place = np.argsort(np.argsort(azimuth, kind="stable"), kind="stable")
    return [TRACK_COLOURS[k % len(TRACK_COLOURS)] for k in place]


@styled
def display_svgs(display: Display) -> tuple[str, str]:
    """The x-y and the r-z view as data URIs."""
    uris = []
    for size, draw in ((SHORT, draw_xy), (LONG, draw_rz)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), display)
        uris.append(svg(figure, dpi=150))
    return uris[0], uris[1]


@styled
def display_png(display: Display, title: str = "") -> bytes:
    """Both views beside each other with a legend, as a PNG for a README or a talk."""
    figure = Figure(figsize=(SHORT[0] + LONG[0], SHORT[1] + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(SHORT[0], LONG[0]))
    draw_xy(left, display)
    draw_rz(right, display)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.legend(handles=legend_handles(display), loc="outside lower center", ncols=5, fontsize=10.5)
    return png(figure, dpi=130)


def draw_xy(axes: Axes, display: Display) -> None:
    """The view along the beam; a sector is stretched across."""
    _draw(axes, display, display.x / 1000, display.y / 1000)
    if display.in_sector:
        hits = np.concatenate([np.zeros(1, dtype=np.int64), *display.tracks, *display.fakes, *display.missed])
        half = 1.1e-3 * np.abs(display.y[hits]).max()
        axes.set_xlim(0, 1.06)
        axes.set_ylim(-half, half)
    else:
        axes.set_aspect("equal")
        axes.set_xlim(-1.06, 1.06)
        axes.set_ylim(-1.06, 1.06)
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)", labelpad=0)


def draw_rz(axes: Axes, display: Display) -> None:
    """Distance from the beam against position along it."""
    _draw(axes, display, display.z / 1000, np.hypot(display.x, display.y) / 1000)
    reach = 1.03 * max(np.abs(display.z).max(initial=0) / 1000, 0.5)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 1.06)
    axes.set_xlabel("z (m)")
    axes.set_ylabel("r (m)")


def _draw(axes: Axes, display: Display, u: np.ndarray, v: np.ndarray) -> None:
    crowd = np.clip(1200 / max(display.n_drawn - len(display.others), 1), 0.02, 1)  # fuller events: smaller symbols
    dot, line = 24 * crowd**0.6, 1.3 * crowd**0.4
    grey = 9 * min(1.0, 1500 / max(len(display.others), 1)) ** 0.5
    mark = max(dot, 4)
    axes.scatter(u[display.others], v[display.others], s=grey, c=GREY, lw=0, zorder=-9)
    paths = [np.column_stack([u[hits], v[hits]]) for hits in display.tracks]
    axes.add_collection(LineCollection(paths, colors=display.colours, lw=line, alpha=0.3 + 0.35 * crowd, zorder=-8))
    if display.tracks:
        hits = np.concatenate(display.tracks)
        colours = np.repeat(display.colours, [len(track) for track in display.tracks])
        axes.scatter(u[hits], v[hits], s=dot, c=colours, lw=0, zorder=-7)
    for kind, colour, dash, marker in ((display.missed, INK, "--", "o"), (display.fakes, RED, ":", "s")):
        for hits in kind:
            axes.plot(u[hits], v[hits], dash, color=colour, lw=max(line, 0.7), zorder=-6)
            axes.scatter(u[hits], v[hits], s=mark, marker=marker, c="white", edgecolors=colour, lw=0.8, zorder=-5)
    wrong = np.concatenate([np.zeros(0, dtype=np.int64), *display.wrong])
    axes.scatter(u[wrong], v[wrong], s=1.6 * mark, marker="x", c=RED, lw=0.5 + 0.7 * crowd, zorder=-4)
    axes.set_rasterization_zorder(0)  # everything above becomes one image, the axes stay vectors
    axes.tick_params(length=3)


def legend_handles(display: Display) -> list[Line2D]:
    """Symbols and their meaning, with counts."""

    def handle(label: str, **options: Any) -> Line2D:  # as Line2D takes them
        return Line2D([], [], label=label, **{"ls": "", "ms": 6, **options})

    wrong = sum(map(len, display.wrong))
    handles = [
        handle(f"matched track ({len(display.tracks):,})", marker="o", ls="-", lw=1.2, color=TRACK_COLOURS[0]),
        handle(f"wrong hit in it ({wrong:,})", marker="x", color=RED),
        handle(f"fake track ({len(display.fakes):,})", marker="s", ls=":", color=RED, mfc="white"),
        handle(f"missed target ({len(display.missed):,})", marker="o", ls="--", color=INK, mfc="white"),
    ]
    if len(display.others):
        handles.append(handle(display.others_text(), marker="o", ms=3.5, color=GREY, mec=MUTED, mew=0))
    return handles

"""What kinds of tracks a dataset's events hold: `hpctrack inspect DATA --statistics`, to hold two datasets together.

Particles with MIN_HITS hits or more count. Their hits are those in the event, whatever `nhits` says; direction,
momentum and place are those of their creation. P particles, H hits. Units: mm, GeV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.evaluation.kinds import particle_kinematics
from hpctrack.evaluation.metrics import fraction
from hpctrack.formats.known_formats import TrackmlFormat
from hpctrack.storage import store
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.schema import Event

MIN_HITS = 3
PROMPT_MM = 0.1  # a vertex closer to the beam line is a collision's: eight sigma of TrackML's beam spot
COLUMNS = (
    "hits.volume_id",
    "hits.layer_id",
    "truth.particle_row",
    *(f"particles.{name}" for name in ("vx", "vy", "vz", "px", "py", "pz")),
)

FEWER = {f"fewer than {n} hits": n for n in (5, 7, 9)}
CREATED_R = {f"created at r > {r} mm": r for r in (5, 30, 100)}
CREATED_Z = {"created at abs(z) > 200 mm": 200}
HARD = {f"pT > {pt} GeV": pt for pt in (1, 5, 20)}


@dataclass(frozen=True)
class Region:
    """Particles of a direction and a transverse momentum."""

    name: str
    eta_max: float
    pt_min_gev: float = 0.0


REGIONS = (
    Region("abs(eta) < 1", 1.0),
    Region("abs(eta) < 4", 4.0),
    Region("abs(eta) < 1, pT > 1 GeV", 1.0, 1.0),
    Region("abs(eta) < 4, pT > 1 GeV", 4.0, 1.0),
)


@dataclass
class _Tally:
    """What has been counted in one region, over events."""

    particles: list[int] = field(default_factory=list)  # of each event
    pt: list[np.ndarray] = field(default_factory=list)  # [P] of each event
    shares: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    second_hits: int = 0
    prompt_z: list[np.ndarray] = field(default_factory=list)

    def add(self, table: _Particles, region: Region) -> None:
        chosen = (table.n_hits >= MIN_HITS) & (np.abs(table.eta) < region.eta_max) & (table.pt > region.pt_min_gev)
        n_hits, r, z, pt = (values[chosen] for values in (table.n_hits, table.r, table.z, table.pt))
        self.particles.append(len(pt))
        self.pt.append(pt)
        found = {name: n_hits < n for name, n in FEWER.items()}
        found |= {name: r > least for name, least in CREATED_R.items()}
        found |= {name: np.abs(z) > least for name, least in CREATED_Z.items()}
        found |= {name: pt > least for name, least in HARD.items() if least > region.pt_min_gev}
        for name, where in found.items():
            self.shares[name] = self.shares.get(name, 0) + int(np.count_nonzero(where))
        self.hits += int(n_hits.sum())
        self.second_hits += int((table.n_hits - table.n_layers)[chosen].sum())
        self.prompt_z.append(np.unique(z[r < PROMPT_MM]))

    def facts(self) -> dict[str, Any]:
        """Name of the quantity -> value, error, and what they were made of; None for what cannot be said."""
        n, pt, z = sum(self.particles), np.concatenate(self.pt), np.concatenate(self.prompt_z)
        counts = np.array(self.particles, float)
        out: dict[str, Any] = {
            "particles an event": {
                "value": float(counts.mean()),
                "error": float(counts.std(ddof=1) / math.sqrt(len(counts))) if len(counts) > 1 else None,
                "numerator": n,
                "denominator": len(counts),
            },
            "median pT, GeV": _median(pt),
        }
        out |= {name: fraction(count, n) for name, count in self.shares.items()}
        out["second hits on a layer, of hits"] = fraction(self.second_hits, self.hits)
        # Half the width of the middle 68 %: the few decays on the beam line far from any collision do not move it.
        sigma = float(np.diff(np.quantile(z, (0.1587, 0.8413)))[0]) / 2 if len(z) > 1 else None
        error = None if sigma is None else 0.96 * sigma / math.sqrt(len(z))
        out["sigma z of prompt vertices, mm"] = {"value": sigma, "error": error, "denominator": len(z)}
        return out


def _median(values: np.ndarray) -> dict[str, float | int | None]:
    """The median; its error is half the distance of the order statistics at n/2 -+ sqrt(n)/2."""
    n = len(values)
    if not n:
        return {"value": None, "error": None, "denominator": 0}
    ordered, half = np.sort(values), math.sqrt(n) / 2
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return {"value": float(np.median(ordered)), "error": float(ordered[high] - ordered[low]) / 2, "denominator": n}


@dataclass(frozen=True)
class _Particles:
    """[P] each: a particle's hits, the layers they are on, and how it was created."""

    n_hits: np.ndarray
    n_layers: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    r: np.ndarray
    z: np.ndarray

    @classmethod
    def of(cls, event: Event) -> _Particles:
        vx, vy, vz = (event.column(f"particles.{name}").astype(np.float64) for name in ("vx", "vy", "vz"))
        n, row = len(vx), event.column("truth.particle_row").astype(np.int64)
        layer = event.column("hits.volume_id").astype(np.int64) * 256 + event.column("hits.layer_id")
        signal = row >= 0
        passed = np.unique(row[signal] * 65536 + layer[signal]) // 65536
        pt, eta = particle_kinematics(event)
        n_hits, n_layers = (np.bincount(rows, minlength=n) for rows in (row[signal], passed))
        return cls(n_hits, n_layers, pt, eta, np.hypot(vx, vy), vz)


def statistics(path: Path) -> dict[str, Any]:
    """Statistics of a dataset or of TrackML's CSV files: counts of events and hits, and a table a region.

    InputError for what is neither, or has no truth.
    """
    tallies = {region.name: _Tally() for region in REGIONS}
    n_events = n_hits = n_noise = 0
    for event in _events(path):
        row = event.column("truth.particle_row")
        n_events, n_hits = n_events + 1, n_hits + len(row)
        n_noise += int(np.count_nonzero(row < 0))
        table = _Particles.of(event)
        for region in REGIONS:
            tallies[region.name].add(table, region)
    if n_noise == n_hits:
        raise InputError(f"{path}: no hit belongs to a particle; statistics are of events with truth")
    facts = {"events": n_events, "hits": n_hits, "noise": fraction(n_noise, n_hits)}
    return facts | {"min_hits": MIN_HITS, "regions": {name: tally.facts() for name, tally in tallies.items()}}


def _events(path: Path) -> Iterator[Event]:
    """All events of a dataset, or of a folder or zip of TrackML files."""
    if (path / INDEX).is_file():
        dataset = store.open_dataset(path)
        yield from (dataset.read(i, COLUMNS) for i in range(len(dataset)))
        return
    reader = TrackmlFormat(TrackmlFormat.Options()).open(path)
    for event_id in reader.event_ids():
        yield from reader.read(event_id)


def statistics_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """Datasets side by side (name -> `statistics`), a table a region; a value stands with its error."""
    names = list(found)
    head = [["", *names]]
    head.append(["events", *(f"{facts['events']:,}" for facts in found.values())])
    head.append(["hits an event", *(f"{facts['hits'] / facts['events']:,.0f}" for facts in found.values())])
    head.append(["noise, of hits", *(_number(facts["noise"]) for facts in found.values())])
    out = [*_columns(head), f"Particles with at least {MIN_HITS} hits:"]
    for region in REGIONS:
        tables = [facts["regions"][region.name] for facts in found.values()]
        rows = [[name, *(_number(table[name]) for table in tables)] for name in tables[0]]
        out += ["", *_columns([[region.name, *names], *rows])]
    return out


def _number(number: dict[str, Any]) -> str:
    value, error = number["value"], number.get("error")
    if value is None:
        return "-"
    digits = max(0, 1 - math.floor(math.log10(error))) if error else 4
    digits = min(digits, 5) if value < 100 else 0
    return f"{value:,.{digits}f}" + (f" ± {error:,.{digits}f}" if error is not None else "")


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return ["  ".join(text.ljust(w) for text, w in zip(row, wide, strict=True)).rstrip() for row in table]

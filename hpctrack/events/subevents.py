"""Sub-events: disjoint random groups of an event's tracks as events of their own, as the influencer paper trains on.

A sub-event keeps every hit of its tracks and, unless removed, a random part of the noise: as large as the part of the
tracks that was drawn, so that the density of noise keeps its ratio to that of tracks. Hits of other particles go.
Source: D. Murnane, "Influencer Loss", CHEP 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpctrack.errors import InputError
from hpctrack.events.selection import draw_rows, target_particles
from hpctrack.storage import schema
from hpctrack.storage.detector import TEXT
from hpctrack.storage.store import Dataset

MAX_DRAWS = 1000  # a sub-event's id is 1000 * the event's id + the number of the draw


@dataclass
class SubEventReader:
    """Disjoint groups of `tracks` target particles (0: all in one group), up to `draws` an event (None: all).

    The dataset has truth and, for a cut on it, momenta.
    """

    dataset: Dataset
    tracks: int
    draws: int | None
    pt_min_gev: float
    min_hits: int
    remove_noise: bool
    seed: int
    eta_max: float | None = None

    def event_ids(self) -> list[int]:
        """The dataset's."""
        return self.dataset.event_ids.tolist()

    def origin(self) -> dict[str, object]:
        """What is drawn, from what; `eta_max`, which came later, only where it cuts: digests are those of before it."""
        options = {key: value for key, value in vars(self).items() if key != "dataset"}
        if self.eta_max is None:
            del options["eta_max"]
        return {"kind": "sub-events", "of": self.dataset.fingerprint, **options}

    @property
    def field_t(self) -> float | None:
        """The dataset's."""
        return self.dataset.attributes.get("field_t")

    @property
    def detector(self) -> str | None:
        """What the dataset says."""
        return self.dataset.attributes.get(TEXT)

    def stamp(self, event_id: int) -> tuple[object, int]:
        """The event, the dataset's content and all options; the event's hits."""
        place = int(np.searchsorted(self.dataset.event_ids, event_id))
        stamp: list[object] = [self.origin(), event_id]
        if lacks := sorted(self.dataset.lacks):
            stamp.append(lacks)
        return stamp, int(self.dataset.n_hits[place])

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The sub-events of one event; InputError if it is damaged or its sub-events cannot be numbered."""
        columns = schema.stored_columns(self.dataset.lacks)  # without the zeros that older datasets have for the others
        event = self.dataset.read(int(np.searchsorted(self.dataset.event_ids, event_id)), columns, verify=True)
        target = target_particles(event, self.pt_min_gev, self.min_hits, eta_max=self.eta_max)
        order = np.random.default_rng([self.seed, event_id]).permutation(np.flatnonzero(target))
        size = self.tracks or max(1, len(order))
        groups = len(order) // size
        if self.draws is not None:
            groups = min(groups, self.draws)
        where = f"{self.dataset.folder}: event {event_id}"
        if groups > MAX_DRAWS:
            raise InputError(f"{where}: {groups} draws, at most {MAX_DRAWS} are possible; set --draws")
        if event_id > (np.iinfo(np.int64).max - MAX_DRAWS) // MAX_DRAWS:
            raise InputError(f"{where}: the ids of its sub-events ({MAX_DRAWS} * id + draw) exceed 64 bits")
        noise = event.column("truth.particle_row") < 0
        for draw in range(groups):
            drawn = np.zeros(len(target), dtype=bool)
            drawn[order[draw * size : (draw + 1) * size]] = True
            rng = np.random.default_rng([self.seed, event_id, draw])
            rows = draw_rows(event, drawn, noise & (not self.remove_noise), size / len(order), rng)
            yield sub_event(event, MAX_DRAWS * event_id + draw, rows, drawn)


def sub_event(event: schema.Event, event_id: int, rows: np.ndarray, drawn: np.ndarray) -> schema.Event:
    """The hits `rows` (ascending) and the particles `drawn` (bool [P]) of an event, under a new id."""
    tables = {t: {c: values[rows] for c, values in event.tables.get(t, {}).items()} for t in schema.HIT_TABLES}
    tables["particles"] = {c: values[drawn] for c, values in event.tables["particles"].items()}
    new_row = np.where(drawn, np.cumsum(drawn) - 1, -1).astype(np.int32)
    row = tables["truth"]["particle_row"]
    tables["truth"]["particle_row"] = np.where(row >= 0, new_row[row], np.int32(-1)) if len(new_row) else row
    return schema.Event(event_id, tables, event.field_t)

"""Simulated events straight into a dataset: of sources with a detector of their own, which have no files of cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpctrack.formats.tables import event_of, rows_of
from hpctrack.simulation.run import Simulation
from hpctrack.simulation.settings import Settings
from hpctrack.storage import schema
from hpctrack.storage.detector import UNKNOWN

CONTENT = 1  # changes with what the sources make of the same settings
LACKS = frozenset(schema.PARTS["cells"])


@dataclass
class SimulatedReader:
    """Events that are made where they would be read (formats/conversion.py, Reader)."""

    settings: Settings
    ids: range

    def event_ids(self) -> list[int]:
        """Those that were asked for."""
        return list(self.ids)

    def origin(self) -> dict[str, object]:
        """All that the events follow from, besides their ids."""
        return {"kind": "simulation", "truth": True, "settings": self.settings.as_dict()}

    @property
    def field_t(self) -> float:
        """The magnetic field of the settings, Tesla."""
        return self.settings.field_t

    @property
    def detector(self) -> str:
        """Nothing is known of it: these sources have detectors of their own."""
        return UNKNOWN

    def stamp(self, event_id: int) -> tuple[object, int]:
        """The settings and the event; all have the same size."""
        return [CONTENT, self.settings.as_dict(), event_id], 1

    @cached_property
    def _simulation(self) -> Simulation:
        return Simulation(self.settings)

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event, with the columns that CSV files of it would give (positions to float32)."""
        tables = self._simulation.tables(event_id)
        hits = {**tables["hits"], **{axis: tables["hits"][axis].astype(np.float32) for axis in "xyz"}}
        owner = tables["truth"]["particle_id"]
        truth = {**tables["truth"], "particle_row": rows_of(owner, tables["particles"]["particle_id"])}
        yield event_of(event_id, {**tables, "hits": hits, "truth": truth, "cells": {}}, LACKS)

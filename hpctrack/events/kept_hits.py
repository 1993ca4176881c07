"""The hits that an earlier stage, a hit filter, has kept: written (storage/hits.py), or passed on in memory.

To a model the other hits do not exist: a selection begins with those that are kept, and a particle's track is what is
left of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpctrack.config import KeptConfig
from hpctrack.errors import InputError
from hpctrack.storage.hits import HITS, Hits, HitStore
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

HITS_DIGEST = "hits_digest"  # attribute of what a stage makes: of the store whose hits it saw, or
PASSED_ON = "passed on"  # from the stage before it


class KeptHits:
    """Says of an event which of its hits there are."""

    identity: str  # of all that is kept of a dataset's events, to tell filters apart

    def __call__(self, event: Event) -> np.ndarray:
        """Hits that are kept, bool [N], of an event with N hits."""
        raise NotImplementedError


class StoredHits(KeptHits):
    """The hits in the folder that `config` names, of the dataset in `folder`.

    InputError if they are not there, or of another dataset; `instead`: what else can be done where they are not there.
    """

    def __init__(self, config: KeptConfig, folder: Path, data: Dataset, instead: str = "") -> None:
        path = HITS.folder_of(config.stored, folder)
        try:
            self.store = HitStore(path)
        except InputError as error:
            run = f"hpctrack infer --checkpoint FILTER --data {folder} --out {path}"
            raise InputError(f"{error}; a hit filter writes it ({run}){instead}") from None
        self.store.check_made_for(folder, data.fingerprint)
        self.score_min = config.score_min
        self.identity = f"{self.store.digest} from {config.score_min}"

    def __call__(self, event: Event) -> np.ndarray:
        """Hits that are kept, bool [N]."""
        return kept_of(event, self.store.of_event(event.event_id), self.score_min)


def stored_hits(config: KeptConfig | None, folder: str | Path, data: Dataset, instead: str = "") -> StoredHits | None:
    """The kept hits that the section `hits` names; None if there is no such section, and so all hits."""
    return None if config is None else StoredHits(config, Path(folder), data, instead)


class PassedHits(KeptHits):
    """As StoredHits, of the one event whose kept hits are `found`."""

    identity = PASSED_ON  # not known before its turn comes, so nobody counts what is left of an event
    found: Hits  # of the event that is asked for next

    def __init__(self, score_min: float) -> None:
        self.score_min = score_min

    def __call__(self, event: Event) -> np.ndarray:
        """Hits that are kept, bool [N]."""
        return kept_of(event, self.found, self.score_min)


def kept_of(event: Event, found: Hits, score_min: float) -> np.ndarray:
    """The hits of an event that are `found` with a score of at least `score_min`, bool [N]."""
    kept, rows = np.zeros(event.n_hits, dtype=bool), found.row[found.score >= score_min]
    if len(rows) and rows[-1] >= len(kept):
        raise InputError(
            f"event {event.event_id}: hit {rows[-1]} is kept, but there are {len(kept)}; run the filter again"
        )
    kept[rows] = True
    return kept

"""The exact sizes of a run's events, counted by all its ranks together and known to each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpctrack.events import sizes
from hpctrack.events.selection import Draw
from hpctrack.events.sizes import Sizes
from hpctrack.parallel.collectives import run_on_all, run_on_main
from hpctrack.parallel.env import Env
from hpctrack.storage.store import Dataset


class SizeTable:
    """Sizes of the events of `data` under `draw`. What is made here and `in_epoch` are called by all ranks together.

    `whole`: before anything is drawn. They are looked for in `folders`, counted if they are not there, and kept in the
    first one that can be written; in memory otherwise. `alive` is told what is being done. With `key`, the selection's,
    InputError if no event has a target.
    """

    def __init__(
        self,
        data: Dataset,
        draw: Draw,
        env: Env,
        folders: list[Path],
        alive: Callable[[str], None] | None = None,
        *,
        key: str | None = None,
    ) -> None:
        self.data, self.draw, self.env, self.alive = data, draw, env, alive
        self.files = [sizes.place(folder, data, draw) for folder in folders]
        self.kept: Path | None = None
        found = run_on_main(self._load, env)
        self.whole = found or self._count(draw.whole, 0)
        if not found:
            run_on_main(self.keep, env)
        self._drawn: dict[int, Sizes] = {}
        if key and len(data) and not self.whole.targets.any():
            run_on_main(lambda: self._refuse(key), env)

    def _load(self) -> Sizes | None:
        for path in self.files:
            found = sizes.load(path, self.data, self.draw)
            if found:
                self.kept = path
                return found
        return None

    def _count(self, draw: Draw, epoch: int) -> Sizes:
        """Each rank counts its share of the events."""
        rank, world = self.env.rank, self.env.world
        mine = range(rank, len(self.data), world)
        parts = run_on_all(lambda: sizes.count(self.data, draw, epoch, mine, self.alive), self.env)
        counts = np.zeros((len(self.data), 2), dtype=np.int64)
        for other, part in enumerate(parts):
            counts[other::world] = part
        return Sizes(*counts.T)

    def keep(self) -> None:
        """Write `whole` where there is room for it, unless it is kept already; on one rank."""
        for path in self.files if self.kept is None else ():
            if not path.parent.parent.is_dir():
                continue
            try:
                sizes.keep(path, self.whole, self.data, self.draw)
            except OSError:  # a folder that is read-only, or full: the next one, or none, and a later run counts again
                continue
            self.kept = path
            return

    def _refuse(self, key: str) -> None:
        raise sizes.nothing_left(self.data, self.draw, sizes.key_of(key))

    @property
    def expected(self) -> np.ndarray:
        """Hits of each event, float [n_events]: exact where nothing is drawn, else the mean of what is drawn."""
        hits, tracks = self.whole.hits.astype(np.float64), self.draw.selection.tracks
        if tracks is not None:
            hits = hits * np.minimum(1.0, tracks / np.maximum(self.whole.targets, 1))
        return hits * (self.draw.part.share if self.draw.part is not None else 1.0)

    def in_epoch(self, epoch: int) -> Sizes:
        """The sizes in an epoch, exact."""
        if not self.draw.by_chance(epoch):
            return self.whole
        if epoch not in self._drawn:
            self._drawn[epoch] = self._count(self.draw, epoch)
        return self._drawn[epoch]

    def forget_before(self, epoch: int) -> None:
        """Drop the sizes of earlier epochs."""
        self._drawn = {known: found for known, found in self._drawn.items() if known >= epoch}

    def check(self, epoch: int, rows: np.ndarray, hits: list[int]) -> None:
        """InputError for the first event of a batch whose `hits` are not those that were counted."""
        sizes.check(self.data, self.data.event_ids[rows], hits, self.in_epoch(epoch).hits[rows])

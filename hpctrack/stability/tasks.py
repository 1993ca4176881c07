"""Work in pieces that ranks share and that a kill does not lose: each piece that is done is a line in a journal.

A piece is computed by one rank alone, so its result does not depend on how many there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.jsonlines import Lines, read_lines
from hpctrack.parallel.collectives import gather, run_on_main
from hpctrack.parallel.env import Env
from hpctrack.planning.partition import longest_first


def _nobody_watches() -> None:
    """What is told of a rest without a watchdog."""


@dataclass(frozen=True)
class Place:
    """Where and how it is computed: this rank, the folder of the results, the precision, the seed of all draws.

    `memory`: mode of the models in passes for gradients (models/memory_modes.py), which changes no result.

    `alive` is told what takes its time, `rest` that others may keep this rank waiting.
    """

    env: Env
    out: Path
    precision: str
    seed: int
    alive: Callable[[str], None]
    rest: Callable[[], None] = _nobody_watches
    memory: str = "plain"


def committed(folder: Path) -> dict[str, Any]:
    """Results of all pieces that a folder's journals have, by key."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for entry in read_lines(path, "no piece of work", {"key": str}):
            if "value" not in entry:
                raise InputError(f"{path}: the piece {entry['key']} has no value; the file is damaged")
            found[entry["key"]] = entry["value"]
    return found


def in_pieces(
    folder: Path,
    keys: Sequence[str],
    compute: Callable[[str], Any],
    place: Place,
    *,
    costs: Sequence[float] | None = None,
) -> dict[str, Any]:
    """`compute(key)`, plain values, of each key: of those that no journal in `folder` has, each on one rank.

    All ranks come together and get all results. `costs` [keys]: by which they are shared; None: all the same.
    """
    env = place.env
    run_on_main(lambda: folder.mkdir(parents=True, exist_ok=True), env)
    done = run_on_main(lambda: committed(folder), env)
    todo = [k for k, key in enumerate(keys) if key not in done]
    cost = np.ones(len(todo)) if costs is None else np.asarray(costs, dtype=np.float64)[todo]
    group, _ = longest_first(cost, env.world)
    own = [keys[k] for k in np.asarray(todo, dtype=np.int64)[group == env.rank]]
    if todo:
        env.say(f"{folder.name}: {len(todo)} of {len(keys)} pieces to do, on {env.world} rank{'s' * (env.world > 1)}")
    mine: dict[str, Any] = {}
    with contextlib.closing(Lines(folder / f"rank-{env.rank:05d}.jsonl")) as lines:
        for key in own:
            place.alive(f"{folder.name} {key}")
            mine[key] = compute(key)
            lines.append({"key": key, "value": mine[key]})
            if len(mine) % max(1, len(own) // 5) == 0:
                env.say(f"{folder.name}: {len(mine)}/{len(own)} on this rank")
    place.rest()
    for part in gather(mine, env):
        done |= part
    return {key: done[key] for key in keys}

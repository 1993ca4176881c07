"""Methods that need no training, to compare with: one file a method, one line in METHODS.

A method is imported when it is asked for, since it may need a package of the extra `reference`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from hpctrack.config import Named, Section, Seed, SelectionConfig, lookup, parse
from hpctrack.errors import InputError
from hpctrack.events import selection as selecting
from hpctrack.registry import Lazy, Registry
from hpctrack.storage.detector import TRACKML
from hpctrack.storage.schema import Candidates, Event
from hpctrack.storage.store import Dataset


class Method(Protocol):
    """Makes track candidates of an event's hits."""

    Options: ClassVar[type[Section]]  # the keys `method.…` besides `method.name`
    COLUMNS: ClassVar[Sequence[str]]  # of an event, that it sees, as `hits.phi`; none of the truth

    def __init__(self, options: Any) -> None:
        """`options`: of `Options`; a `field_t` of None among them becomes the dataset's magnetic field, Tesla.

        A method that reads files may have an attribute `inputs`, {name: digest}, which goes into the recipe.
        """

    def reconstruct(self, event: Event, rows: np.ndarray) -> tuple[Candidates, dict[str, float]]:
        """Candidates of the hits `rows` [N], ascending, and the seconds of its parts.

        What makes Candidates of the result is the part `build_s`.
        """


METHODS: Registry[type[Method]] = Registry(
    "hpctrack.methods",
    "method",
    {
        "ckf": Lazy("hpctrack.tracking.ckf:Ckf", "pyacts", "reference"),
        "dbscan": Lazy("hpctrack.tracking.dbscan:Dbscan", "scikit-learn", "reference"),
        "follow": Lazy("hpctrack.tracking.assignment.follower:Follower"),
        "hopfield": Lazy("hpctrack.tracking.hopfield.method:Hopfield"),
    },
)


class MethodConfig(Section):
    """A method's run: which hits it sees, as in inference by a model, and its options."""

    seed: Seed = 1
    selection: SelectionConfig = SelectionConfig()
    method: Named


@dataclass(frozen=True)
class Timing:
    """What the candidates of an event took: the hits that were seen, and the seconds of the parts by name.

    `read_s`, `model_s` and `build_s` are always among them. `stage_s`: seconds of each stage of a pipeline.
    """

    n_hits: int
    seconds: Mapping[str, float]
    stage_s: Sequence[float] = ()

    @property
    def total_s(self) -> float:
        """Seconds from reading the event to its candidates."""
        return self.seconds["read_s"] + self.seconds["model_s"] + self.seconds["build_s"]

    def entry(self) -> dict[str, float | list[float]]:
        """As a line of timings.jsonl has it."""
        stages = {"stage_s": list(self.stage_s)} if self.stage_s else {}
        return {"n_hits": self.n_hits, **self.seconds, **stages}


class ByMethod:
    """Candidates of a dataset's events by a method; `recipe` is what they depend on, apart from the dataset.

    InputError for an unknown method or option, and for a package that is missing.
    """

    def __init__(self, config: MethodConfig, data: Dataset, stream: int) -> None:
        cls = lookup(METHODS, config.method.name, "method")
        options = parse(cls.Options, config.method.options, f"method '{config.method.name}'", "method")
        if getattr(options, "field_t", 0.0) is None:  # the dataset's
            options = options.model_copy(update={"field_t": data.field_t})
        self.draw = selecting.Draw(config.selection, (config.seed, stream))
        self.product = "candidates"
        self._method, self._data = cls(options), data
        if getattr(self._method, "of_trackml", False) and data.detector is not TRACKML:
            raise InputError(
                f"{data.folder}: is not of TrackML's detector, which method.segments is of; measure this one with "
                "`hpctrack segments` and give its file"
            )
        settings = config.model_dump(mode="json") | {"selection": config.selection.recorded()}
        settings |= {"method": {"name": config.method.name, **options.model_dump()}}
        settings |= getattr(self._method, "inputs", {})  # digests of files that options name
        self.recipe: dict[str, Any] = settings | {"versions": METHODS.versions(config.method.name)}

    def __call__(self, row: int) -> tuple[Candidates, Timing]:
        """Candidates of event `row` of the dataset; to the seconds come those of the processor (`cpu_s`)."""
        started, cpu = time.perf_counter(), time.process_time()
        event = self._data.read(row, [*self._method.COLUMNS, *selecting.readable(self._data, selecting.COLUMNS)])
        rows = self.draw(event, 0)[0].rows
        read_s = time.perf_counter() - started
        found, parts = self._method.reconstruct(event, rows)
        model_s = sum(seconds for name, seconds in parts.items() if name != "build_s")
        cpu_s = time.process_time() - cpu
        seconds = {"read_s": read_s, "model_s": model_s} | parts | {"cpu_s": cpu_s}
        return found, Timing(len(rows), seconds)

"""Methods that need no training, to compare with: one file a method, one line in METHODS.

`reconstruct(event, rows) -> (Candidates, seconds)`: candidates from the hits `rows` [N] of an event, of which it sees
`COLUMNS` alone, and the seconds of its parts; what makes Candidates of the result is `build_s`.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from hpctrack.config import Named, Section, Seed, SelectionConfig, lookup, parse
from hpctrack.errors import InputError
from hpctrack.events import selection as selecting
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset


@dataclass(frozen=True)
class Entry:
    """Where a method's class is, and the distribution of the `reference` extra that it needs."""

    target: str
    package: str

    @property
    def Options(self) -> type[Section]:
        """The method's options; loads its class, InputError if that cannot be had."""
        return load(self.target.rpartition(":")[2].lower(), self)[1].Options


METHODS = {
    "ckf": Entry("hpctrack.tracking.ckf:Ckf", "pyacts"),
    "dbscan": Entry("hpctrack.tracking.dbscan:Dbscan", "scikit-learn"),
}


class MethodConfig(Section):
    """A method's run: which hits it sees, as in inference by a model, and its options."""

    seed: Seed = 1
    selection: SelectionConfig = SelectionConfig()
    method: Named


class ByMethod:
    """Candidates of a dataset's events by a method; `recipe` is what they depend on, apart from the dataset.

    InputError for an unknown method or option, and for a package that is missing.
    """

    def __init__(self, config: MethodConfig, data: Dataset, stream: int) -> None:
        entry: Entry = lookup(METHODS, config.method.name, "method")
        version, cls = load(config.method.name, entry)
        options = parse(cls.Options, config.method.options, f"method '{config.method.name}'", "method")
        if getattr(options, "field_t", 0.0) is None:  # the dataset's
            options = options.model_copy(update={"field_t": data.field_t})
        self.draw = selecting.Draw(config.selection, (config.seed, stream))
        self.product = "candidates"
        self._method, self._data = cls(options), data
        settings = config.model_dump(mode="json") | {"method": {"name": config.method.name, **options.model_dump()}}
        self.recipe: dict[str, Any] = settings | {"versions": {entry.package: version}}

    def __call__(self, row: int) -> tuple[Candidates, dict[str, float]]:
        """Candidates of event `row` of the dataset; hits seen, seconds of the parts, and of the processor (`cpu_s`)."""
        started, cpu = time.perf_counter(), time.process_time()
        event = self._data.read(row, [*self._method.COLUMNS, *selecting.COLUMNS])
        rows = self.draw(event, 0)[0].rows
        read_s = time.perf_counter() - started
        found, parts = self._method.reconstruct(event, rows)
        model_s = sum(seconds for name, seconds in parts.items() if name != "build_s")
        cpu_s = time.process_time() - cpu
        return found, {"n_hits": len(rows), "read_s": read_s, "model_s": model_s} | parts | {"cpu_s": cpu_s}


def load(name: str, entry: Entry) -> tuple[str, Any]:
    """The version of the package behind a method, and the method's class; InputError if it cannot be had."""
    try:
        version = metadata.version(entry.package)
        module, cls = entry.target.split(":")
        return version, getattr(importlib.import_module(module), cls)
    except (metadata.PackageNotFoundError, ImportError) as error:
        why = "is not installed" if isinstance(error, metadata.PackageNotFoundError) else f"does not load ({error})"
        raise InputError(
            f"method '{name}' needs {entry.package}, which {why}: pip install 'hpctrack[reference]'"
        ) from error

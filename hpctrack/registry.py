"""Tables of what recipes and commands name: the package's own entries, and those that other packages add as plugins.

A plugin is an entry point of another distribution, in a group such as `hpctrack.models`:

    [project.entry-points."hpctrack.models"]
    my_model = "my_package.model:MyModel"
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import TypeVar

from hpctrack.errors import InputError

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Lazy:
    """An own entry that is imported when it is asked for: `module:attribute`, and the package of an extra it needs."""

    target: str
    package: str = ""
    extra: str = ""


class Registry(Mapping[str, T_co]):
    """Entries by name. Names of plugins are known from the start; a plugin is imported when it is asked for by name.

    `group`: of the entry points; `what`: one entry in a word, for messages; `own`: the entries of this package;
    `attributes`: what every entry must have, which is looked at where a plugin is imported.
    """

    def __init__(
        self, group: str, what: str, own: Mapping[str, T_co | Lazy], attributes: tuple[str, ...] = ("Options",)
    ) -> None:
        self.group, self.what, self.own, self.attributes = group, what, own, attributes

    @property
    def plugins(self) -> dict[str, list[EntryPoint]]:
        """The entry points of other packages by name; more than one where packages claim the same name."""
        found: dict[str, list[EntryPoint]] = {}
        if _own_only.get():
            return found
        for point in sorted(_entry_points(tuple(sys.path))(group=self.group)):
            found.setdefault(point.name, []).append(point)
        return found

    def __getitem__(self, name: str) -> T_co:
        """The entry of that name. KeyError if there is none, InputError if it does not load or two packages have it."""
        claims = self.plugins.get(name, [])
        owners = ["hpctrack"] * (name in self.own) + [_package(point) for point in claims]
        if len(owners) > 1:
            raise InputError(
                f"{self.what} '{name}' is in {' and in '.join(owners)}: rename the entry point of {owners[-1]} in "
                f"'{self.group}', or uninstall that package"
            )
        if claims:
            return self._plugin(claims[0])
        entry = self.own[name]
        return self._imported(name, entry) if isinstance(entry, Lazy) else entry

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.plugins

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *(name for name in self.plugins if name not in self.own)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def versions(self, name: str) -> dict[str, str]:
        """Versions of the distributions other than this one that the entry is of, or that it needs; maybe none."""
        entry = self.own.get(name)
        if entry is None:
            return {point.dist.name: point.dist.version for point in self.plugins.get(name, []) if point.dist}
        return {entry.package: metadata.version(entry.package)} if isinstance(entry, Lazy) and entry.package else {}

    def _plugin(self, point: EntryPoint) -> T_co:
        where = f"entry point '{point.value}' of '{self.group}'"
        try:
            entry = point.load()
        except Exception as error:  # whatever the other package's import raises
            raise InputError(
                f"{self.what} '{point.name}' of {_package(point)} does not load: {where}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for name in self.attributes:
            if not hasattr(entry, name):
                raise InputError(
                    f"{self.what} '{point.name}' of {_package(point)} has no `{name}`: {where}; every {self.what} of "
                    "this package is an example of what one has to have"
                )
        return entry

    def _imported(self, name: str, entry: Lazy) -> T_co:
        try:
            if entry.package:
                metadata.version(entry.package)
            module, attribute = entry.target.split(":")
            return getattr(importlib.import_module(module), attribute)
        except (metadata.PackageNotFoundError, ImportError) as error:
            if not entry.package:
                raise
            why = "is not installed" if isinstance(error, metadata.PackageNotFoundError) else f"does not load ({error})"
            raise InputError(
                f"{self.what} '{name}' needs {entry.package}, which {why}: pip install 'hpctrack[{entry.extra}]'"
            ) from error


@contextmanager
def own_entries_only() -> Iterator[None]:
    """Within, tables have the entries of this package alone, whatever is installed beside it."""
    token = _own_only.set(True)
    try:
        yield
    finally:
        _own_only.reset(token)


_own_only: ContextVar[bool] = ContextVar("own_only", default=False)


@functools.cache
def _entry_points(path: tuple[str, ...]) -> Callable[..., metadata.EntryPoints]:
    """Selects among those of all distributions on `sys.path`, which is `path`: reading them takes some milliseconds."""
    return metadata.entry_points().select


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"

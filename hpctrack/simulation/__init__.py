"""Event sources that write TrackML's format. A new source is one module and one line in SOURCES."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import ClassVar, Protocol

from hpctrack.errors import InputError
from hpctrack.simulation.event import Crossings
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.settings import Settings

SOURCES = {
    "acts": "hpctrack.simulation.acts:ActsSource",
    "helix": "hpctrack.simulation.helix:HelixSource",
}


class Source(Protocol):
    """Makes true particles and their passages through the detector; lives as long as its process."""

    OPTIONS: ClassVar[tuple[str, ...]]  # settings that only this source reads
    PACKAGES: ClassVar[tuple[str, ...]]  # distributions of the `sim` extra that it needs

    def __init__(self, settings: Settings, geometry: Geometry) -> None: ...

    def generate(self, event_id: int) -> tuple[dict, Crossings]:
        """Particles (schema.PARTICLES' columns without nhits, unique ids) and crossings of one event."""


def source_class(name: str) -> type[Source]:
    """The class behind a name of SOURCES; InputError for an unknown one."""
    if name not in SOURCES:
        raise InputError(f"--source {name}: must be one of {', '.join(SOURCES)}")
    module, attribute = SOURCES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def package_versions(source: type[Source]) -> dict[str, str]:
    """Versions of the packages a source needs; InputError if one is missing."""
    versions = {}
    for package in source.PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise missing(package) from None
    return versions


def missing(package: str) -> InputError:
    """The error for a package of the `sim` extra that is not there."""
    return InputError(f"--source acts needs {package}, which is not installed: pip install 'hpctrack[sim]'")

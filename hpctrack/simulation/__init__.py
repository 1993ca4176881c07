"""Event sources that write TrackML's format. A new source is one module and one line in SOURCES."""

from __future__ import annotations

from importlib import metadata
from typing import ClassVar, Protocol

import numpy as np

from hpctrack.errors import InputError
from hpctrack.registry import Lazy, Registry
from hpctrack.simulation.event import Crossings
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.settings import Settings


class Source(Protocol):
    """Makes true particles and their passages through the detector; lives as long as its process."""

    OPTIONS: ClassVar[tuple[str, ...]]  # settings that only this source reads
    PACKAGES: ClassVar[tuple[str, ...]]  # distributions that it needs, whose versions the data set records

    def __init__(self, settings: Settings, geometry: Geometry) -> None: ...

    def generate(self, event_id: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """Particles (schema.PARTICLES' columns without nhits, unique ids) and crossings of one event."""


SOURCES: Registry[type[Source]] = Registry(
    "hpctrack.sources",
    "source",
    {
        "acts": Lazy("hpctrack.simulation.acts:ActsSource"),
        "helix": Lazy("hpctrack.simulation.helix:HelixSource"),
    },
    attributes=("OPTIONS", "PACKAGES"),
)


def source_class(name: str) -> type[Source]:
    """The class behind a name of SOURCES; InputError for an unknown one."""
    if name not in SOURCES:
        raise InputError(f"--source {name}: must be one of {', '.join(SOURCES)}")
    return SOURCES[name]


def package_versions(name: str) -> dict[str, str]:
    """Versions of the packages that a source is of and needs; InputError if one is missing."""
    versions = SOURCES.versions(name)
    for package in source_class(name).PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            how = "'hpctrack[sim]'" if name in SOURCES.own else package
            raise InputError(f"--source {name} needs {package}, which is not installed: pip install {how}") from None
    return versions

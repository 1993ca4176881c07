"""Event sources that write TrackML's format. A new source is one module and one line in SOURCES."""

from __future__ import annotations

from importlib import metadata
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from hpctrack.errors import InputError
from hpctrack.registry import Lazy, Registry
from hpctrack.simulation.event import Crossings, Measurements, Tables
from hpctrack.simulation.geometry import Geometry, trackml_geometry
from hpctrack.simulation.settings import Settings


class AnySource(Protocol):
    """Made once in a process; a Source, an OwnDetector or a MeasuringSource."""

    OPTIONS: ClassVar[tuple[str, ...]]  # settings that only this source reads
    PACKAGES: ClassVar[tuple[str, ...]]  # distributions that it needs, whose versions the data set records

    def __init__(self, settings: Settings, geometry: Geometry) -> None: ...


class Source(AnySource, Protocol):
    """Makes true particles and their passages through the TrackML detector, which others digitise."""

    def generate(self, event_id: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """Particles (schema.PARTICLES' columns without nhits, unique ids) and crossings of one event."""


@runtime_checkable
class OwnDetector(Protocol):
    """A source with a detector of its own, whose hits have no cells."""

    def tables(self, event_id: int) -> Tables:
        """The four TrackML tables of one event."""


class MeasuringSource:
    """A source that measures as well, in a detector of its own."""

    OPTIONS: ClassVar[tuple[str, ...]]
    UNUSED: ClassVar[tuple[str, ...]]  # settings of all sources that mean nothing to it
    PACKAGES: ClassVar[tuple[str, ...]]

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        raise NotImplementedError

    @staticmethod
    def detector() -> Geometry:
        """The modules that it measures with."""
        raise NotImplementedError

    def measure(self, event_id: int) -> tuple[dict[str, np.ndarray], Measurements, np.ndarray]:
        """Particles as of `Source`, measured hits of one event, and which of these weigh in scores, bool [H]."""
        raise NotImplementedError


SOURCES: Registry[type[AnySource]] = Registry(
    "hpctrack.sources",
    "source",
    {
        "acts": Lazy("hpctrack.simulation.acts:ActsSource"),
        "cylinders": Lazy("hpctrack.simulation.planes.cylinders:CylindersSource"),
        "helix": Lazy("hpctrack.simulation.helix:HelixSource"),
        "planes": Lazy("hpctrack.simulation.planes.straight:PlanesSource"),
        "telescope": Lazy("hpctrack.simulation.telescope.source:TelescopeSource"),
    },
    attributes=("OPTIONS", "PACKAGES"),
)


def source_class(name: str) -> type[AnySource]:
    """The class behind a name of SOURCES; InputError for an unknown one."""
    if name not in SOURCES:
        raise InputError(f"--source {name}: must be one of {', '.join(SOURCES)}")
    return SOURCES[name]


def detector_of(name: str) -> Geometry:
    """The detector that a source's particles cross: its own, or TrackML's."""
    kind = source_class(name)
    return kind.detector() if issubclass(kind, MeasuringSource) else trackml_geometry()


def unused_by(name: str) -> tuple[str, ...]:
    """Settings of all sources that mean nothing to this one."""
    return getattr(source_class(name), "UNUSED", ())


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

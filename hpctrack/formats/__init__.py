"""Foreign files <-> events: TrackML, ColliderML, ACTS, acorn, proton CT; detectors, and conversion into a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hpctrack.config import Section
from hpctrack.registry import Lazy, Registry

if TYPE_CHECKING:
    from hpctrack.formats.conversion import Reader


class Format(Protocol):
    """A format of events that `hpctrack convert` makes a dataset of."""

    Options: ClassVar[type[Section]]  # what `--option KEY=VALUE` sets

    def __init__(self, options: Any) -> None:
        """`options`: of `Options`."""

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> Reader:
        """What reads the events of `source`, of which the first `limit` are wanted.

        InputError if it is of another format, and for the first event that is bad by its files' names alone, unless
        `skip_bad`: then reading that event says so.
        """


FORMATS: Registry[type[Format]] = Registry(
    "hpctrack.formats",
    "format",
    {
        "sub-events": Lazy("hpctrack.formats.known_formats:SubEventsFormat"),
        "trackml": Lazy("hpctrack.formats.known_formats:TrackmlFormat"),
        "colliderml": Lazy("hpctrack.formats.known_formats:ColliderMLFormat"),
        "acts": Lazy("hpctrack.formats.known_formats:ActsFormat"),
        "acorn": Lazy("hpctrack.formats.known_formats:AcornFormat"),
        "proton-ct": Lazy("hpctrack.formats.known_formats:ProtonFormat"),
    },
)

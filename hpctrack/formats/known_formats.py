"""The formats that `hpctrack convert` reads by itself: what it is told of each, and the reader that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from hpctrack.config import FieldT, Section, Seed
from hpctrack.errors import InputError
from hpctrack.events.subevents import MAX_DRAWS, SubEventReader
from hpctrack.formats import acts_csv, proton_ct
from hpctrack.formats.acorn import AcornReader, find_files
from hpctrack.formats.acts_csv import ActsReader
from hpctrack.formats.colliderml.parquet_files import find_tables
from hpctrack.formats.colliderml.reader import ColliderMLReader
from hpctrack.formats.conversion import Reader, TrackmlReader
from hpctrack.formats.trackml_files import check_files, find_events, list_files
from hpctrack.requirements.needs import DIRECTIONS, MOMENTA, TRACKS, Need, check
from hpctrack.storage import store

Part = Literal["cells", "weights", "crossings", "momenta", "vertices", "charges"]  # of schema.PARTS; not truth
PARTS = get_args(Part)


class TrackmlFormat:
    """TrackML's CSV files, in a folder or an archive."""

    class Options(Section):
        """Detector and truth, and what the files have not."""

        detectors: str | None = Field(None, description="detectors.csv[.gz]; null: in the source or beside it")
        no_truth: bool = Field(False, description="events without truth: hits of no particle")
        without: list[Part] = Field([], description="what the files have not, or is left out")
        field_t: FieldT | None = Field(
            None,
            description="magnetic field along z, Tesla; null: that of simulation.json, or TrackML's 2 T, assumed",
        )

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> TrackmlReader:
        """The reader; InputError if files of an event are missing."""
        found, with_truth, without = find_events(str(source)), not self.options.no_truth, self.options.without
        check_files(found, with_truth=with_truth, with_cells="cells" not in without)
        reader = TrackmlReader(found, self.options.detectors, with_truth, without, self.options.field_t)
        _refuse(found.faults, reader, None if skip_bad else limit or len(found.events))
        return reader


class OfTables(Section):
    """Truth, what the files have not, and what they do not say."""

    no_truth: bool = Field(False, description="events without truth: hits of no particle")
    without: list[Part] = Field([], description="what the files have not, or is left out")
    field_t: FieldT | None = Field(None, description="magnetic field along z, Tesla; null: 2 T is assumed")
    unlisted: Literal["error", "noise"] = Field("error", description="hits of a particle that is in no table")


class ColliderMLFormat:
    """ColliderML's parquet files: a file of hits, or a folder of files."""

    class Options(OfTables):
        """As of all tables, and what these do not say of the detector."""

        detectors: str | None = Field(None, description="the detector's modules (`hpctrack geometry`); null: not known")

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> ColliderMLReader:
        """The reader; InputError for files that are not ColliderML's, and for events without particles."""
        o, with_truth = self.options, not self.options.no_truth
        found = find_tables(source, with_truth)
        reader = ColliderMLReader(
            found, with_truth, o.without, o.field_t, unlisted_is_noise=o.unlisted == "noise", surfaces=o.detectors
        )
        _refuse(found.faults, reader, None if skip_bad else limit or len(found.rows["tracker_hits"]))
        return reader


class ActsFormat:
    """CSV files that ACTS' examples write, in a folder or an archive."""

    class Options(OfTables):
        """What a hit is, the surfaces, truth, and what the files have not or do not say."""

        hits: Literal["measurements", "spacepoints"] | None = Field(
            None, description="what a hit is; null: measurements where there are any"
        )
        detectors: str | None = Field(None, description="surfaces; null: detectors.csv in the source or beside")

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> ActsReader:
        """The reader; InputError if there are no events, or files of one are missing."""
        o, found = self.options, list_files(source, acts_csv.FILE)
        kinds = {kind for files in found.events.values() for kind in files}
        if not kinds & {"measurements", *acts_csv.POINTS}:
            raise InputError(f"{source}: no events of ACTS; they are files such as event000000000-measurements.csv")
        points = o.hits == "spacepoints" if o.hits else "measurements" not in kinds
        with_cells = not points and "cells" not in o.without
        acts_csv.check_files(found, points=points, with_truth=not o.no_truth, with_cells=with_cells)
        reader = ActsReader(
            found,
            o.detectors,
            not o.no_truth,
            o.without,
            o.field_t,
            points=points,
            unlisted_is_noise=o.unlisted == "noise",
        )
        _refuse(found.faults, reader, None if skip_bad else limit or len(found.events))
        return reader


class AcornFormat:
    """Torch files of acorn (.pyg) or gnn_tracking (.pt): a graph a file, in a folder; nothing in them is run."""

    class Options(Section):
        """Truth, what is left out, and what the files do not say."""

        no_truth: bool = Field(False, description="events without truth: hits of no particle")
        without: list[Part] = Field([], description="what is left out")
        field_t: FieldT | None = Field(None, description="magnetic field along z, Tesla; null: 2 T is assumed")
        scales: list[float] = Field(
            [1.0, 1.0, 1.0],
            min_length=3,
            max_length=3,
            description="by what gnn_tracking has divided r, phi and z (mm, rad, mm)",
        )
        detectors: str | None = Field(None, description="the detector's modules (`hpctrack geometry`); null: not known")

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> AcornReader:
        """The reader; InputError if there are no events, or one twice."""
        o = self.options
        files, faults = find_files(source)
        reader = AcornReader(
            files, not o.no_truth, o.without, o.field_t, tuple(o.scales), faults=faults, surfaces=o.detectors
        )
        _refuse(faults, reader, None if skip_bad else limit or len(files))
        return reader


class ProtonFormat:
    """Protons in a digital tracking calorimeter: .npz tables of GATE, a file or a folder of files."""

    class Options(Section):
        """How they are put together."""

        protons: int = Field(100, ge=1, le=100_000, description="primaries a frame, consecutive ones of a spot")

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> proton_ct.ProtonReader:
        """The reader; InputError for files that are not such tables, or have too few primaries for a frame."""
        reader = proton_ct.ProtonReader.of(proton_ct.find_files(source), self.options.protons, limit)
        _refuse(reader.faults, reader, None if skip_bad else limit or sum(reader.frames))
        if not reader.event_ids():
            raise InputError(f"{source}: no spot has {self.options.protons} primaries; --option protons=N for fewer")
        return reader


def _refuse(faults: Mapping[int, str], reader: Reader, first: int | None) -> None:
    """InputError if one of the `first` events is bad by its files alone; None: whatever they are."""
    for event_id in reader.event_ids()[: first or 0]:
        if event_id in faults:
            raise InputError(faults[event_id])


class SubEventsFormat:
    """A dataset, of whose events sub-events are drawn."""

    class Options(Section):
        """What is drawn."""

        tracks: int | None = Field(None, ge=0, description="tracks a sub-event, needed; 0: those of an event")
        draws: int | None = Field(None, ge=1, description="at most so many sub-events an event; null: all")
        pt_min_gev: float = Field(0.0, ge=0, description="least transverse momentum of a track")
        min_hits: int = Field(3, ge=1, description="least hits of a track")
        eta_max: float | None = Field(None, gt=0, description="most |pseudorapidity| of a track; null: any")
        remove_noise: bool = Field(False, description="else noise is thinned like the tracks")
        seed: Seed = 0

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, source: Path, limit: int | None = None, skip_bad: bool = False) -> SubEventReader:
        """The reader; InputError without a number of tracks, or where the dataset lacks what they are drawn by."""
        if self.options.tracks is None:
            raise InputError(f"{source}: is a dataset already; --tracks T makes sub-events of it")
        if self.options.draws is not None and self.options.draws > MAX_DRAWS:
            raise InputError(f"--draws is {self.options.draws}, must be at most {MAX_DRAWS}")
        dataset = store.open_dataset(source)
        cuts = [Need("--pt-min-gev", MOMENTA)] if self.options.pt_min_gev > 0 else []
        cuts += [Need("--eta-max", DIRECTIONS)] if self.options.eta_max is not None else []
        check(dataset, [Need("--tracks", TRACKS), *cuts])
        return SubEventReader(dataset, **self.options.model_dump())

"""Method `ckf`: ACTS' seeding, combinatorial Kalman filter and greedy ambiguity resolution, the field's reference.

It sees what a model sees: position and module of the hits (tracking/acts_hits.py). Defaults are those of ACTS' own
scripts for the Generic Detector (Examples/Scripts/Python/ckf_tracks.py, full_chain_test.py) except where an option says
otherwise.

N hits seen.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar

import acts
import numpy as np
from acts import UnitConstants as u
from acts import examples
from pydantic import Field

from hpctrack.config import FieldT, Section
from hpctrack.simulation.acts_detector import Acts
from hpctrack.storage.detector import PIXEL, TRACKML
from hpctrack.storage.schema import Candidates, Event
from hpctrack.tracking import acts_hits
from hpctrack.tracking.acts_hits import QUIET, SUBSET, HitsOnModules
from hpctrack.tracking.builder import from_lists

PIXELS = TRACKML.parts[PIXEL]  # volumes whose hits make seeds
SEED_HITS = 3
SEED_R_MM, SEED_Z_MM = (25.0, 200.0), 1700.0  # what the pixels cover
SEED_GAP_MM = (1.0, 300.0)  # in radius, between neighbouring hits of a seed
PT_MARGIN = 0.9  # cuts on estimated momenta stand this much below the cut on the true ones
PARTS = ("handover_s", "seeding_s", "ckf_s", "resolution_s", "build_s")


class Ckf:
    """Holds the detector for the life of a process; runs one event at a time, in one thread, without files.

    Candidates are the measurements of the resolved tracks, outliers left out. A candidate's score is its number of
    measurements plus 1 / (1 + chi2 / degrees of freedom): the longer first, then the better fitted.
    """

    class Options(Section):
        """What is searched for, and what counts as a track; units as the names say."""

        pt_min_gev: float = Field(1.0, gt=0, description="least transverse momentum of the tracks to be found")
        eta_max: float = Field(4.0, gt=0, le=5, description="their greatest |eta|; ACTS' scripts: 3")
        field_t: FieldT | None = Field(None, description="field along z, 0.1 to 10 in size; null: the dataset's")
        z_max_mm: float = Field(30.0, gt=0, description="seeds point to |z| below this; ACTS' scripts: 250")
        seed_d0_max_mm: float = Field(3.0, gt=0, description="transverse impact parameter of seeds")
        middle_r_min_mm: float = Field(33.0, gt=0, description="of a seed's middle hit; ACTS: 60, blind at |eta| > 3")
        middle_r_max_mm: float = Field(180.0, gt=0, description="of a seed's middle hit; ACTS: 120")
        seeds_per_hit: int = Field(3, ge=1, description="seeds with the same middle hit; ACTS' scripts: 1")
        chi2_max: float = Field(15.0, gt=0, description="measurements further off are outliers")
        chi2_outlier_max: float = Field(25.0, gt=0, description="measurements further off are not looked at")
        branches: int = Field(2, ge=1, description="measurements followed on each surface")
        d0_max_mm: float = Field(4.0, gt=0, description="transverse impact parameter of tracks")
        min_measurements: int = Field(7, ge=3, description="shorter tracks are dropped")
        max_holes: int = Field(2, ge=0, description="modules of a track without a measurement, at most")
        max_outliers: int = Field(2, ge=0, description="outliers of a track, at most")
        resolve: bool = Field(True, description="ambiguity resolution; false: candidates are all tracks of the filter")
        max_shared: int = Field(2, ge=0, description="measurements that a resolved track may share with others")

    COLUMNS: ClassVar = acts_hits.COLUMNS

    def __init__(self, options: Options) -> None:
        """`options.field_t` is a number: of a dataset, that of ByMethod."""
        self.options = options
        if options.field_t is None:
            raise ValueError("options.field_t is None: give the magnetic field, Tesla")
        self._field_t = options.field_t
        self._hits = HitsOnModules(self._field_t)
        self._detector = self._hits.detector

    def reconstruct(self, event: Event, rows: np.ndarray) -> tuple[Candidates, dict[str, float]]:
        """Candidates from the hits `rows` [N] of an event, and the seconds of each part.

        InputError for a hit that is not on a module of TrackML's detector, MachineError if ACTS fails.
        """
        started = time.perf_counter()
        modules_N, uv_N2 = self._hits.place(event, rows, "method 'ckf'")
        clocks = [_Clock() for _ in PARTS[:-1]]
        tracks = _Tracks("resolved" if self.options.resolve else "tracks")
        if len(rows) < SEED_HITS:
            return from_lists([], [], event.n_hits, event.event_id, SEED_HITS), dict.fromkeys(PARTS, 0.0)
        reader = self._hits.reader(modules_N, uv_N2)
        steps = [(), self._seeding(), self._filter(), self._resolution()]
        timed = [element for step, clock in zip(steps, clocks, strict=True) for element in (*step, clock)]
        reader.run([*timed, tracks], event.event_id)
        measurements, scores = tracks.take()
        lists = [rows[np.unique(of_track)] for of_track in measurements]
        found = from_lists(lists, scores, event.n_hits, event.event_id, SEED_HITS)
        times = [started, *(clock.time for clock in clocks), time.perf_counter()]
        return found, dict(zip(PARTS, np.diff(times).tolist(), strict=True))

    def _seeding(self) -> list:
        """Space points of pixel hits, triplets of these, and track parameters from the triplets."""
        o = self.options
        nearest, farthest = SEED_GAP_MM
        points = self._hits.space_points(PIXELS)
        triplets = examples.GridTripletSeedingAlgorithm(
            level=QUIET,
            inputSpacePoints="points",
            outputSeeds="triplets",
            bFieldInZ=abs(self._field_t) * u.T,
            minPt=PT_MARGIN * o.pt_min_gev * u.GeV,
            cotThetaMax=math.sinh(o.eta_max),
            impactMax=o.seed_d0_max_mm * u.mm,
            **dict.fromkeys(("deltaRMin", "deltaRMinTop", "deltaRMinBottom"), nearest * u.mm),
            **dict.fromkeys(("deltaRMax", "deltaRMaxTop", "deltaRMaxBottom"), farthest * u.mm),
            rMin=SEED_R_MM[0] * u.mm,
            rMax=SEED_R_MM[1] * u.mm,
            zMin=-SEED_Z_MM * u.mm,
            zMax=SEED_Z_MM * u.mm,
            rMinMiddle=o.middle_r_min_mm * u.mm,
            rMaxMiddle=o.middle_r_max_mm * u.mm,
            collisionRegionMin=-o.z_max_mm * u.mm,
            collisionRegionMax=o.z_max_mm * u.mm,
            sigmaScattering=5,
            radLengthPerSeed=0.1,
            maxSeedsPerSpM=o.seeds_per_hit,
        )
        parameters = examples.TrackParamsEstimationAlgorithm(
            level=QUIET,
            inputSeeds="triplets",
            outputTrackParameters="parameters",
            outputSeeds="seeds",
            trackingGeometry=self._detector.tracking_geometry,
            magneticField=self._detector.field,
            particleHypothesis=acts.ParticleHypothesis.pion,
            initialSigmas=[1 * u.mm, 1 * u.mm, 1 * u.degree, 1 * u.degree, 0 / u.GeV, 1 * u.ns],
            initialSigmaQoverPt=0.1 / u.GeV,
            initialSigmaPtRel=0.1,
            initialVarInflation=[1.0] * 6,
        )
        return [points, triplets, parameters]

    def _filter(self) -> list:
        """Tracks outwards from each seed that no track has yet, then back inwards, by a combinatorial Kalman filter."""
        o, detector = self.options, self._detector
        cuts: tuple[list[float], ...] = ([], [o.chi2_max], [o.chi2_outlier_max], [o.branches])
        selection = acts.TrackSelector.Config(
            ptMin=PT_MARGIN * o.pt_min_gev * u.GeV,
            absEtaMax=o.eta_max,
            loc0Min=-o.d0_max_mm * u.mm,
            loc0Max=o.d0_max_mm * u.mm,
            minMeasurements=o.min_measurements,
            maxHoles=o.max_holes,
            maxOutliers=o.max_outliers,
        )
        return [
            examples.TrackFindingAlgorithm(
                level=QUIET,
                inputMeasurements=SUBSET,
                inputInitialTrackParameters="parameters",
                inputSeeds="seeds",
                outputTracks="tracks",
                trackingGeometry=detector.tracking_geometry,
                magneticField=detector.field,
                findTracks=examples.TrackFindingAlgorithm.makeTrackFinderFunction(
                    detector.tracking_geometry, detector.field, QUIET
                ),
                measurementSelectorCfg=acts.MeasurementSelector.Config([(acts.GeometryIdentifier(), cuts)]),
                trackSelectorCfg=selection,
                twoWay=True,
                seedDeduplication=True,
                stayOnSeed=True,
            )
        ]

    def _resolution(self) -> list:
        """Of tracks that share too much, the one that shares the largest part goes, then the next."""
        if not self.options.resolve:
            return []
        return [
            examples.GreedyAmbiguityResolutionAlgorithm(
                level=QUIET,
                inputTracks="tracks",
                outputTracks="resolved",
                maximumSharedHits=self.options.max_shared + 1,  # ACTS removes tracks from this number on
                maximumIterations=1_000_000,
                nMeasurementsMin=self.options.min_measurements,
            )
        ]


class _Clock(examples.IAlgorithm):
    """Notes when ACTS comes by."""

    def __init__(self) -> None:
        examples.IAlgorithm.__init__(self, "clock", QUIET)

    def execute(self, context: Acts) -> Acts:
        self.time = time.perf_counter()
        return examples.ProcessCode.SUCCESS


class _Tracks(examples.IAlgorithm):
    """Takes the tracks from the whiteboard: indices of the measurements of each, and scores."""

    def __init__(self, key: str) -> None:
        examples.IAlgorithm.__init__(self, "collect", QUIET)
        self._handle = examples.ReadDataHandle(self, examples.ConstTrackContainer, "InputTracks")
        self._handle.initialize(key)
        self.measurements: list[list[int]] = []
        self.scores: list[float] = []

    def execute(self, context: Acts) -> Acts:
        for track in self._handle(context.eventStore):
            links = [
                state.uncalibratedSourceLink for state in track.trackStatesReversed if state.typeFlags.isMeasurement
            ]
            indices = [examples.IndexSourceLink.fromSourceLink(link).index() for link in links]
            self.measurements.append(indices)
            self.scores.append(len(indices) + 1 / (1 + track.chi2 / max(track.nDoF, 1)))
        return examples.ProcessCode.SUCCESS

    def take(self) -> tuple[list[list[int]], list[float]]:
        """Both lists, which are no longer held here."""
        found = self.measurements, self.scores
        self.measurements, self.scores = [], []
        return found

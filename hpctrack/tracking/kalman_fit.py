"""Candidates through ACTS' Kalman filter: track parameters at the perigee, their covariance, chi2, outliers.

A Python algorithm hands the candidates over as proto-tracks. ACTS does not say which proto-track a fit is of, so each
candidate has measurements of its own, copies of those of its hits, and these say it. First parameters come from ACTS'
estimate of three space points. The filter goes outwards, then back inwards, so that the material between the first
module and the beam line widens the covariance. Track model: helix, multiple scattering and energy loss of a pion.

Legend: C candidates, n of them that could be fitted, m hits of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import acts
import numpy as np
from acts import UnitConstants as u
from acts import examples

from hpctrack.simulation.acts_detector import Acts
from hpctrack.storage.schema import ESTIMATE, Event
from hpctrack.tracking.acts_hits import CONTAINER, QUIET, HitsOnModules

LEAST_HITS = 3
SCALING = 10.0  # of the covariance with which the way back inwards begins; 100 loses more fits
EVERY_MOMENTUM = 1e6  # GeV: below this ACTS goes back by filtering, above by smoothing
LOWER = np.tril_indices(5)


@dataclass(frozen=True)
class Fits:
    """What the filter says of an event's candidates; those that it could not fit are not in it."""

    candidate: np.ndarray  # int64 [n] number of the candidate, ascending
    parameters: np.ndarray  # float32 [n, 20] the columns ESTIMATE
    chi2: np.ndarray  # float64 [n]
    ndf: np.ndarray  # int64 [n]
    measurements: np.ndarray  # int64 [n] hits that the fit used
    missed: np.ndarray  # int64 [n] modules with a hit of the candidate, through which its track does not go
    outliers: list[np.ndarray]  # [n] rows of hits that it set aside, ascending

    @property
    def chi2_per_ndf(self) -> np.ndarray:
        """[n]."""
        return self.chi2 / np.maximum(self.ndf, 1)


@dataclass(frozen=True)
class Copies:
    """Measurements, one for each hit of each candidate: the candidate's number, the hit's row and its module [K]."""

    candidate: np.ndarray
    rows: np.ndarray
    modules: np.ndarray

    def outwards(self, event: Event) -> list[list[int]]:
        """Each candidate's measurements, in the order of the candidates, those near the origin first."""
        x, y, z = (event.column(f"hits.{name}")[self.rows].astype(np.float64) for name in ("x", "y", "z"))
        order = np.lexsort((self.rows, np.hypot(np.hypot(x, y), z), self.candidate))
        begin = np.flatnonzero(np.diff(self.candidate[order], prepend=-1))
        return [own.tolist() for own in np.split(order, begin[1:])]


class KalmanFit:
    """Holds the detector for the life of a process; fits one event at a time, in one thread, without files."""

    def __init__(self, field_t: float) -> None:
        self._hits = HitsOnModules(field_t)
        self._volumes = np.unique(self._hits.geometry.columns["volume_id"]).tolist()

    def fit(self, event: Event, lists: Sequence[np.ndarray], outlier_chi2: float) -> Fits:
        """Fits of the candidates with the hit rows `lists` [C] of an event; MachineError if ACTS fails.

        A measurement whose chi2 is above `outlier_chi2` is an outlier: the fit goes on without it.
        InputError for a hit that is not on a module of TrackML's detector.
        """
        enough = [c for c, rows in enumerate(lists) if len(rows) >= LEAST_HITS]
        if not enough:
            none = np.zeros(0, np.int64)
            return collected([], Copies(none, none, none))
        rows = np.concatenate([lists[c] for c in enough])
        seen, hit = np.unique(rows, return_inverse=True)
        modules, uv = self._hits.place(event, seen, "fitting")
        candidate = np.repeat(enough, [len(lists[c]) for c in enough])
        order = np.argsort(modules[hit], kind="stable")  # as ACTS keeps them: it need not move any for the next
        copies = Copies(candidate[order], rows[order], modules[hit[order]])
        reader, tracks = self._hits.reader(copies.modules, uv[hit[order]]), _Fitted()
        reader.run((_ProtoTracks(copies.outwards(event)), *self._steps(outlier_chi2), tracks), event.event_id)
        return collected(tracks.take(), copies)

    def _steps(self, outlier_chi2: float) -> list:
        """Space points of all hits, first parameters of each proto-track, the fit."""
        detector = self._hits.detector
        points = self._hits.space_points(self._volumes)
        parameters = examples.ProtoTracksToParameters(
            level=QUIET,
            inputProtoTracks="candidates",
            inputSpacePoints="points",
            outputParameters="parameters",
            outputProtoTracks="with_parameters",
            outputSeeds="seeds",
            geometry=detector.tracking_geometry,
            magneticField=detector.field,
        )
        fit = examples.TrackFittingAlgorithm(
            level=QUIET,
            inputMeasurements=CONTAINER,
            inputProtoTracks="with_parameters",
            inputInitialTrackParameters="parameters",
            outputTracks="fitted",
            pickTrack=-1,
            referenceSurface=acts.Surface.createPerigee(acts.Vector3(0, 0, 0)),
            fit=examples.makeKalmanFitterFunction(
                detector.tracking_geometry,
                detector.field,
                multipleScattering=True,
                energyLoss=True,
                reverseFilteringMomThreshold=EVERY_MOMENTUM * u.GeV,
                reverseFilteringCovarianceScaling=SCALING,
                freeToBoundCorrection=examples.FreeToBoundCorrection(False),
                chi2Cut=outlier_chi2,
                useJosephFormulation=False,
                level=QUIET,
            ),
            calibrator=examples.makePassThroughCalibrator(),
        )
        return [points, parameters, fit]


Track = tuple[list[float], list[list[float]], float, int, list[tuple[int, bool]]]


class _ProtoTracks(examples.IAlgorithm):
    """Puts candidates, lists of measurements, on the whiteboard."""

    def __init__(self, lists: list[list[int]]) -> None:
        examples.IAlgorithm.__init__(self, "candidates", QUIET)
        self._lists = lists
        self._handle = examples.WriteDataHandle(self, examples.ProtoTrackContainer, "OutputProtoTracks")
        self._handle.initialize("candidates")

    def execute(self, context: Acts) -> Acts:
        container = examples.ProtoTrackContainer()
        for measurements in self._lists:
            container.append(examples.ProtoTrack(measurements))
        self._handle(context, container)
        del self._lists  # ACTS never lets go of an instance
        return examples.ProcessCode.SUCCESS


class _Fitted(examples.IAlgorithm):
    """Takes fitted tracks from the whiteboard: parameters at the perigee (ACTS'), covariance, chi2, ndf, states."""

    def __init__(self) -> None:
        examples.IAlgorithm.__init__(self, "collect", QUIET)
        self._handle = examples.ReadDataHandle(self, examples.ConstTrackContainer, "InputTracks")
        self._handle.initialize("fitted")
        self.tracks: list[Track] = []

    def execute(self, context: Acts) -> Acts:
        for track in self._handle(context.eventStore):
            if not track.hasReferenceSurface:  # what an unfinished fit has left
                continue
            states = [
                (
                    examples.IndexSourceLink.fromSourceLink(state.uncalibratedSourceLink).index(),
                    state.typeFlags.isOutlier,
                )
                for state in track.trackStatesReversed
                if state.hasUncalibratedSourceLink
            ]
            if not states:
                continue
            parameters, covariance = track.parameters, track.covariance
            values = [parameters[i] for i in range(5)]
            matrix = [[covariance[i, j] for j in range(5)] for i in range(5)]
            self.tracks.append((values, matrix, track.chi2, track.nDoF, states))
        return examples.ProcessCode.SUCCESS

    def take(self) -> list[Track]:
        """The tracks, which are no longer held here."""
        found, self.tracks = self.tracks, []
        return found


def collected(tracks: list[Track], copies: Copies) -> Fits:
    """The fits, each to the candidate whose measurements it is made of; they come in the order of the candidates."""
    owner, outliers, used, missed = [], [], [], []
    on_modules = np.bincount(np.unique(copies.candidate << 32 | copies.modules) >> 32)  # of each candidate
    for *_, states in tracks:
        c = int(copies.candidate[states[0][0]])
        owner.append(c)
        missed.append(int(on_modules[c]) - len(states))
        outliers.append(np.sort(copies.rows[[index for index, out in states if out]]))
        used.append(sum(not out for _, out in states))
    estimate = perigee_estimate(
        np.array([values for values, *_ in tracks], np.float64).reshape(-1, 5),
        np.array([matrix for _, matrix, *_ in tracks], np.float64).reshape(-1, 5, 5),
    )
    chi2, ndf = (np.array([track[k] for track in tracks]) for k in (2, 3))
    return Fits(
        np.array(owner, np.int64),
        estimate.astype(np.float32),
        chi2=chi2.astype(np.float64),
        ndf=ndf.astype(np.int64),
        measurements=np.array(used, np.int64),
        missed=np.array(missed, np.int64),
        outliers=outliers,
    )


def perigee_estimate(values: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Columns ESTIMATE [n, 20] of ACTS' (d0, z0, phi, theta, q/p) [n, 5] and their covariance [n, 5, 5]."""
    d0, z0, phi, theta, q_over_p = values.T
    sine = np.sin(theta)
    jacobian = np.zeros((len(values), 5, 5))
    jacobian[:, 0, 4], jacobian[:, 0, 3] = 1 / sine, -q_over_p * np.cos(theta) / sine**2
    jacobian[:, 1, 2] = jacobian[:, 2, 3] = jacobian[:, 3, 0] = jacobian[:, 4, 1] = 1
    turned = jacobian @ covariance @ jacobian.transpose(0, 2, 1)
    mean = np.stack([q_over_p / sine, phi, theta, d0, z0], axis=1)
    estimate = np.concatenate([mean, turned[:, LOWER[0], LOWER[1]]], axis=1)
    assert estimate.shape[1] == len(ESTIMATE)
    return estimate

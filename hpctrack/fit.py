"""`hpctrack fit CANDIDATES --data DATASET --out TRACKS`: candidates through ACTS' Kalman filter.

TRACKS is a folder of candidates again: those that could be fitted, with track parameters and covariance at the perigee,
without their outliers; `evaluate`, `report` and `export-candidates` take it. `fits.jsonl` in it has chi2, degrees of
freedom and outliers of each. With `--keep` the candidates are cleaned: those whose hits do not lie on a track are left
out, all others stay as they were. If the dataset has truth, resolutions and pulls are printed. For TrackML's detector;
needs pyacts alone (extra `reference`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpctrack.errors import InputError
from hpctrack.evaluation import resolutions
from hpctrack.evaluation.tally import COLUMNS as TRUTH
from hpctrack.evaluation.tally import Cuts
from hpctrack.files.atomic import publish, remove, temporary_name, write_text
from hpctrack.files.outputs import check_folder, check_output
from hpctrack.formats.colliderml import tracks as colliderml
from hpctrack.formats.submissions import load_pyarrow
from hpctrack.process import arguments, pools
from hpctrack.process.ends import verb
from hpctrack.requirements.needs import lacking
from hpctrack.storage.candidates import CANDIDATES, CandidateStore, encode
from hpctrack.storage.journals import PARTS, Journal, committed
from hpctrack.storage.products import clean
from hpctrack.storage.schema import ESTIMATE, Candidates, Event
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import from_lists

if TYPE_CHECKING:
    from hpctrack.tracking.kalman_fit import Fits, KalmanFit

HITS = [f"hits.{name}" for name in ("hit_id", "x", "y", "z", "volume_id", "layer_id", "module_id")]
NO_OUTLIERS = float("inf")  # a chi2 that no hit is above
MISSED = 100.0
MIN_HITS = 3  # of a track in the exclusive reading, and of a candidate that is looked at


@dataclass(frozen=True)
class Keep:
    """Which candidates are left out: those with a fit beyond the cuts.

    `chi2_per_ndf` is the limit for three hits, with all hits in the fit. Each hit more allows `growth` times as much:
    the more hits, the fewer sets of them come about by chance, while a hard scatter spoils the chi2 of a true track at
    any length. A hit on a module that the track misses counts as a chi2 of MISSED. The other cuts are on the fit that
    sets outliers aside.
    """

    chi2_per_ndf: float
    growth: float
    outlier_share: float
    measurements: int

    def left_out(self, fits: Fits, whole: Fits, size: np.ndarray) -> np.ndarray:
        """Numbers of candidates, of `size` [C] hits, from their fits without outliers and with all hits."""
        aside = np.array([len(rows) for rows in fits.outliers], np.int64)
        many = aside > self.outlier_share * (aside + fits.measurements)
        with np.errstate(over="ignore"):
            limit = self.chi2_per_ndf * self.growth ** (size[whole.candidate] - MIN_HITS).astype(np.float64)
        chi2 = (whole.chi2 + MISSED * whole.missed) / np.maximum(whole.ndf + 2 * whole.missed, 1)
        bad = fits.candidate[many | (fits.measurements < self.measurements)]
        return np.union1d(bad, whole.candidate[chi2 > limit])


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack fit", description=__doc__)
    p.add_argument("candidates", type=Path, help="folder that `hpctrack infer` wrote")
    p.add_argument("--data", type=Path, required=True, help="the dataset the candidates were made from")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--tracks", type=Path, help="also write the tracks as ColliderML's parquet (extra `parquet`)")
    p.add_argument("--keep", action="store_true", help="leave out candidates with a fit beyond the cuts that follow")
    p.add_argument(
        "--chi2-per-ndf-max", type=arguments.real(0), default=1.5, help="with --keep: of 3 hits, all in the fit (1.5)"
    )
    p.add_argument(
        "--chi2-growth", type=arguments.real(1), default=6.0, help="with --keep: so many times that for a hit more (6)"
    )
    p.add_argument(
        "--outlier-share-max", type=arguments.real(0, 1), default=1.0, help="with --keep: share of hits set aside (1)"
    )
    p.add_argument(
        "--measurements-min", type=arguments.natural, default=0, help="with --keep: hits that the fit used (0)"
    )
    p.add_argument(
        "--outlier-chi2", type=arguments.real(0, open_=True), default=15.0, help="a hit above it is set aside (15)"
    )
    p.add_argument("--pt-min-gev", type=arguments.real(0), default=1.0, help="targets of the pulls (1.0)")
    p.add_argument("--jobs", type=arguments.positive, default=1, help="processes (1); the result does not depend on it")
    return p


@verb("fit")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    check_folder(args.out.absolute().parent)
    if args.out.exists() or args.out.is_symlink():
        raise InputError(f"{args.out}: exists; name a new folder")
    if args.tracks:
        load_pyarrow()
        check_output(args.tracks)
    cuts = args.chi2_per_ndf_max, args.chi2_growth, args.outlier_share_max, args.measurements_min
    keep = Keep(*cuts) if args.keep else None
    fitting = Fitting(args.candidates, args.data, args.outlier_chi2, keep, Cuts(args.pt_min_gev))
    done = list(fitting.all(args.jobs))
    write(args.out, fitting, done)
    print("\n".join(summary(fitting, done)))
    print(f"written: {args.out}")
    if args.tracks:
        colliderml.write(args.tracks, fitting.data, [one.found for one in done])
        print(f"tracks: {args.tracks}")


@dataclass(frozen=True)
class Done:
    """An event's candidates after the fit, what the fit says of each, and deviations from the truth if it is known."""

    found: Candidates
    line: dict
    tried: int
    fitted: int
    of_fit: np.ndarray | None = None  # as resolutions.deviations
    of_model: np.ndarray | None = None


class Fitting:
    """Candidates beside their dataset, and how they are fitted; picklable, so that processes can share the events."""

    def __init__(self, candidates: Path, data: Path, outlier_chi2: float, keep: Keep | None, cuts: Cuts) -> None:
        self.store, self.data = CandidateStore(candidates), Dataset(data, verify=True)
        self.rows, self.keep, self.cuts = self.store.rows_in(self.data), keep, cuts
        self.outlier_chi2 = outlier_chi2
        self.with_truth = not lacking(self.data, [resolutions.RESOLUTIONS, *cuts.needs()])
        self.kalman: KalmanFit | None = None  # of this process
        filter_of(self.data.field_t)  # InputError without pyacts, before processes begin

    def event(self, i: int) -> Done:
        """The i-th event that has candidates."""
        if self.kalman is None:
            self.kalman = filter_of(self.data.field_t)
        truth = [name for name in dict.fromkeys([*TRUTH, *resolutions.COLUMNS]) if name in self.data.columns]
        event = self.data.read(int(self.rows[i]), list(dict.fromkeys([*HITS, *(truth if self.with_truth else [])])))
        given = self.store.read(i)
        lists = np.split(given.hit_rows, given.hit_offsets[1:-1]) if len(given) else []
        fits = self.kalman.fit(event, lists, self.outlier_chi2)
        chosen, of_all = fits.candidate, {}
        if self.keep:
            whole, size = self.kalman.fit(event, lists, NO_OUTLIERS), np.diff(given.hit_offsets)
            chosen = np.setdiff1d(np.flatnonzero(size >= MIN_HITS), self.keep.left_out(fits, whole, size))
            of_all = {f"{name}_of_all_hits": said(whole, name, chosen) for name in ("chi2", "ndf", "missed")}
        found = written(event, given, fits, chosen, as_it_was=self.keep is not None)
        line: dict = {
            "event_id": event.event_id,
            "candidate": chosen.tolist(),
            **{name: said(fits, name, chosen) for name in ("chi2", "ndf", "measurements", "outliers")},
            **of_all,
        }
        pair = (found, given) if self.with_truth else ()
        deviations = [resolutions.deviations(event, one, self.cuts) for one in pair]
        return Done(found, line, len(given), len(fits.candidate), *deviations)

    def all(self, jobs: int) -> Iterator[Done]:
        """All events in the order of the candidates, by `jobs` processes."""
        if jobs == 1 or len(self.store) < 2:
            yield from map(self.event, range(len(self.store)))
            return
        early: dict[int, Done] = {}
        self.kalman, at = None, 0
        for outcome in pools.run(self.event, enumerate(range(len(self.store))), min(jobs, len(self.store)), "spawn"):
            early[outcome.place] = outcome.result()
            while at in early:
                yield early.pop(at)
                at += 1


def filter_of(field_t: float) -> KalmanFit:
    """The filter; InputError if pyacts is not there."""
    from hpctrack.simulation.acts_detector import import_acts

    import_acts()
    from hpctrack.tracking.kalman_fit import KalmanFit

    return KalmanFit(field_t)


def said(fits: Fits, name: str, chosen: np.ndarray) -> list:
    """What the fits say of the candidates `chosen`, as JSON has it; None of those that could not be fitted."""
    values = getattr(fits, name)
    fit = {c: values[k].tolist() for k, c in enumerate(fits.candidate.tolist())}
    return [fit.get(c) for c in chosen.tolist()]


def written(event: Event, given: Candidates, fits: Fits, chosen: np.ndarray, *, as_it_was: bool) -> Candidates:
    """The candidates `chosen`, with all their hits or without outliers; parameters are NaN where there is no fit.

    They are scored by the number of hits that the fit used, and then its chi2. Those without a fit come behind, by the
    number of hits: their scores are below 0.
    """
    lists, scores, numbers = [], [], {c: k for k, c in enumerate(fits.candidate.tolist())}
    parameters = np.full((len(chosen), len(ESTIMATE)), np.nan, np.float32)
    for i, c in enumerate(chosen.tolist()):
        k, rows = numbers.get(c), given.hit_rows[slice(*given.hit_offsets[c : c + 2])]
        if k is not None:
            rows = rows if as_it_was else np.setdiff1d(rows, fits.outliers[k])
            parameters[i] = fits.parameters[k]
        lists.append(rows)
        scores.append(-1 / len(rows) if k is None else fits.measurements[k] + 1 / (1 + fits.chi2_per_ndf[k]))
    found = from_lists(lists, scores, event.n_hits, event.event_id, MIN_HITS)
    return Candidates(**{**vars(found), "parameters": parameters})


def write(out: Path, fitting: Fitting, done: Sequence[Done]) -> None:
    """The folder of candidates, whole."""
    temporary = temporary_name(out)
    try:
        (temporary / PARTS).mkdir(parents=True)
        journal = Journal(temporary, "fit")
        for one in done:
            journal.append(one.found.event_id, encode(one.found))
        journal.close()
        events, name = [one.found.event_id for one in done], "candidates-00000.h5"
        digest = CANDIDATES.write_shard(temporary, name, events, committed(temporary))
        how = {"outlier_chi2": fitting.outlier_chi2, "keep": vars(fitting.keep) if fitting.keep else None}
        attributes = {**fitting.store.attributes, "fit": how}
        CANDIDATES.write_index(temporary, [(name, events, digest)], attributes)
        write_text(temporary / "fits.jsonl", "".join(f"{json.dumps(one.line)}\n" for one in done))
        clean(temporary)
        publish(temporary, out)
    finally:
        remove(temporary)


def summary(fitting: Fitting, done: Sequence[Done]) -> list[str]:
    """What was fitted and kept; pulls of the fit, and of the model's own parameters if it has some."""
    tried, fitted, kept = sum(d.tried for d in done), sum(d.fitted for d in done), sum(len(d.found) for d in done)
    lines = [f"{len(done)} events: {tried} candidates, {fitted} fitted, {kept} written"]
    for name, parts in (("fit", [one.of_fit for one in done]), ("model", [one.of_model for one in done])):
        if summed := resolutions.summary(parts, fitting.cuts):
            lines += [f"\nof the {name}:", *resolutions.lines(summed)[1:]]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

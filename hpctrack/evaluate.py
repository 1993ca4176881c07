"""`hpctrack evaluate`: candidates against the truth of their dataset -> results.json and a table.

Counts are taken event by event and added up; definitions stand in evaluation/metrics.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hpctrack import __version__
from hpctrack.errors import InputError
from hpctrack.evaluation import edge_metrics, event_rules, hit_metrics, kinds, resolutions, rules
from hpctrack.evaluation.tally import COLUMNS as TALLY_COLUMNS
from hpctrack.evaluation.tally import SCORE, Cuts, EventTally, add_up, event_row, tally_event
from hpctrack.files.jsonlines import TIMINGS, is_truncated, read_lines
from hpctrack.files.outputs import check_output, write_json_output
from hpctrack.process import arguments, pools
from hpctrack.process.ends import verb
from hpctrack.requirements.needs import check, lacking, said
from hpctrack.results import comparison
from hpctrack.results.content import RESULTS_FORMAT, RESULTS_VERSION, rules_table, table
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.edges import EDGES
from hpctrack.storage.hits import HITS
from hpctrack.storage.products import Product
from hpctrack.storage.store import Dataset

TIMED = {"event_id": int, "n_hits": int, "rank": int} | dict.fromkeys(("read_s", "model_s", "build_s"), (int, float))
OF_STAGES: Sequence[tuple[Product, Callable[..., dict], Callable[[dict], str]]] = (
    (EDGES, edge_metrics.evaluate_edges, edge_metrics.table),
    (HITS, hit_metrics.evaluate_hits, hit_metrics.table),
)


@verb("evaluate")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Evaluate a folder of candidates, or of a stage's edges or kept hits; prints the table of all metrics."""
    args = parser().parse_args(argv)
    if args.candidates is None and args.compare:
        compare(args)
        return None
    if missing := [name for name in ("candidates", "data", "out") if getattr(args, name) is None]:
        raise InputError(f"give CANDIDATES, --data and --out (no {missing[0]}), or --compare alone")
    check_output(args.out)
    others = comparison.load(args.compare)
    by = rules.chosen(args.rules)
    cuts = Cuts(args.pt_min_gev, args.min_hits, args.eta_max)
    command = ["hpctrack", "evaluate", *(sys.argv[1:] if argv is None else argv)]
    for product, evaluate, table_of in OF_STAGES:
        if product.is_in(args.candidates):
            if others or args.kinds or by:
                what = f"{args.candidates}: holds {product.name}"
                raise InputError(f"{what}; --compare, --kinds and --rules are for track candidates")
            results = evaluate(args.candidates, args.data, cuts, command)
            write_json_output(args.out, results)
            print(f"{table_of(results)}\n\nwritten: {args.out}")
            return None
    evaluation = Evaluation(args.candidates, args.data, cuts, by)
    for line in evaluation.left_out:
        print(line, file=sys.stderr)
    tallies = list(evaluation.tallies(args.jobs))
    cuts.check(sum(tally.n_targets for tally in tallies), evaluation.dataset)
    results = evaluation.results(tallies, command)
    write_json_output(args.out, results)
    print(table(results))
    if results["resolutions"]:
        print("\n".join(resolutions.lines(results["resolutions"])))
    if by:
        print(f"\n{rules_table(results)}")
    taken = args.out.stem in (one.name for one in others)
    mine = comparison.Named("this" if taken else args.out.stem, args.out, results)
    if note := comparison.not_told(mine):
        print(f"\nnote: {note}")
    if args.kinds:
        print(f"\n{comparison.text(comparison.by_kind(mine))}")
    if others:
        print(f"\n{comparison.text(comparison.beside([mine, *others]))}")
    print(f"\nwritten: {args.out}")
    return None


def compare(args: argparse.Namespace) -> None:
    """Results that were evaluated before beside each other, nothing is written."""
    if args.data or args.out or args.kinds or args.rules:
        wrong = "no --data, --out, --kinds, --rules"
        raise InputError(f"--compare without CANDIDATES prints results that were made before: {wrong}")
    named = comparison.load(args.compare)
    print(comparison.text(comparison.beside(named)))
    for one in named:
        if note := comparison.not_told(one):
            print(f"note: {one.name}: {note}")


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack evaluate", description="Candidates against truth -> results.json.")
    p.add_argument("candidates", type=Path, nargs="?", help="folder that `hpctrack infer` wrote")
    p.add_argument("--data", type=Path, help="the dataset the candidates were made from")
    p.add_argument("--out", type=Path, help="results.json to write")
    p.add_argument("--pt-min-gev", type=arguments.real(0), default=1.0, help="targets: transverse momentum (1.0)")
    p.add_argument("--min-hits", type=arguments.positive, default=3, help="targets: number of hits (3)")
    p.add_argument("--eta-max", type=arguments.real(0), default=None, help="targets: |eta| at most (no cut)")
    p.add_argument("--jobs", type=arguments.positive, default=1, help="processes (1); the result does not depend on it")
    p.add_argument("--kinds", action="store_true", help="also print every metric by kind of track, exclusive tracks")
    p.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE",
        help=f"also count by other groups' own definitions: {', '.join((*rules.RULES, *event_rules.EVENT_RULES))}; "
        f"{rules.ALL}: every one on collisions",
    )  # fmt: skip
    p.add_argument(
        "--compare", nargs="+", default=[], metavar="[NAME=]FILE",
        help="print these results.json beside each other (and beside this one), by kind of track too",
    )  # fmt: skip
    return p


COLUMNS = list(dict.fromkeys([*TALLY_COLUMNS, "particles.particle_id", *kinds.COLUMNS, *resolutions.COLUMNS]))


class Evaluation:
    """A candidates folder beside its dataset; picklable, so that processes can share the events.

    Raises InputError if the candidates were made from other events than the dataset holds, or if that has no truth to
    judge them by. `left_out`: lines about numbers that there are none of, as the dataset lacks something. `by`: names
    of rules by which to count as well (evaluation/rules.py).
    """

    def __init__(self, candidates: Path, data: Path, cuts: Cuts, by: Sequence[str] = ()) -> None:
        self.store, self.dataset, self.cuts, self.by = CandidateStore(candidates), Dataset(data, verify=True), cuts, by
        self.position = self.store.rows_in(self.dataset)
        check(self.dataset, [*cuts.needs(), *rules.needs(by)])
        rules.check_detector(by, self.dataset.detector, str(data))
        with_parameters = len(self.store) > 0 and self.store.read(0).parameters is not None
        wanted = [SCORE, *([resolutions.RESOLUTIONS] if with_parameters else [])]  # left out where they cannot be
        unmet = lacking(self.dataset, wanted)
        self.left_out = [f"{data}: {said([need])}: left out" for need in unmet]
        self.with_resolutions = with_parameters and resolutions.RESOLUTIONS.who not in {need.who for need in unmet}
        columns = dict.fromkeys([*COLUMNS, *rules.columns(by)])
        self.columns = [name for name in columns if name not in self.dataset.lacks]
        tracks = self.store.attributes.get("selection", {}).get("tracks")
        if tracks is not None:
            raise InputError(
                f"{candidates}: inference saw a random draw of tracks (selection.tracks={tracks}), so what it missed "
                f"is not known; draw with `hpctrack convert DATASET OUT --tracks {tracks}` and infer on OUT"
            )

    def __len__(self) -> int:
        return len(self.store)

    def tally(self, i: int) -> EventTally:
        """Counts of the i-th event that has candidates."""
        event = self.dataset.read(int(self.position[i]), self.columns)
        found = self.store.read(i)
        tally = tally_event(event, found, self.cuts)
        if self.with_resolutions:
            tally.deviations = resolutions.deviations(event, found, self.cuts)
        tally.by_rule = rules.count(event, found, self.by, self.cuts, self.dataset.detector)
        return tally

    def name_of(self, i: int) -> str:
        """The i-th event, for people."""
        return f"event {self.store.event_ids[i]}"

    def tallies(self, jobs: int = 1) -> Iterator[EventTally]:
        """Counts of all events in the order of the candidates folder, computed by `jobs` processes."""
        if jobs == 1 or len(self) < 2:
            yield from map(self.tally, range(len(self)))
            return
        method: pools.StartMethod = "fork" if sys.platform == "linux" else "spawn"
        early: dict[int, EventTally] = {}  # that have overtaken others
        done = 0
        for outcome in pools.run(self.tally, enumerate(range(len(self))), min(jobs, len(self)), method, self.name_of):
            early[outcome.place] = outcome.result()
            while done in early:
                yield early.pop(done)
                done += 1

    def results(self, tallies: list[EventTally], command: list[str]) -> dict:
        """The content of results.json."""
        hidden = kinds.not_told(self.columns)
        by_rule = rules.add_up([tally.by_rule for tally in tallies], self.by, self.cuts, self.dataset.detector)
        return {
            "format": RESULTS_FORMAT,
            "version": RESULTS_VERSION,
            "hpctrack": __version__,
            "command": command,
            "selection": {**vars(self.cuts), "min_candidate_hits": 3, "text": self.cuts.text()},
            "source": {
                "candidates": str(self.store.folder),
                "attributes": self.store.attributes,
                "dataset": str(self.dataset.folder),
                "dataset_fingerprint": self.dataset.fingerprint,
                "events_in_dataset": len(self.dataset),
            },
            "events": len(tallies),
            "hits": sum(tally.n_hits for tally in tallies),
            "noise_hits": sum(tally.n_noise for tally in tallies),
            "target_particles": sum(tally.n_targets for tally in tallies),
            "kinds": kinds.described(),
            "not_told": hidden,
            **add_up(tallies, self.cuts, hidden),
            "resolutions": resolutions.summary([tally.deviations for tally in tallies], self.cuts),
            **({"rules": by_rule} if by_rule else {}),
            "per_event": [event_row(tally) for tally in tallies],
            "timings": read_timings(self.store.folder / TIMINGS),
        }


def read_timings(path: Path) -> dict | None:
    """Sum up timings.jsonl: per step total, median and maximum seconds; hits per second; [n_hits, seconds] per event.

    None if there is no such file. An event timed twice (inference was resumed) counts with its last line; a line that a
    kill cut short is left out and counted in `unreadable_lines`.
    """
    if not path.is_file():
        return None
    unreadable = int(is_truncated(path))
    events = {
        row["event_id"]: ([row["n_hits"], row["read_s"], row["model_s"], row["build_s"]], row["rank"])
        for row in read_lines(path, "no timing of an event", TIMED)
    }
    if not events:
        return {"events": 0, "unreadable_lines": unreadable}
    numbers = np.array([row for row, _ in events.values()], dtype=np.float64)
    total = numbers[:, 1:].sum(axis=1)
    steps = {"read_s": numbers[:, 1], "model_s": numbers[:, 2], "build_s": numbers[:, 3], "total_s": total}
    return {
        "events": len(events),
        "ranks": len({rank for _, rank in events.values()}),
        "unreadable_lines": unreadable,
        "hits": int(numbers[:, 0].sum()),
        "hits_per_s": float(numbers[:, 0].sum() / total.sum()) if total.sum() > 0 else None,
        "steps": {
            name: {"sum": float(s.sum()), "median": float(np.median(s)), "max": float(s.max())}
            for name, s in steps.items()
        },
        "per_event": [[int(hits), float(seconds)] for hits, seconds in zip(numbers[:, 0], total, strict=True)],
    }


if __name__ == "__main__":
    raise SystemExit(main())

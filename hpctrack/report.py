"""`hpctrack report`: results, run and candidates as one self-contained HTML page.

Reads what the other verbs wrote and never imports torch. What was not given is said on the page; a path that was given
but cannot be read is bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.evaluation.tally import COLUMNS, Cuts
from hpctrack.files.outputs import check_output, write_output
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.reporting import by_kind, by_rule, filters, landscapes, page, sections, studies
from hpctrack.reporting.display import Display, display_png, make_display
from hpctrack.results import comparison
from hpctrack.results.comparison import Named
from hpctrack.results.filters import load_filters
from hpctrack.results.landscapes import load_landscape
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.store import Dataset
from hpctrack.training.run_folder import Run


@verb("report")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Write the page (and the display as a picture)."""
    args = parser().parse_args(argv)
    if (args.candidates is None) != (args.data is None):
        raise InputError("--candidates and --data belong together: the display needs the hits and who found them")
    if args.display_png and args.candidates is None:
        raise InputError("--display-png needs --candidates and --data")
    for path in (args.out, args.display_png):
        if path:
            check_output(path)
    given = comparison.load([*([args.results] if args.results else []), *args.compare])
    looks = [load_landscape(path) for path in args.landscape]
    seen = [load_filters(path) for path in args.filters]
    if not given and (looks or seen) and not (args.run or args.candidates):
        parts = [part for look in looks for part in landscapes.sections(look)]
        parts += [part for pictures in seen for part in filters.sections(pictures)]
        title = "Are these trainings the same model?" if looks else "What convolutions look for"
        lead = landscapes.lead(looks[0]) if looks else filters.lead(seen[0])
        write_page(args.out, page.page(args.title or title, lead, parts))
        return None
    if not given:
        raise InputError("give --results, or --compare with several: results.json of `hpctrack evaluate`")
    results, references = given[0].results, [(one.name, one.results) for one in given[1:]]
    run = Run(args.run) if args.run else None
    display = load_display(args, given[0]) if args.candidates else None
    study_parts = [part for folder in args.study for part in studies.sections(folder)]
    parts = [
        sections.headline(results, references),
        sections.rates(results, references),
        by_kind.by_kind(given[0]),
        *([by_kind.beside(given)] if references else []),
        *by_rule.by_rule(results),
        *sections.section(results),
        sections.losses(run),
        sections.event_display(display, results),
        sections.timings(run, results, references),
        *study_parts,
        *(part for look in looks for part in landscapes.sections(look)),
        *(part for pictures in seen for part in filters.sections(pictures)),
        sections.provenance(run, results),
    ]
    title = args.title or f"Track candidates: {args.run.resolve().name if args.run else given[0].name}"
    text = page.page(title, sections.lead(results), parts)
    if args.display_png and display is not None:
        write_output(args.display_png, display_png(display))
    write_page(args.out, text, args.display_png)
    return None


def write_page(out: Path, text: str, picture: Path | None = None) -> None:
    """Write the page, and say so."""
    write_output(out, text)
    print(f"written: {out} ({len(text) / 1e6:.1f} MB)" + (f", {picture}" if picture else ""))


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack report", description="One self-contained HTML page of a run.")
    p.add_argument(
        "--results", metavar="[NAME=]FILE", help="results.json of `hpctrack evaluate` (the first of --compare)"
    )
    p.add_argument("--out", type=Path, required=True, help="the page to write")
    p.add_argument("--run", type=Path, help="run folder of `hpctrack train`: losses, speed, configuration")
    p.add_argument("--candidates", type=Path, help="candidates folder, for the event display (with --data)")
    p.add_argument("--data", type=Path, help="dataset folder, for the event display (with --candidates)")
    p.add_argument(
        "--compare", "--reference", nargs="*", action="extend", default=[], metavar="[NAME=]FILE",
        help="further results.json to put beside: other models, or other datasets; NAME is what the page calls it",
    )  # fmt: skip
    p.add_argument(
        "--study", type=Path, action="append", default=[], metavar="FOLDER",
        help="also show this study's table and picture (what tests/campaigns wrote); may be given several times",
    )  # fmt: skip
    p.add_argument(
        "--landscape", type=Path, action="append", default=[], metavar="FOLDER",
        help="also show what `hpctrack landscape` wrote; without --results, this alone; may be given several times",
    )  # fmt: skip
    p.add_argument(
        "--filters", type=Path, action="append", default=[], metavar="FILE",
        help="also show what `hpctrack filters` wrote; without --results, this alone; may be given several times",
    )  # fmt: skip
    p.add_argument("--title", help="heading of the page (name of the run)")
    p.add_argument(
        "--event", type=arguments.natural, help="event to display (the one with the median number of targets)"
    )
    p.add_argument(
        "--display", choices=("auto", "all", "targets"), default="auto",
        help="draw all hits, or target particles only; auto: targets only beyond 4,000 hits",
    )  # fmt: skip
    p.add_argument("--display-png", type=Path, help="also save the event display as this picture")
    return p


def load_display(args: argparse.Namespace, given: Named) -> Display:
    """The event to draw; InputError if candidates, data and results are not of one another."""
    results = given.results
    store, data = CandidateStore(args.candidates), Dataset(args.data)
    for what, fingerprint in (("candidates", store.attributes.get("dataset_fingerprint")), ("data", data.fingerprint)):
        if fingerprint != results["source"]["dataset_fingerprint"]:
            path = getattr(args, what)
            raise InputError(
                f"{path}: of a dataset with fingerprint {fingerprint}, but {given.path} was evaluated on "
                f"{results['source']['dataset_fingerprint']}"
            )
    rows = results["per_event"]
    if args.event is not None:
        event_id = args.event
    elif rows:
        by_size = sorted(rows, key=lambda row: (row["n_targets"], row["event_id"]))
        event_id = by_size[len(by_size) // 2]["event_id"]
    else:
        raise InputError(f"{given.path}: no events, so there is none to display; leave out --candidates and --data")
    position, row = (np.flatnonzero(ids == event_id) for ids in (store.event_ids, data.event_ids))
    if not len(position) or not len(row):
        raise InputError(f"--event {event_id}: not in {args.candidates}; it has {_some(store.event_ids)}")
    columns = [name for name in COLUMNS if name in data.columns]
    selection = results["selection"]
    cuts = Cuts(selection["pt_min_gev"], selection["min_hits"], selection["eta_max"])
    only = {"auto": None, "all": False, "targets": True}[args.display]
    return make_display(data.read(int(row[0]), columns), store.read(int(position[0])), cuts, only)


def _some(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:5])) + (f", … ({len(ids):,} events)" if len(ids) > 5 else "")


if __name__ == "__main__":
    raise SystemExit(main())

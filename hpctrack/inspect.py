"""`hpctrack inspect PATH`: what a dataset, shard, candidates, run or checkpoint holds; --verify checks it.

`--verify` reads everything: every checksum, every offset, every reference from one table or file to another. It lists
each problem by file, event and column; the exit code is 2 if there is one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpctrack.errors import InputError
from hpctrack.files.outputs import check_output, write_json_output
from hpctrack.inspection import describe_candidates, describe_datasets, describe_runs, kinds, text
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.storage.products import Product
from hpctrack.storage.verify import Problem, check_dataset, check_index, check_shard
from hpctrack.storage.verify_candidates import check_candidates, check_candidates_file, check_journal

T = TypeVar("T")


@verb("inspect")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    if args.json:
        check_output(args.json)
    if args.statistics:
        say_statistics(args)
        return None
    if args.beside:
        raise InputError("--beside is for --statistics; give it too")
    path, kind = args.path, kinds.kind_of(args.path)
    if args.data and kind not in (kinds.CANDIDATES, kinds.UNFINISHED_CANDIDATES):
        raise InputError(f"--data is for candidates, but {path} is a {kind}")
    problems = verify(path, kind, args.data, args.jobs) if args.verify else []
    try:
        facts = describe(path, kind)
    except InputError:
        if not problems:
            raise
        facts = {}  # the problems say why
    print("\n".join([f"{path}: {kind}", *text.lines(facts)]))
    if args.verify:
        print("\n".join(["", *(f"problem: {problem}" for problem in problems)] if problems else ["", "verified: ok"]))
    if args.json:
        found = {"verified": args.verify, "problems": [vars(problem) for problem in problems]}
        write_json_output(args.json, {"path": str(path), "kind": kind, **facts, **found})
    if problems:
        raise InputError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    return None


def say_statistics(args: argparse.Namespace) -> None:
    """Print the statistics of one dataset or of several side by side, and write them as JSON where asked."""
    if args.verify or args.data:
        raise InputError("--statistics goes without --verify and --data; run them one after the other")
    paths = [args.path, *args.beside]
    names = [path.name or str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError("--beside names a dataset twice")
    statistics = importlib.import_module("hpctrack.inspection.statistics")  # imports the formats
    found = {name: statistics.statistics(path) for name, path in zip(names, paths, strict=True)}
    print("\n".join(statistics.statistics_lines(found)))
    if args.json:
        write_json_output(args.json, {"datasets": found})


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack inspect", description=__doc__.split("\n\n")[0])
    p.add_argument("path", type=Path, metavar="PATH", help="what to look at; its kind is found out")
    p.add_argument("--verify", action="store_true", help="read everything and check it; exit code 2 for a problem")
    p.add_argument("--data", type=Path, metavar="DATASET", help="with --verify of candidates: check against it")
    p.add_argument("--jobs", type=arguments.positive, default=1, metavar="J", help="processes of --verify; default 1")
    p.add_argument(
        "--statistics", action="store_true", help="of a dataset or TrackML files: which kinds of tracks the events hold"
    )
    p.add_argument(
        "--beside", type=Path, metavar="DATASET", nargs="+", default=[], help="with --statistics: others, side by side"
    )
    p.add_argument("--json", type=Path, metavar="F", help="also write all of it as JSON")
    return p


def _checkpoints() -> Any:
    return importlib.import_module("hpctrack.inspection.describe_checkpoints")  # imports torch


def _of_stages(
    whole: Callable[[Product, Path], T], begun: Callable[[Product, Path], T]
) -> Mapping[str, Callable[[Path], T]]:
    """Of each kind that a pipeline's stages make, what `whole` says, and of unfinished ones, what `begun` says."""
    return {kind: functools.partial(whole, product) for kind, product in kinds.OF_STAGES.items()} | {
        kind: functools.partial(begun, product) for kind, product in kinds.UNFINISHED.items()
    }


def describe(path: Path, kind: str) -> dict[str, Any]:
    """The facts of what lies at `path`, fit for JSON; InputError if it cannot be read."""
    describers: dict[str, Callable[[Path], dict[str, Any]]] = {
        kinds.DATASET: describe_datasets.describe_dataset,
        kinds.DATASET_INDEX: lambda path: describe_datasets.describe_dataset(path.parent),
        kinds.SHARD: describe_datasets.describe_shard,
        kinds.UNFINISHED_DATASET: describe_datasets.describe_unfinished,
        kinds.CANDIDATES: describe_candidates.describe_candidates,
        kinds.CANDIDATES_INDEX: lambda path: describe_candidates.describe_candidates(path.parent),
        kinds.CANDIDATES_FILE: describe_candidates.describe_file,
        kinds.UNFINISHED_CANDIDATES: describe_candidates.describe_unfinished,
        **_of_stages(describe_candidates.describe_product, describe_candidates.describe_begun),
        kinds.JOURNAL: lambda path: describe_candidates.describe_journal(kinds.of_journal(path), path),
        kinds.RUN: describe_runs.describe_run,
        kinds.RESULTS: describe_runs.describe_results,
        kinds.CHECKPOINT: lambda path: _checkpoints().describe_checkpoint(path if path.is_dir() else path.parent),
        kinds.CHECKPOINTS: lambda path: _checkpoints().describe_checkpoints(path),
    }
    return describers[kind](path)


def verify(path: Path, kind: str, data: Path | None = None, jobs: int = 1) -> list[Problem]:
    """Every problem of what lies at `path`; `jobs` 0 checks in this process."""
    checks: dict[str, Callable[[Path], list[Problem]]] = {
        kinds.DATASET: lambda path: check_dataset(path, jobs, progress_lines()),
        kinds.DATASET_INDEX: lambda path: check_index(path.parent)[1],
        kinds.SHARD: lambda path: check_shard(path).problems,
        kinds.UNFINISHED_DATASET: lambda path: check_dataset(path, jobs, progress_lines()),
        kinds.CANDIDATES: lambda path: check_candidates(path, data, jobs, progress_lines()),
        kinds.CANDIDATES_INDEX: lambda path: check_candidates(path.parent, data, jobs, progress_lines()),
        kinds.CANDIDATES_FILE: lambda path: check_candidates_file(path)[0],
        kinds.UNFINISHED_CANDIDATES: lambda path: check_candidates(path, data, jobs, progress_lines()),
        **_of_stages(describe_candidates.check_product, describe_candidates.check_begun),
        kinds.JOURNAL: lambda path: check_journal(path, product=kinds.of_journal(path)),
        kinds.RUN: lambda path: describe_runs.check_run(path) + _checkpoints().check_checkpoints(path / "checkpoints"),
        kinds.RESULTS: describe_runs.check_results,
        kinds.CHECKPOINT: lambda path: _checkpoints().check_checkpoint(path if path.is_dir() else path.parent),
        kinds.CHECKPOINTS: lambda path: _checkpoints().check_checkpoints(path),
    }
    return checks[kind](path)


def progress_lines() -> Callable[[int, int], None]:
    """A progress line on stderr every few seconds."""
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 3:
            last, left = now, (now - start) / done * (total - done)
            print(f"inspect: {done}/{total} files verified, {left:.0f} s left", file=sys.stderr, flush=True)

    return progress


if __name__ == "__main__":
    raise SystemExit(main())

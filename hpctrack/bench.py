"""`hpctrack bench NAME`: measured performance, as ratios of things measured in the same run."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hpctrack.benchmarks import BENCHES, benchmark
from hpctrack.benchmarks.measure import Figure, Page, commit, machine
from hpctrack.errors import InputError
from hpctrack.files.outputs import check_output, output, write_json_output, write_output
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.process.versions import versions

OPTIONAL = {"data": "dataset", "runs": "runs", "chain": "pipelines", "parts": "parts"}  # of some


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack bench", description=__doc__)
    p.add_argument("name", choices=BENCHES, help="what is measured (docs/benchmarks/)")
    p.add_argument("--json", type=Path, help="write figures, command, commit, versions and machine here")
    p.add_argument("--markdown", type=Path, help="write the same as a page for docs/benchmarks/")
    p.add_argument("--quick", action="store_true", help="the same figures on less work")
    p.add_argument("--data", type=Path, help="dataset folder to measure on, where the benchmark uses events")
    p.add_argument("--runs", type=Path, help="folder of runs made elsewhere, e.g. by slurm/scaling.sh")
    p.add_argument(
        "--chain",
        action="append",
        metavar="NAME=RUN,RUN",
        help="checkpoints of a pipeline in order, where the benchmark runs pipelines; again for each pipeline",
    )
    p.add_argument("--parts", help="some parts of a benchmark alone, e.g. influencer-500,chain (gpu)")
    p.add_argument("--threads", type=arguments.threads, default=1, help="CPU threads (default 1)")
    return p


@verb("bench")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    for path in (args.json, args.markdown):
        if path:
            check_output(path)
    torch.set_num_threads(args.threads)
    found = run(benchmark(args.name), args)
    result = {
        "bench": args.name,
        "command": shlex.join(["hpctrack", "bench", *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "versions": versions(),
        "machine": machine() | {"threads": args.threads},
        "figures": {figure.name: figure.summary() for figure in found.figures},
    }
    text = page(result) + ("\n" + found.text if found.text else "")
    print(text)
    if args.json:
        write_json_output(args.json, result)
    if args.markdown:
        write_output(args.markdown, text)
        if found.plot:
            with output(args.markdown.with_suffix(".png")) as file:
                found.plot(file)


def run(bench: Callable[..., list[Figure] | Page], args: argparse.Namespace) -> Page:
    """Run a benchmark on what was asked for; InputError if it takes no dataset, runs, pipelines or parts."""
    options = {name: value for name in OPTIONAL if (value := getattr(args, name))}
    for name, value in options.items():
        if name not in inspect.signature(bench).parameters:
            said = value[0] if isinstance(value, list) else value
            raise InputError(f"--{name} {said}: benchmark '{args.name}' uses no {OPTIONAL[name]}; leave it out")
    found = bench(args.quick, **options)
    return found if isinstance(found, Page) else Page(found)


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"| `{name}` | {f['median']:.3g} | {f['min']:.3g} – {f['max']:.3g} | {f['unit']} | {f['n']} | {f['meaning']} |"
        for name, f in result["figures"].items()
    ]
    about = result["machine"]
    return "\n".join(
        [
            f"# hpctrack bench {result['bench']}",
            "",
            "| figure | median | range | unit | repeats | meaning |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Command: `{result['command']}`, commit {result['commit']}. Machine: {about['cpu']}, {about['cores']} "
            f"cores ({about['threads']} thread used), {about['memory_gib']} GiB. "
            f"Versions: {', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())

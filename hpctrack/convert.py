"""`hpctrack convert SOURCE OUT`: events of TrackML, ColliderML, ACTS, acorn, proton CT -> a dataset, or -> sub-events.

What SOURCE is, is found out by looking at its files; --format says it where that is not enough.

A shard is the unit of work, given by size to processes of one machine or, under `mpirun` or `srun`, to the MPI
ranks. Shards get their names when they are whole, the index is written last, and a rerun keeps the shards that the same
call made before. The files do not depend on the number of processes, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpctrack.config import parse
from hpctrack.errors import EXIT_INPUT, InputError
from hpctrack.formats import FORMATS
from hpctrack.formats.building import Conversion, convert, convert_on_ranks, ending
from hpctrack.formats.conversion import SKIPPED, Reader
from hpctrack.formats.known_formats import PARTS
from hpctrack.formats.recognise import format_of
from hpctrack.parallel.mpi import launched, mpi_world
from hpctrack.process import arguments
from hpctrack.recipes import apply_overrides


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack convert", description=__doc__.split("\n\n")[0])
    p.add_argument("source", help="folder, zip or file of events, or a dataset folder")
    p.add_argument("out", type=Path, help="dataset folder to write")
    p.add_argument(
        "--events-per-shard", type=arguments.positive, default=16, metavar="N", help="of the source; default 16"
    )
    p.add_argument("--jobs", type=arguments.positive, metavar="J", help="processes; default: the cores; not under MPI")
    p.add_argument("--limit", type=arguments.positive, metavar="N", help="only the first N events")
    p.add_argument("--skip-bad", action="store_true", help=f"leave bad events out and list them in {SKIPPED}")
    p.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT, once the new one is whole")
    other = p.add_argument_group("other formats")
    other.add_argument(
        "--format", metavar="NAME", help=f"of SOURCE, one of {', '.join(FORMATS.own)}, or of another package"
    )
    other.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the format; again for each",
    )
    csv = p.add_argument_group("files of events")
    csv.add_argument("--detectors", metavar="FILE", help="modules: detectors.csv[.gz]; default: in SOURCE or beside it")
    csv.add_argument("--no-truth", action="store_true", default=None, help="events without truth: hits of no particle")
    csv.add_argument(
        "--without", action="append", choices=PARTS, help="what the files have not, or is left out; again for each"
    )
    csv.add_argument(
        "--field", type=arguments.real(-10, 10, of=" in Tesla"), dest="field_t", metavar="TESLA",
        help="magnetic field along z; default: as simulation.json says, else TrackML's 2 T is assumed",
    )  # fmt: skip
    sub = p.add_argument_group("sub-events of a dataset")
    sub.add_argument("--tracks", type=_positive_or_all, metavar="T", help="tracks a sub-event; all: those of an event")
    sub.add_argument(
        "--draws", type=arguments.positive, metavar="D", help="at most D sub-events an event; default: all"
    )
    sub.add_argument(
        "--pt-min-gev", type=arguments.real(0, of=" in GeV"), metavar="PT", help="least pT of a track; default 0"
    )
    sub.add_argument("--min-hits", type=arguments.positive, metavar="H", help="least hits of a track; default 3")
    sub.add_argument(
        "--eta-max", type=arguments.real(0), metavar="ETA", help="most |pseudorapidity| of a track; default: any"
    )
    sub.add_argument("--remove-noise", action="store_true", default=None, help="else noise is thinned like the tracks")
    sub.add_argument("--seed", type=arguments.seed, help="default 0")
    return p


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive_or_all(text: str) -> int:
    return 0 if text == "all" else arguments.positive(text)


def make_reader(args: argparse.Namespace) -> tuple[Reader, dict[str, str]]:
    """The reader that SOURCE and the options ask for, and versions of other packages it is of.

    InputError if they do not fit together.
    """
    source = Path(args.source)
    if source.resolve() == args.out.resolve():
        raise InputError(f"{args.out}: OUT is SOURCE; choose another folder")
    name = args.format or format_of(source)
    if name not in FORMATS:
        raise InputError(f"--format {name}: must be one of {', '.join(FORMATS)}")
    flags = {known: FORMATS[known].Options.model_fields for known in FORMATS.own}  # most have a flag of the verb
    known = {flag: getattr(args, flag, None) for fields in flags.values() for flag in fields}
    given = {flag: value for flag, value in known.items() if value is not None}
    own = {flag: value for flag, value in given.items() if flag in flags.get(name, ())}
    values = apply_overrides({"format": own}, [f"format.{option}" for option in args.option], "--option")["format"]
    kind = FORMATS[name]
    reader = kind(parse(kind.Options, values, f"format '{name}'")).open(source, args.limit, args.skip_bad)
    for flag in sorted(given.keys() - own.keys()):
        raise misplaced(f"--{flag.removesuffix('_t').replace('_', '-')}", name, source)
    return reader, FORMATS.versions(name)


def misplaced(flag: str, name: str, source: Path) -> InputError:
    """The error of a flag that is not of the format `name`."""
    if name == "sub-events":
        flags = "--detectors and --no-truth are" if flag in ("--detectors", "--no-truth") else f"{flag} is"
        return InputError(f"{source}: is a dataset already; {flags} for TrackML files")
    if name == "trackml":
        return InputError(f"{source}: holds TrackML files; {flag} is for a dataset, so convert these first")
    if name in FORMATS.own:
        return InputError(f"{source}: holds {name} files; {flag} is not for these")
    return InputError(f"--format {name}: {flag} is for datasets or TrackML files; options are --option KEY=VALUE")


def main(argv: Sequence[str] | None = None) -> int:
    """The verb: on processes of this machine, or on the ranks of MPI."""
    _, size = launched()
    if size == 1:
        return ending(lambda: _alone(parser().parse_args(argv)))
    with _quiet_but_on_first_rank():
        args = parser().parse_args(argv)
    return ending(lambda: convert_on_ranks(_conversion(args), _world(args, size)))


def _alone(args: argparse.Namespace) -> None:
    convert(_conversion(args), args.jobs or _cores())


def _conversion(args: argparse.Namespace) -> Conversion:
    options = {name: getattr(args, name) for name in ("events_per_shard", "limit", "skip_bad", "overwrite")}
    return Conversion(lambda: make_reader(args), args.out, **options)


@contextlib.contextmanager
def _quiet_but_on_first_rank() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if launched()[0]:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _world(args: argparse.Namespace, size: int) -> Any:
    if args.jobs is not None:
        if launched()[0]:
            raise SystemExit(EXIT_INPUT)
        raise InputError("--jobs is for one machine without MPI; under mpirun or srun the ranks are the processes")
    return mpi_world(size)


if __name__ == "__main__":
    raise SystemExit(main())

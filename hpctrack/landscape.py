"""`torchrun -m hpctrack.landscape RUN… --data DATASET --out FOLDER`: are trainings the same model?

Four looks at one run or several: the loss around each (landscape), on straight and curved paths between them
(connections), how alike their layers are (similarity), and on how many decisions they differ (churn). Ranks share the
pieces of the work; the result does not depend on their number, and the same command goes on where a kill left it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hpctrack.parallel.watch_launcher  # noqa: F401 - first
from hpctrack.config import ParallelConfig
from hpctrack.errors import InputError
from hpctrack.files.lock import only_writer
from hpctrack.files.outputs import check_folder
from hpctrack.models.memory_modes import MODES
from hpctrack.parallel.collectives import on_main, run_on_main
from hpctrack.parallel.env import distributed, launcher_argument
from hpctrack.parallel.heartbeat import Heartbeat
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.results.landscapes import PARTS, lines, load_landscape
from hpctrack.stability.analysis import Request, SimilarityOptions, analyse
from hpctrack.stability.connections import CurveOptions
from hpctrack.stability.subjects import DEFAULT_EVENTS, Named, Subject
from hpctrack.stability.surface import SurfaceOptions
from hpctrack.stability.tasks import Place

WAIT_S = 86400.0  # for ranks that have more to do; those that are lost, or hang, are noticed at once
START_S = 30.0


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack landscape", description=__doc__)
    p.add_argument(
        "runs", nargs="+", metavar="[GROUP=]RUN", type=Named.parse,
        help="run folder, or a checkpoint in it; GROUP (default: the name of its loss) is for comparing groups of runs",
    )  # fmt: skip
    p.add_argument("--data", type=Path, required=True, help="dataset folder: events that were not trained on")
    p.add_argument("--out", type=Path, required=True, help="folder for the results")
    p.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART",
        help=f"which of {', '.join(PARTS)} (default: landscape for one run, all for several)",
    )  # fmt: skip
    p.add_argument(
        "--events",
        type=arguments.positive,
        help=f"the first so many of the dataset ({DEFAULT_EVENTS}, or all there are)",
    )
    p.add_argument("--seed", type=arguments.natural, default=0, help="of all that is drawn (0)")
    p.add_argument("--precision", choices=("fp32", "fp64"), default="fp64", help="of weights and losses (fp64)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda where there is one")
    p.add_argument("--threads", type=arguments.threads, default=1, help="CPU threads per rank (default 1)")
    p.add_argument(
        "--timeout-s", type=arguments.seconds, default=3600.0,
        help="a point, an event or a step of a fit that takes longer ends it; so does a rank that does not come (3600)",
    )  # fmt: skip
    p.add_argument(
        "--memory", choices=MODES, default="plain",
        help="mode of passes for gradients, where memory runs out: the same results in more time (plain)",
    )  # fmt: skip
    add_landscape_options(p)
    add_connection_options(p)
    similarity = p.add_argument_group("similarity: linear CKA between layers")
    similarity.add_argument("--rows", type=arguments.whole(4), default=1024, help="rows of a mini-batch (1024)")
    similarity.add_argument("--batches", type=arguments.positive, default=8, help="mini-batches an event, at most (8)")
    similarity.add_argument(
        "--layers", nargs="+", default=[], metavar="PATTERN",
        help="modules of the model, by name, with * for any (default: every linear layer)",
    )  # fmt: skip
    launcher_argument(p)
    return p


def add_landscape_options(p: arguments.Parser) -> None:
    """Those of the planes."""
    g = p.add_argument_group("landscape: the loss on a plane through a run")
    g.add_argument("--directions", choices=("hessian", "random"), default="hessian", help="that span it (hessian)")
    g.add_argument(
        "--hessian", choices=("auto", "exact", "differences"), default="auto",
        help="products with it by a second derivative, or by differences of gradients; auto: exact where that can be",
    )  # fmt: skip
    g.add_argument("--hessian-loss", metavar="LOSS", help="whose Hessian, of the losses of the runs (each run's own)")
    g.add_argument("--iterations", type=arguments.positive, default=100, help="of power iteration, at most (100)")
    g.add_argument(
        "--tolerance", type=arguments.real(0, open_=True), default=1e-3, help="of an eigenvalue, relative (0.001)"
    )
    g.add_argument("--grid", type=arguments.positive, default=21, help="points a side (21)")
    g.add_argument(
        "--span", type=arguments.real(0, open_=True), default=0.5, help="half a side, in lengths of weights (0.5)"
    )


def add_connection_options(p: arguments.Parser) -> None:
    """Those of the paths."""
    g = p.add_argument_group("connections: the loss on paths between runs")
    g.add_argument("--points", type=arguments.whole(2), default=51, help="of a path (51)")
    g.add_argument(
        "--curve-loss", nargs="+", default=[], metavar="LOSS", help="a curve for each of these (first run's own)"
    )
    g.add_argument("--curve-steps", type=arguments.natural, default=1000, help="of its fit (1000)")
    g.add_argument(
        "--curve-lr", type=arguments.real(0, open_=True), default=1e-3, help="learning rate, RMSprop (0.001)"
    )
    g.add_argument("--curve-events", type=arguments.positive, default=8, help="events a step (8)")
    g.add_argument("--fit-data", type=Path, help="what curves are fitted to (what the first run was trained on)")
    g.add_argument("--fit-events", type=arguments.positive, default=100, help="the first so many of it, at most (100)")


@verb("landscape")
def main(argv: Sequence[str] | None = None) -> int | None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    several = len(args.runs) > 1
    parts = tuple(part for part in PARTS if part in (args.parts or (PARTS if several else PARTS[:1])))
    if not several and {"connections", "churn"} & set(parts):
        raise InputError("connections and churn are between runs: give two or more")
    check_folder(args.out)
    request = Request(
        args.data,
        parts,
        args.events,
        args.fit_data,
        SurfaceOptions(
            args.directions, args.hessian, args.hessian_loss, args.iterations, args.tolerance,
            grid=args.grid, span=args.span,
        ),
        curves=CurveOptions(
            tuple(args.curve_loss), args.curve_steps, args.curve_lr, args.curve_events, args.fit_events,
            points=args.points,
        ),
        similarity=SimilarityOptions(args.rows, args.batches, tuple(args.layers)),
        command=("hpctrack", "landscape", *(sys.argv[1:] if argv is None else argv)),
    )  # fmt: skip
    settings = {name: str(value) for name, value in vars(args).items() if name != "local_rank"}
    meeting_s = max(args.timeout_s, START_S)
    parallel = ParallelConfig(device=args.device, timeout_s=WAIT_S, rendezvous_timeout_s=meeting_s)
    with (
        distributed(parallel, args.threads, "landscape", settings, "--timeout-s") as env,
        on_main(lambda: only_writer(args.out), env),
        Watchdog(args.timeout_s, env, "--timeout-s") as watchdog,
        Heartbeat(env, meeting_s, "--timeout-s", lambda: watchdog.at),
    ):
        run_on_main(lambda: [Subject(named) for named in args.runs], env)
        place = Place(env, args.out, args.precision, args.seed, watchdog.feed, rest=watchdog.rest, memory=args.memory)
        path = analyse([Subject(named) for named in args.runs], request, place)
        if env.is_main:
            print("\n".join(lines(load_landscape(path))))
    return None


if __name__ == "__main__":
    raise SystemExit(main())

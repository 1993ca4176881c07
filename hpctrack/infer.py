"""`torchrun -m hpctrack.infer --checkpoint RUN --data DATASET --out FOLDER`: write track candidates.

Each event goes to exactly one rank, by cost, and is committed when it is done. The same command again finishes what a
kill left; the result does not depend on the number of ranks. With `--part 3/16`, sixteen jobs each do a share, in any
order and side by side; the last one to end joins them. Several `--checkpoint`s are the stages of a pipeline: each sees
the edges that the one before has found, and all behind a hit filter see the hits that it has kept. `--method ckf`,
`dbscan` and `hopfield` need no checkpoint: they are what models are compared with (tracking/methods.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import hpctrack.parallel.watch_launcher  # noqa: F401 - first
from hpctrack.config import ParallelConfig
from hpctrack.errors import InputError
from hpctrack.files.outputs import check_output
from hpctrack.formats.trackml import write_submission
from hpctrack.inference.run import begun_in, infer, submission_blocks
from hpctrack.inference.stages import (
    INFER,
    ONE_RANK,
    PRECISION,
    Chain,
    Reconstruction,
    in_formats_of,
    method_config,
    split_overrides,
    stages,
)
from hpctrack.inference.suitability import check_method, check_stages
from hpctrack.inference.work import Part
from hpctrack.parallel.collectives import run_on_main
from hpctrack.parallel.env import distributed, launcher_argument
from hpctrack.parallel.groups import make_groups
from hpctrack.parallel.heartbeat import Heartbeat
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.storage.store import Dataset
from hpctrack.tracking.methods import METHODS, ByMethod
from hpctrack.training import checkpoint

START_S = 30.0  # ranks begin at most so far apart, however short an event is
WAIT_S = 86400.0  # for ranks that have more to do; those that are lost, or hang at an event, are noticed at once


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack infer", description=__doc__)
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        metavar="RUN",
        help="run folder, or a checkpoint in it; again for each next stage of a pipeline",
    )
    how.add_argument("--method", metavar="NAME", help=f"instead of a model: {', '.join(METHODS)}")
    p.add_argument("--data", required=True, help="dataset folder")
    p.add_argument("--out", required=True, type=Path, help="folder for the candidates")
    p.add_argument("--part", type=Part.parse, metavar="I/N", help="share I, from 0, of N jobs that do it together")
    p.add_argument("--submission", type=Path, help="also write this TrackML submission CSV")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: cuda where there is one")
    p.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the models: those of edges, and with backbone mlp, on padded events, on a GPU with CUDA "
        "graphs; those with backbone neighbours between their searches; the first events take a minute",
    )
    p.add_argument("--threads", type=arguments.threads, default=1, help="CPU threads per rank (default 1)")
    p.add_argument(
        "--timeout-s",
        type=arguments.seconds,
        default=600.0,
        help="an event that takes longer ends it; so does a rank that does not come, or is frozen (but not within "
        f"{START_S:g} s); default 600",
    )
    p.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="selection.* (default: every hit), hits.*, precision (default: as trained, or fp32 where the processor "
        "emulates that); graph.*, builder.* of the last --checkpoint; method.* with --method; "
        "parallel.ranks_per_event=2, 4 or 8: so many ranks hold an event, and pass each other rows by "
        "parallel.exchange",
    )
    launcher_argument(p)
    return p


@verb("infer")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    overrides, ranks = split_overrides(args.overrides)
    together = ranks.ranks_per_event
    if args.method:
        config = method_config(args.method, overrides)
        if args.compile:
            raise InputError("--compile: a method has no model to compile; leave it out")
        if together > 1:
            raise InputError(f"parallel.ranks_per_event={together}: a method takes whole events; use {ONE_RANK}")
    else:
        paths, configs = stages(args.checkpoint, overrides)
    if args.part and args.submission:
        raise InputError("--submission: is written from all events; give it to a last call without --part")
    if args.submission:
        check_output(args.submission)

    def suitable(data: Dataset) -> tuple[Dataset, list[str]]:
        if args.method:
            check_method(data, config)
            return data, []
        return data, check_stages(data, configs, paths, args.checkpoint)

    meeting_s = max(args.timeout_s, START_S)
    parallel = ParallelConfig(device=args.device, timeout_s=WAIT_S, rendezvous_timeout_s=meeting_s)
    settings = {name: value for name, value in vars(args).items() if name != "local_rank"}
    with (
        distributed(parallel, args.threads, "infer", settings, "--timeout-s") as env,
        Watchdog(args.timeout_s, env, "--timeout-s") as watchdog,
    ):
        data, lines = run_on_main(lambda: suitable(Dataset(args.data, verify=True)), env)
        for line in lines:
            env.say(line)
        if env.world % together:
            raise InputError(f"parallel.ranks_per_event={together} does not divide the {env.world} ranks")
        exchange = make_groups(env, [together], WAIT_S, ranks.exchange)[together] if together > 1 else None
        if args.method:
            how: Reconstruction = ByMethod(config, data, INFER)
        else:
            for path in paths:
                run_on_main(functools.partial(checkpoint.check_state, path), env)
            if not any(override.startswith(PRECISION) for override in overrides):
                begun = run_on_main(lambda: begun_in(args.out, configs[-1]), env)
                configs, lines = run_on_main(lambda: in_formats_of(env.device, configs, args.checkpoint, begun), env)
                for line in lines:
                    env.say(line)
            how = Chain(configs, paths, data, env.device, checked=True, exchange=exchange, compiled=args.compile)
        if args.submission and how.product != "candidates":
            raise InputError(f"--submission: is written from candidates, but {paths[-1]} makes {how.product}")
        with Heartbeat(env, meeting_s, "--timeout-s", lambda: watchdog.at):
            code = infer(how, data, args.out, env, part=args.part, watchdog=watchdog, exchange=exchange)
        if args.submission and env.is_main and code == 0:
            write_submission(args.submission, submission_blocks(data, args.out))
            print(f"submission: {args.submission}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

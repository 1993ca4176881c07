"""`hpctrack filters RUN --out FILE`: what a run's convolutions look for, for `hpctrack report --filters FILE`.

Of each convolution, for its first filters: the image that excites a filter most, found by steps from a random one
(activation maximisation); and the weights of the first convolution. RUN is a run folder or a checkpoint of any model
with convolutions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hpctrack.errors import InputError
from hpctrack.files.outputs import check_output, write_json_output
from hpctrack.inspection import filters
from hpctrack.models import build_model
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.results.filters import FORMAT, VERSION
from hpctrack.training import checkpoint, run_settings


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack filters", description=__doc__)
    p.add_argument("run", type=Path, help="run folder, or a checkpoint")
    p.add_argument("--out", type=Path, required=True, help="the file to write (JSON)")
    p.add_argument("--most", type=arguments.positive, default=16, help="filters of a layer that are shown (16)")
    p.add_argument("--steps", type=arguments.positive, default=20, help="along the gradient (20)")
    p.add_argument("--seed", type=arguments.natural, default=0, help="of the random images (0)")
    p.add_argument("--threads", type=arguments.threads, default=1, help="CPU threads (default 1)")
    return p


@verb("filters")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    check_output(args.out)
    torch.set_num_threads(args.threads)
    path = checkpoint.find(args.run)
    meta = checkpoint.read_meta(path)
    config = run_settings.run_config(meta, path)
    model = build_model(config.model, config.data.features)
    checkpoint.load_model(model, checkpoint.read_state(path, mapped=True)["model"], path)
    try:
        found = filters.describe(model, args.most, args.steps, args.seed)
    except InputError as error:
        raise InputError(f"{args.run}: model '{config.model.name}': {error}") from None
    about = {
        "format": FORMAT,
        "version": VERSION,
        "run": args.run.resolve().name,
        "model": config.model.name,
        "step": meta["step"],
        "command": ["hpctrack", "filters", *(sys.argv[1:] if argv is None else argv)],
        "settings": {"seed": args.seed, "steps": args.steps, "rate": filters.RATE},
    }
    write_json_output(args.out, about | found)
    shown = sum(len(layer["pictures"]) for layer in found["layers"])
    print(f"written: {args.out} ({shown} filters of {len(found['layers'])} convolutions)")


if __name__ == "__main__":
    raise SystemExit(main())

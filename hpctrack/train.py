"""`torchrun -m hpctrack.train CONFIG [key.sub=value …]`: train a model; the same command again resumes it."""

from __future__ import annotations

from collections.abc import Sequence

import hpctrack.parallel.watch_launcher  # noqa: F401 - first
from hpctrack.benchmarks.peers import counterfactual
from hpctrack.config import load_config
from hpctrack.parallel.env import distributed, launcher_argument
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.training.loop import train


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack train", description=__doc__)
    p.add_argument(
        "config", help="a YAML file, or the name of a recipe (`hpctrack recipes`); a file that exists comes first"
    )
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="set a key of the recipe")
    launcher_argument(p)
    return p


@verb("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    config = load_config(args.config, args.overrides)
    settings = config.model_dump(mode="json")
    with distributed(config.parallel, config.train.threads, "train", settings) as env:
        return train(config, env, peers=counterfactual)


if __name__ == "__main__":
    raise SystemExit(main())

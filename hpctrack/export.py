"""`hpctrack export RUN OUT`: a run's newest checkpoint without what only training needs, to give away.

What is left are the weights, the configuration and what was tuned: enough for `hpctrack infer --checkpoint OUT` and
`train.start_from: OUT`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpctrack.errors import InputError, verb
from hpctrack.runtime import checkpoint

KEPT = ("hpctrack", "step", "plan", "config", "data", "tuned")  # of the meta data


@verb("export")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    parser = argparse.ArgumentParser(prog="hpctrack export", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"{args.out}: exists; name a new folder")
    found = checkpoint.find(args.run)
    size = export(found, args.out)
    print(f"{args.out}: {found}, {size / 1e6:.2f} MB")


def export(found: Path, out: Path) -> int:
    """Write checkpoint `found` as `out`; its bytes. InputError if its training has not ended."""
    meta, state = checkpoint.read_meta(found), checkpoint.read_state(found)
    if meta["step"] < meta["config"]["train"]["steps"] or meta.get("pending"):
        raise InputError(f"{found}: step {meta['step']} is not the end of its training; let it end first")
    kept = {key: meta[key] for key in KEPT if key in meta}
    checkpoint.write(out, {"model": state["model"]}, kept | {"window": {}})
    return sum(path.stat().st_size for path in out.iterdir())


if __name__ == "__main__":
    raise SystemExit(main())

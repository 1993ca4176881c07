"""`hpctrack export RUN OUT`: a run's newest checkpoint without what only training needs, to give away.

What is left are the weights, the configuration and what was tuned: enough for `hpctrack infer --checkpoint OUT` and
`train.start_from: OUT`. Options of the builder that were chosen after training (`builder.radius=1.2`) are kept as
tuned.

`--for acts` writes models for ACTS instead: TorchScript, ONNX, a manifest and a configuration to paste
(deployment/acts_export.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpctrack.deployment.acts_export import export_acts
from hpctrack.errors import InputError
from hpctrack.files.outputs import check_folder
from hpctrack.inference.stages import stages
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.recipes import apply_overrides
from hpctrack.tracking.builders import build_builder
from hpctrack.training import checkpoint, checkpoint_metadata, run_settings

KEPT = ("hpctrack", "schema", "neutral", "packages", "step", "plan", "config", "data", "field_t", "tuned")  # of meta


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack export", description=__doc__)
    p.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    p.add_argument("out", type=Path, help="folder to write")
    p.add_argument("--for", dest="target", choices=("acts",), help="write what ACTS takes instead of a checkpoint")
    p.add_argument(
        "--then",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="with --for acts: the next stage of the pipeline; again for those after it",
    )
    p.add_argument(
        "--edge-attr",
        action="store_true",
        help="with --for acts: edge classifiers have the third input that TensorRT's stage of ACTS needs",
    )
    p.add_argument("overrides", nargs="*", metavar="builder.key=value", help="kept as if tuned")
    return p


@verb("export")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_intermixed_args(argv)  # builder.key=value may follow options
    check_folder(args.out.absolute().parent)
    if os.path.lexists(args.out):
        raise InputError(f"{args.out}: exists; name a new folder")
    if args.target:
        for line in export_acts(*stages([args.run, *args.then], args.overrides), args.out, args.edge_attr):
            print(f"{args.out}: {line}")
        return
    if args.then or args.edge_attr:
        raise InputError("--then and --edge-attr: are for --for acts")
    found = checkpoint.find(args.run)
    size = export(found, args.out, args.overrides)
    print(f"{args.out}: {found}, {size / 1e6:.2f} MB")


def export(found: Path, out: Path, overrides: Sequence[str] = ()) -> int:
    """Write checkpoint `found` as `out`; its bytes. InputError if its training has not ended."""
    for override in overrides:
        if not override.startswith("builder."):
            raise InputError(f"override '{override}': export takes builder.key=value, e.g. builder.cut=0.1")
    meta, state = checkpoint.read_meta(found), checkpoint.read_state(found)
    config = run_settings.run_config(meta, found / checkpoint_metadata.META)
    if meta["step"] < config.train.steps or meta["pending"]:
        raise InputError(f"{found}: step {meta['step']} is not the end of its training; let it end first")
    kept = {key: meta[key] for key in KEPT if key in meta}
    chosen = apply_overrides({"builder": dict(meta["tuned"])}, overrides, str(found))["builder"]
    build_builder(config.builder, **chosen)  # refuses options that it does not have
    kept["tuned"] = chosen
    checkpoint.write(out, {"model": state["model"]}, kept | {"window": {}})
    return sum(path.stat().st_size for path in out.iterdir())


if __name__ == "__main__":
    raise SystemExit(main())

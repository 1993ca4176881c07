"""`hpctrack export-candidates CANDIDATES --data DATASET --out PATH --format NAME`: candidates as files of others.

`trackml`: submission CSV. `colliderml`, `colliderml-latency`: submission parquet for ColliderML's tasks. `acts`: a
folder of proto-track CSV. `parquet`: a row a candidate, for pandas and polars (formats/submissions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.formats.submissions import WRITERS, Found, check_place, load_pyarrow
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.store import Dataset


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack export-candidates", description=__doc__)
    p.add_argument("candidates", type=Path, help="folder that `hpctrack infer` wrote")
    p.add_argument("--data", type=Path, required=True, help="the dataset the candidates were made from")
    p.add_argument("--out", type=Path, required=True, help="file to write; a new folder for acts")
    p.add_argument("--format", required=True, choices=tuple(WRITERS), help="whose files")
    p.add_argument(
        "--n-params",
        type=arguments.natural,
        help="with colliderml: the number of the model's parameters, which task tracking_small wants",
    )
    return p


@verb("export-candidates")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    if args.n_params is not None and args.format != "colliderml":
        raise InputError("--n-params: is for --format colliderml")
    check_place(args.format, args.out)
    if args.format not in ("trackml", "acts"):
        load_pyarrow()
    found = Found(CandidateStore(args.candidates), Dataset(args.data, verify=True), args.n_params)
    WRITERS[args.format](found, args.out)
    print(f"{args.out}: {len(found.store)} events, {args.format}")


if __name__ == "__main__":
    raise SystemExit(main())

"""`hpctrack segments DATASET --out FILE`: what method `hopfield` wants to know of a detector, from true tracks.

Which layers follow each other on tracks, how far segments between them point past the beam line, and how well two
segments in a row agree in curvature and slope: `hpctrack infer --method hopfield method.segments=FILE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.files.outputs import check_output, write_json_output
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.requirements.needs import MOMENTA, Need, check
from hpctrack.storage.store import Dataset
from hpctrack.tracking.hopfield.measure import NEEDED, measure


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack segments", description=__doc__)
    p.add_argument("data", type=Path, metavar="DATASET", help="training events, with truth")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    p.add_argument("--events", type=arguments.integer, default=50, metavar="N", help="the first so many [%(default)s]")
    p.add_argument("--pt-min-gev", type=float, default=1.0, metavar="GEV", help="tracks of at least [%(default)s]")
    p.add_argument("--kept", type=float, default=0.995, help="share of segments that pass a cut [%(default)s]")
    p.add_argument(
        "--least",
        type=arguments.integer,
        default=30,
        metavar="N",
        help="segments of two layers that count [%(default)s]",
    )
    return p


@verb("segments")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    check_output(args.out)
    for name, good, right in (
        ("events", args.events >= 1, "at least 1"),
        ("least", args.least >= 2, "at least 2"),
        ("kept", 0 < args.kept <= 1, "above 0 and at most 1"),
        ("pt_min_gev", 0 <= args.pt_min_gev <= 1000, "between 0 and 1000"),
    ):
        if not good:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {right}")
    data = Dataset(args.data, verify=True)
    check(data, [Need("hpctrack segments", NEEDED), *([Need("--pt-min-gev", MOMENTA)] if args.pt_min_gev > 0 else [])])
    found = measure(data, args.events, args.pt_min_gev, args.kept, args.least)
    write_json_output(args.out, found)
    print(f"{args.out}: {len(found['pairs'])} pairs and {len(found['triplets'])} triplets of layers")


if __name__ == "__main__":
    raise SystemExit(main())

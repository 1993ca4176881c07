"""`hpctrack geometry FILE`: a detector's volumes, layers and modules, from detectors.csv or ACTS' surfaces file.

For each volume whether it is a barrel or an endcap, which volume mirrors it, and where its layers are. As JSON it has
what recipes ask for of a detector: the layers' numbers, and which barrel layers are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.files.outputs import check_output, write_json_output
from hpctrack.formats.geometry import describe, lines
from hpctrack.process import arguments
from hpctrack.process.ends import verb


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack geometry", description=__doc__.split("\n\n")[0])
    p.add_argument("path", type=Path, metavar="FILE", help="detectors.csv[.gz] or .zip, of TrackML or ACTS")
    p.add_argument("--json", type=Path, metavar="F", help="also write all of it as JSON")
    return p


@verb("geometry")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    if args.json:
        check_output(args.json)
    found = describe(args.path)
    print("\n".join(lines(found)))
    if args.json:
        write_json_output(args.json, found)


if __name__ == "__main__":
    raise SystemExit(main())

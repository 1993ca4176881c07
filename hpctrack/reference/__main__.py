"""`python -m hpctrack.reference FOLDER`: write config.md and commands.md into FOLDER (docs/reference)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.files.outputs import write_output
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.reference import commands, keys

PAGES = {"config.md": keys.page, "commands.md": commands.page}


@verb("reference")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = arguments.Parser(prog="python -m hpctrack.reference", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the pages, which are replaced")
    folder = parser.parse_args(argv).folder
    for name, page in PAGES.items():
        write_output(folder / name, page())
        print(f"written: {folder / name}")


if __name__ == "__main__":
    raise SystemExit(main())

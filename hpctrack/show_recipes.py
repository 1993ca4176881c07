"""`hpctrack recipes [NAME]`: the recipes that come with the package; with a name, the recipe itself (YAML).

`hpctrack train NAME key.sub=value …` trains one. To change more of it: `hpctrack recipes NAME > mine.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpctrack import named_recipes
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.recipes import parse_yaml, read_recipe

COLUMNS = ("name", "model", "loss", "what it trains")


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack recipes", description=__doc__)
    p.add_argument("name", nargs="?", metavar="NAME", help="print this recipe; default: list them")
    return p


@verb("recipes")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    if args.name:
        print(read_recipe(named_recipes.path_of(args.name)), end="")
        return
    rows = [COLUMNS, *(row(name) for name in named_recipes.names())]
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(COLUMNS))]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def row(name: str) -> tuple[str, str, str, str]:
    """A recipe's line in the list; its first line says what it trains."""
    text = read_recipe(named_recipes.path_of(name))
    values = parse_yaml(text, name)
    return name, values["model"]["name"], values["loss"]["name"], text.splitlines()[0].removeprefix("# ").rstrip(".")


if __name__ == "__main__":
    raise SystemExit(main())

"""`hpctrack config RECIPE [key.sub=value …]`: a recipe with every default filled in, as YAML that `train` reads back.

RECIPE is what `hpctrack train` takes: a YAML file, or the name of a recipe. With `--reference`, every key that there
is: type, default, bounds, unit, and whether it changes the result of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from hpctrack.config import load_config
from hpctrack.errors import InputError
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.reference import keys
from hpctrack.training.run_settings import entries


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack config", description=__doc__)
    p.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a recipe")
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="set a key of the recipe")
    p.add_argument("--reference", action="store_true", help="print the reference of all keys (Markdown)")
    return p


@verb("config")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    if args.reference == bool(args.recipe):
        raise InputError("give either a RECIPE or --reference")
    print(keys.page(plugins=True) if args.reference else resolved(args.recipe, args.overrides), end="")


def resolved(recipe: str, overrides: Sequence[str]) -> str:
    """A recipe with every default, those of the chosen model's, loss's and builder's options among them, as YAML."""
    values: dict[str, Any] = {}
    for key, value, _ in entries(load_config(recipe, overrides), where=recipe):
        *parents, last = key.split(".")
        section = values
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    raise SystemExit(main())

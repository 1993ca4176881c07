"""The `hpctrack` command: `hpctrack VERB …` is `python -m hpctrack VERB …`."""

from __future__ import annotations

import importlib
import sys

from hpctrack import __version__
from hpctrack.errors import EXIT_INPUT
from hpctrack.process.ends import begin, verb
from hpctrack.process.verbs import VERBS, module_of


def main() -> int:
    """Dispatch to the verb's module; the verbs' own `--help` says the rest."""
    args = sys.argv[1:]
    if args[:1] and args[0] in VERBS:
        begin(args[0])
        return importlib.import_module(module_of(args[0])).main(args[1:])
    return _without_verb(args)


@verb("")
def _without_verb(args: list[str]) -> int:
    """Version, usage, or that there is no such verb."""
    if args[:1] in (["--version"], ["-V"]):
        print(f"hpctrack {__version__}")
        return 0
    known = bool(args) and args[0] in ("-h", "--help")
    out = sys.stdout if known else sys.stderr
    if args and not known:
        print(f"hpctrack: error: unknown verb '{args[0]}'; one of: {', '.join(VERBS)}", file=out)
    else:
        print("usage: hpctrack VERB [options]   (hpctrack VERB --help says more)\n", file=out)
        for name, what in VERBS.items():
            print(f"  {name:17s} {what}", file=out)
    return 0 if known else EXIT_INPUT

"""`python -m hpctrack.reference.api FOLDER`: pages of the modules that other people's code uses, made by pdoc."""

from __future__ import annotations

import os
import pkgutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hpctrack import config, errors, graphs, losses, models, registry, testing, tracking
from hpctrack.errors import InputError
from hpctrack.events import features
from hpctrack.formats import trackml
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.reference import keys
from hpctrack.storage import candidates, schema, store

PUBLIC = (  # packages with all that is in them
    config, errors, schema, store, candidates, features, trackml, graphs, models, losses, tracking,
    registry, testing,
)  # fmt: skip
HARMLESS = "Error parsing type annotation"  # of names that exist within a class alone; shown as they are written


def build(folder: Path) -> None:
    """Write the pages into `folder`; what pdoc warns of is an error. InputError if a package is missing."""
    os.environ["PDOC_ALLOW_EXEC"] = "1"  # libraries ask the machine what it is when they are imported
    try:
        import pdoc
    except ImportError as error:
        raise InputError("the pages are made by pdoc, which is not installed: pip install 'hpctrack[dev]'") from error
    if missing := [entry.missing for entry in keys.entries(plugins=False) if entry.missing]:
        raise InputError(missing[0])
    pdoc.render.configure(show_source=False, search=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pdoc")
        warnings.filterwarnings("ignore", HARMLESS)
        pdoc.pdoc(*(name for module in PUBLIC for name in within(module)), output_directory=folder)


def within(module: ModuleType) -> list[str]:
    """The names of a module and, if it is a package, of those in it: pdoc leaves out what `__all__` does not name."""
    left_out = pkgutil.iter_modules(module.__path__) if hasattr(module, "__all__") else ()
    return [module.__name__, *(f"{module.__name__}.{each.name}" for each in left_out)]


@verb("reference.api")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = arguments.Parser(prog="python -m hpctrack.reference.api", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the pages (HTML)")
    folder = parser.parse_args(argv).folder
    build(folder)
    print(f"written: {folder / 'index.html'}")


if __name__ == "__main__":
    raise SystemExit(main())

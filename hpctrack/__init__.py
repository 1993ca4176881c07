"""hpctrack: distributed training of charged-particle track reconstruction on TrackML events."""

import sys

__version__ = "0.2.0"


def _begin() -> None:
    """Get ready for signals if this is `python -m hpctrack.VERB`, whose libraries take seconds to import."""
    if sys.argv[:1] == ["-m"]:  # Python looks for the module, and imports its package to that end
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
        if module.startswith("hpctrack."):
            from hpctrack.process.ends import begin

            begin(module.removeprefix("hpctrack."))


_begin()

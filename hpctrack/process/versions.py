"""What a result was made with: hpctrack, Python and the packages that could change it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from hpctrack import __version__

PACKAGES = ("torch", "torch-geometric", "numpy", "scipy", "h5py", "pandas", "pydantic")


def versions() -> dict[str, str]:
    """Name -> version, "not installed" for what is not there."""
    found = {"hpctrack": __version__, "python": f"{platform.python_version()} ({sys.platform})"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

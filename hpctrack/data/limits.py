"""How much of a packed file is believed: what is small on disk and claims to be huge must not fill the memory."""

from __future__ import annotations

import math
import os

from hpctrack.errors import InputError

VARIABLE = "HPCTRACK_MAX_UNPACKED_GB"
DEFAULT_GB = 1.0  # the largest files of the challenge, cells.csv, have 0.1 GB
SQUEEZED = 1100  # no compression of HDF5's, and no gzip, makes data smaller by more than this


def max_unpacked() -> int:
    """Bytes that one packed file, or one compressed column, may unpack to; InputError for a limit that is none."""
    text = os.environ.get(VARIABLE, str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < 1e9:
        raise InputError(f"{VARIABLE}='{text}': must be a number of GB greater than 0, e.g. {DEFAULT_GB:g}")
    return int(limit * 1e9)


def too_large(size: int) -> str:
    """What to say of something packed that is, or claims to be, `size` bytes or more."""
    return f"unpacks to {size / 1e9:.3g} GB or more, beyond the limit of {max_unpacked() / 1e9:.3g} GB; {_RAISE}"


_RAISE = f"if it is meant to be so large, raise {VARIABLE}"

"""The magnetic field that a model has learned in, against that of the events it is to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpctrack.errors import InputError
from hpctrack.storage import schema
from hpctrack.storage.store import Dataset

FIELDS_DIFFER = 0.01  # relative, from which on tracks bend noticeably otherwise


def trained_field(meta: Mapping[str, Any]) -> float | None:
    """The magnetic field in which a checkpoint's run was trained, Tesla; None if it does not say (version 0.1.0)."""
    return meta.get("field_t")


def check_field(data: Dataset, what: str, trained_t: float | None, parameters: bool) -> str | None:
    """A line about a model that has learned in another field than that of the dataset; None if there is none.

    In another field a track bends like one of another momentum, so a model finds tracks of other momenta than those
    that it is for. What it estimates of tracks (`parameters`) would be wrong by as much: InputError, if it is known in
    which field it learned.
    """
    field_t = schema.FIELD_T if trained_t is None else trained_t
    if abs(field_t - data.field_t) <= FIELDS_DIFFER * abs(field_t):
        return None
    learned = f"{what} has learned in {field_t:g} T" + (" (TrackML's, as it says none)" if trained_t is None else "")
    assumed = "" if data.field_is_known else " (assumed; convert it with --field)"
    own = f"{data.folder} is of {data.field_t:g} T{assumed}"
    if parameters and trained_t is not None:
        raise InputError(f"{own}, but {learned}: its track parameters would be wrong; train one in {data.field_t:g} T")
    ratio = abs(field_t / data.field_t)
    return f"warning: {own}, but {learned}: a track bends there like one of {ratio:.3g} times its momentum"

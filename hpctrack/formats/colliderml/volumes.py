"""What ColliderML's hits say of their detector: column `detector` names the part and the place of each volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.colliderml.parquet_files import HITS, Found, Rows, import_arrow
from hpctrack.formats.colliderml.schema import DETECTORS
from hpctrack.storage.detector import ABOVE, BELOW, PLACES, UNKNOWN, Detector

_COLUMNS = ("detector", "volume_id", "z")
EVENTS = 20  # in a row without a volume that is new, after which no other is looked at


def with_names(said: str | None, found: Found) -> str | None:
    """What is `said` of the detector (storage/detector.py), with the names that the hits of `found` give its volumes.

    A file of modules says where they lie better than a name does: of it alone the sensors are taken. Names that do not
    agree with each other, or with where the hits lie, say nothing.
    """
    if said is None or Detector.parse(said).parts:
        return said
    named = _named(found)
    if named is None:
        return said
    if said == UNKNOWN:
        return named.text()
    known = Detector.parse(said)
    parts = {part: tuple(volume for volume in of if volume in known.volumes) for part, of in named.parts.items()}
    return replace(known, parts=parts).text()


def _named(found: Found) -> Detector | None:
    """Volumes by the names of the hits; None where these have none, or contradict each other."""
    number, signs = _volumes(found)
    if not number:
        return None
    places: dict[str, list[int]] = {place: [] for place in PLACES}
    parts: dict[str, tuple[int, ...]] = {}
    for volume, which in sorted(number.items()):
        place = next(place for place in places if DETECTORS[which].endswith(place))
        if signs[volume] != {BELOW: {-1}, ABOVE: {1}}.get(place, signs[volume]):
            return None
        places[place].append(volume)
        part = DETECTORS[which].removesuffix(f" {place}")
        parts[part] = (*parts.get(part, ()), volume)
    below, barrels, above = (tuple(volumes) for volumes in places.values())
    return Detector(barrels, below, above, {}, (), frames=False, parts=parts)


def _volumes(found: Found) -> tuple[dict[int, int], dict[int, set[int]]]:
    """The number in `detector` of each volume, and on which sides of z = 0 it has hits; nothing if they contradict.

    Events are looked at until all of DETECTORS have been seen, or no other volume in EVENTS of them.
    """
    number: dict[int, int] = {}
    signs: dict[int, set[int]] = {}
    in_vain = 0
    for which, volume, z in _hits(found):
        known = len(number)
        places = np.stack([volume, which, np.sign(np.nan_to_num(z))]).astype(np.int64)
        for one, its, side in np.unique(places, axis=1).T.tolist():
            if number.setdefault(one, its) != its or not 0 <= its < len(DETECTORS):
                return {}, {}
            signs.setdefault(one, set()).update({side} - {0})
        in_vain = in_vain + 1 if len(number) == known else 0
        if len(set(number.values())) == len(DETECTORS) or in_vain == EVENTS:
            break
    return number, signs


def _hits(found: Found) -> Iterator[list[np.ndarray]]:
    """The columns, event by event; not of those that cannot be read, which conversion says where it reads them."""
    arrow, _ = import_arrow()
    types = arrow.types
    rows: Rows | None = None
    for event_id in found.rows[HITS]:
        file, row = found.file(HITS, event_id)
        of = [getattr(file.columns.get(name), "value_type", None) for name in _COLUMNS]
        if event_id in found.faults or not all(t and (types.is_integer(t) or types.is_floating(t)) for t in of):
            continue
        try:
            rows = rows if rows is not None and rows.file is file else Rows(file, _COLUMNS)
            lists = rows.lists(row, f"{file.path}: event {event_id}")
        except InputError:
            continue
        columns = [lists[name] for name in _COLUMNS]
        if len({len(values) for values in columns}) == 1 and not any(values.null_count for values in columns):
            yield [values.to_numpy(zero_copy_only=False) for values in columns]

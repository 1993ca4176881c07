"""Validation events in two parts, one to tune builders on and one to measure on, as sub-events of so many tracks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.config import DataConfig
from hpctrack.errors import InputError
from hpctrack.events.subevents import SubEventReader
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.shard_writer import ShardWriter, write_index
from hpctrack.storage.store import Dataset

SHARD = "events-00000.h5"


def parts(data: DataConfig, measured: Path | None, draws: int, out: Path) -> tuple[Dataset, Dataset]:
    """Datasets OUT/tune and OUT/measured of sub-events as the recipe's selection wants them, `draws` an event at most.

    The first from every second event of `data.valid`, the other from the rest; or all, and all of `measured`.
    InputError if the recipe names no validation events, or if there are not enough.
    """
    if data.valid is None:
        raise InputError("key 'data.valid': the study needs validation events")
    if data.selection.other_hits:
        raise InputError("key 'data.selection.other_hits': sub-events have none; set it to false")
    valid = Dataset(data.valid, verify=True)
    ids = valid.event_ids.tolist()
    other = Dataset(measured, verify=True) if measured else valid
    if measured and other.fingerprint == valid.fingerprint:
        raise InputError(f"--data {measured}: its events are those of data.valid, on which the radius is tuned")
    chosen = (ids, other.event_ids.tolist()) if measured else (ids[::2], ids[1::2])
    return (
        sub_events(valid, chosen[0], data, draws, out / "tune"),
        sub_events(other, chosen[1], data, draws, out / "measured"),
    )


def sub_events(source: Dataset, event_ids: Sequence[int], data: DataConfig, draws: int, folder: Path) -> Dataset:
    """Make the dataset, unless it is there; InputError if what is there was made otherwise."""
    cuts = data.selection
    reader = SubEventReader(source, cuts.tracks or 0, draws, cuts.pt_min_gev, cuts.min_hits, not cuts.noise, seed=0)
    made_of = {"sub_events": str(reader.origin()), "source_events": str(list(event_ids))}
    if not (folder / INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ShardWriter(folder / SHARD) as shard:
            for event_id in event_ids:
                for event in reader.read(event_id):
                    shard.add(event)
        if not (folder / SHARD).exists():
            raise InputError(f"{source.folder}: none of {len(event_ids)} events has {cuts.tracks} tracks; set fewer")
        write_index(folder, [SHARD], made_of)
    found = Dataset(folder, verify=True)
    if any(found.attributes.get(key) != value for key, value in made_of.items()):
        raise InputError(f"{folder}: made of other events, or with another selection; choose another --out")
    return found

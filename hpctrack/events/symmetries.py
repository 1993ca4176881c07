"""Symmetries of detector and physics, by which training makes other events of an event: turns and reflections.

Every column that a model's inputs or true parameters are made of stands in CHANGES with what becomes of it. A column
that does not is refused together with `data.augment`: nothing is left as it was because nobody thought of it.

Where a module lies matters for three kinds of columns. `volume_id` and `layer_id`: z -> -z exchanges the endcaps, as
the dataset's detector says (storage/detector.py). `global_eta` and `global_phi`: the direction of a cluster is that of
its extent (l_u, l_v, thickness) in the module's frame, whose signs are unknown and taken as positive
(formats/detectors.py), so it turns with the frame, not with the track. The frames (u, v, w) are, in (azimuthal, radial,
z) directions: barrels (a, z, r), where v stays along +z; endcaps at z < 0 (a, r, -z), at z > 0 (-a, r, z).

Legend: N hits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpctrack.config import AugmentConfig, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events.features import FEATURES, Columns
from hpctrack.events.perigee import wrapped
from hpctrack.storage.detector import TRACKML, Detector

PLACED = (
    "volume",
    "layer",
    "global_eta",
    "global_phi",
    "plane",
)  # features that need to know the volume to be reflected
FRAMED = PLACED[2:4]  # and how the axes of modules lie there


@dataclass(frozen=True)
class Transformation:
    """First the reflections, `flip_y` and `flip_z` = 1 or -1, then the turn by `angle` (rad) about the beam line."""

    angle: np.float32
    flip_y: np.float32
    flip_z: np.float32
    detector: Detector


Change = Callable[[Columns, Transformation], np.ndarray]


def unchanged(name: str) -> Change:
    """Distances, sizes, charges, and directions in a module's own frame, whose components are all positive."""
    return lambda c, move: c[name]


def reflected(name: str, axis: str) -> Change:
    """A number that changes its sign with y or with z."""
    return lambda c, move: getattr(move, f"flip_{axis}") * c[name]


def turned(vector: str, axis: str) -> Change:
    """The x or y of a vector, given the beginning of its columns' names."""

    def change(c: Columns, move: Transformation) -> np.ndarray:
        cos, sin = np.cos(move.angle), np.sin(move.angle)
        x, y = c[f"{vector}x"], move.flip_y * c[f"{vector}y"]
        return cos * x - sin * y if axis == "x" else sin * x + cos * y

    return change


def azimuth(c: Columns, move: Transformation) -> np.ndarray:
    """Of a hit."""
    return wrapped(move.flip_y * c["hits.phi"] + move.angle)


def other_volume(c: Columns, move: Transformation) -> np.ndarray:
    """The volume at the hit's new place."""
    sides = move.detector.sides
    return c["hits.volume_id"] if move.flip_z > 0 else lookup(sides, c["hits.volume_id"], c["hits.volume_id"])


def other_layer(c: Columns, move: Transformation) -> np.ndarray:
    """The layer there."""
    volume, layer = c["hits.volume_id"], c["hits.layer_id"]
    return layer if move.flip_z > 0 else move.detector.reflected_layers(volume, layer)


def cluster_eta(c: Columns, move: Transformation) -> np.ndarray:
    """Of a cluster's direction: in endcaps it changes sides, in barrels l_v stays along +z."""
    eta = c["cells.global_eta"]
    return np.where(np.isin(c["hits.volume_id"], move.detector.endcaps), move.flip_z * eta, eta)


def cluster_phi(c: Columns, move: Transformation) -> np.ndarray:
    """Of a cluster's direction: the module's azimuth and, on one side of it, the angle that l_u makes; 0 without cells.

    A reflection takes the module's azimuth to its negative, but l_u stays along the module's u.
    """
    volume, phi = c["hits.volume_id"], c["cells.global_phi"]
    local_eta, local_phi = c["cells.local_eta"], c["cells.local_phi"]
    endcap = np.isin(volume, move.detector.endcaps)
    side = np.where(endcap & ~np.isin(volume, move.detector.below), np.float32(-1), np.float32(1))
    beyond = np.where(endcap, np.float32(np.pi / 2) - local_phi, np.arctan2(np.cos(local_phi), np.sinh(local_eta)))
    module = move.flip_y * (phi - side * beyond)
    out = module + np.where(endcap, move.flip_z * side, side) * beyond + move.angle
    return np.where((local_phi == 0) & (local_eta == 0), phi, wrapped(out))


CHANGES: dict[str, Change] = {
    **{f"hits.{axis}": turned("hits.", axis) for axis in "xy"},
    **{f"hits.{name}": reflected(f"hits.{name}", "z") for name in ("z", "eta")},
    "hits.r": unchanged("hits.r"),
    "hits.phi": azimuth,
    "hits.volume_id": other_volume,
    "hits.layer_id": other_layer,
    **{
        f"cells.{name}": unchanged(f"cells.{name}")
        for name in ("cell_count", "cell_charge", "size_u", "size_v", "local_eta", "local_phi")
    },
    "cells.global_eta": cluster_eta,
    "cells.global_phi": cluster_phi,
    **{f"particles.{vector}{axis}": turned(f"particles.{vector}", axis) for vector in "vp" for axis in "xy"},
    **{f"particles.{vector}z": reflected(f"particles.{vector}z", "z") for vector in "vp"},
    "particles.q": reflected("particles.q", "y"),  # the field is along z, so a reflection in y turns charges round
}


def check_symmetries(
    features: Sequence[str], selection: SelectionConfig, how: AugmentConfig, detector: Detector = TRACKML
) -> None:
    """InputError for a feature that `how` cannot turn or reflect, and for volumes that a reflection leads out of."""
    if how.rotate or how.mirror:
        read = {column for name in features for column in FEATURES[name].columns}
        for name in features:
            if name in ("column", "row") and not {"hits.x", "hits.y"} <= read:
                raise InputError(
                    f"key 'data.augment': feature '{name}' counts pixels along one axis, which cannot be turned or "
                    "reflected; set data.augment.rotate and data.augment.mirror to false"
                )
            unknown = [column for column in FEATURES[name].columns if column not in CHANGES]
            if unknown:
                raise InputError(
                    f"key 'data.augment': feature '{name}' of data.features reads {unknown[0]}, which cannot be turned "
                    "or reflected; leave the feature out, or set data.augment.rotate and data.augment.mirror to false"
                )
    volumes, sides = set(selection.volumes or ()), detector.sides
    alone = sorted(volume for volume in volumes & sides.keys() if sides[volume] not in volumes)
    if how.mirror and alone:
        raise InputError(
            f"key 'data.selection.volumes': {sorted(volumes)} has {alone[0]} without {sides[alone[0]]}, its place "
            "after a reflection in z; give both, or set data.augment.mirror to false"
        )


def check_volumes(columns: Columns, features: Sequence[str], where: str, detector: Detector = TRACKML) -> None:
    """InputError that begins with `where` if a feature needs volumes' mirror images and there is one without."""
    placed = [name for name in features if name in PLACED]
    if not placed:
        return
    unknown = np.setdiff1d(columns["hits.volume_id"], [*detector.barrels, *detector.sides])
    framed = [name for name in placed if name in FRAMED]
    remedy = "" if detector.mirrors else " (`hpctrack convert --detectors` names its file)"
    if not detector.is_known:
        what, name = f"the detector is not known{remedy}", placed[0]
    elif len(unknown):
        whose = "TrackML's" if detector is TRACKML else "those whose mirror image is known"
        what, name = f"volume {unknown[0]} is none of {whose}{remedy}", placed[0]
    elif framed and not detector.frames:
        what, name = f"the axes of its modules are not as TrackML's{remedy}", framed[0]
    else:
        return
    raise InputError(
        f"{where}: {what}, so feature '{name}' cannot be reflected; leave it out of data.features, or set "
        "data.augment.mirror to false"
    )


def augment(
    columns: Columns, rotate: bool, mirror: bool, rng: np.random.Generator, detector: Detector = TRACKML
) -> dict[str, np.ndarray]:
    """Hits and particles reflected at random in y and in z, and turned by a random angle about the beam line.

    KeyError for a column that is not in CHANGES, or needs another one beside it that is not given.
    """
    angle = np.float32(rng.uniform(-np.pi, np.pi)) if rotate else np.float32(0)
    flip_y, flip_z = (np.float32(s) for s in (rng.choice([-1.0, 1.0], 2) if mirror else (1.0, 1.0)))
    if not (rotate or mirror):
        return dict(columns)
    move = Transformation(angle, flip_y, flip_z, detector)
    return {name: CHANGES[name](columns, move) for name in columns}


def lookup(table: Mapping[int, int], volume_N: np.ndarray, default: np.ndarray | int) -> np.ndarray:
    """The table's entries of volumes [N], or the default."""
    out = np.broadcast_to(np.asarray(default, dtype=volume_N.dtype), volume_N.shape).copy()
    for volume, value in table.items():
        out[volume_N == volume] = value
    return out

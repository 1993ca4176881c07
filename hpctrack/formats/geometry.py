"""A detector in words and numbers, from TrackML's detectors.csv or ACTS' surfaces file: volumes, layers and modules.

What kind of thing a volume is follows from its modules: in a barrel their normals lie across the beam, in an endcap
along it. Passive surfaces of ACTS' file (module_id 0 beside a `geometry_id`) are left out. Lengths in mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.csvtable import Column, read_table
from hpctrack.formats.detectors import find_detectors
from hpctrack.formats.trackml_files import Source
from hpctrack.storage.detector import PIXEL, TRACKML, UNKNOWN, Detector

FORMAT = {"format": "hpctrack-geometry", "version": 1}
SAME_MM = 1.0  # by which layers that mirror each other may differ
PIXEL_MM = 0.5  # a sensor whose cells are at most so long is of pixels, another one of strips
_ID = Column(np.int64, lowest=0)
_IDS = {name: _ID for name in ("volume_id", "layer_id", "module_id")}
_PLACES = ("cx", "cy", "cz", "rot_xw", "rot_yw", "rot_zw")  # centre and normal
_LENGTHS = {"module_t": "half_thickness_mm", "pitch_u": "pitch_u_mm", "pitch_v": "pitch_v_mm"}
_COLUMNS = _IDS | {name: Column(np.float64) for name in _PLACES}
_COLUMNS |= {name: Column(np.float64, optional=True) for name in _LENGTHS}
_COLUMNS |= {"geometry_id": Column(np.uint64, lowest=0, optional=True)}
_AXES = [f"rot_{axis}{local}" for local in "uv" for axis in "xyz"]
_COLUMNS |= {name: Column(np.float64, optional=True) for name in _AXES}
ALIGNED = 0.9  # least cosine between an axis of a module and the direction where TrackML's has it
Table = dict[str, np.ndarray]


def describe(path: Path) -> dict[str, Any]:
    """The detector of a file: JSON-able, volumes and layers ascending; InputError for what is no such file.

    `neighbours`: barrel layers from the beam outwards, each with the next, as `data.graph.pairs` takes them.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a detector's file is detectors.csv, .csv.gz or .zip")
    return _described(_modules(*(find_detectors(Source(path.parent), path) or (Source(path.parent), path.name))))


def text_of(found: tuple[Source, str] | None, otherwise: str | None = UNKNOWN) -> str | None:
    """What a dataset's index says of the detector whose file was found (storage/detector.py).

    None: it is TrackML's, or a part of it. `otherwise`: without a file, or where it does not say how modules lie. Of a
    detector that is not made of barrels and of endcaps on either side nothing is known.
    """
    if found is None:
        return otherwise
    table = _modules(*found, columns=_COLUMNS | {name: Column(np.float64, optional=True) for name in _PLACES})
    if not table.keys() >= set(_PLACES):
        return otherwise
    volumes, neighbours = (_described(table)[name] for name in ("volumes", "neighbours"))
    sides = {side: [v["volume_id"] for v in volumes if v["kind"] == "endcap" and v["side"] == side]
             for side in ("negative", "positive", "both")}  # fmt: skip
    split = any(v["kind"] == "barrel" and v["mirror"] not in (None, v["volume_id"]) for v in volumes)
    if sides["both"] or split:  # nor of one whose barrels are cut at z = 0
        return UNKNOWN
    ends = sides["negative"] + sides["positive"]
    mirrors = {
        (volume["volume_id"], layer["layer_id"]): tuple(layer["mirror"])
        for volume in volumes
        for layer in volume["layers"]
        if volume["volume_id"] in ends and volume["mirror"] is not None
    }
    order = [*(pair[:2] for pair in neighbours[:1]), *(pair[2:] for pair in neighbours)]
    detector = Detector(
        barrels=tuple(v["volume_id"] for v in volumes if v["kind"] == "barrel"),
        below=tuple(sides["negative"]),
        above=tuple(sides["positive"]),
        mirrors=mirrors,
        neighbours=tuple((volume, layer) for volume, layer in order),
        frames=_has_frames(table, np.isin(table["volume_id"], ends)),
        parts=_parts(volumes),
    )
    return None if TRACKML.contains(detector) else detector.text()


def _modules(place: Source, member: str, columns: Mapping[str, Column] = _COLUMNS) -> Table:
    """The sensitive modules of a file; InputError if there are none."""
    where = place.display(member)
    table = read_table(place.read(member, where), where, columns)
    if "geometry_id" in table:
        sensitive = table["module_id"] > 0
        table = {name: values[sensitive] for name, values in table.items()}
    if not len(table["module_id"]):
        raise InputError(f"{where}: no modules")
    return table


def _described(table: Table) -> dict[str, Any]:
    volumes = [_volume(table, int(number)) for number in np.unique(table["volume_id"])]
    _mirror(volumes)
    barrels = [(sum(layer["r_mm"]), v["volume_id"], layer["layer_id"]) for v in volumes if v["kind"] == "barrel"
               for layer in v["layers"]]  # fmt: skip
    order = [[volume, layer] for _, volume, layer in sorted(barrels)]
    neighbours = [[*a, *b] for a, b in zip(order, order[1:], strict=False)]
    return FORMAT | {"modules": len(table["module_id"]), "volumes": volumes, "neighbours": neighbours}


def _parts(volumes: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Volumes by their sensors, pixel or strip; none if the cells' length is not known of each layer."""
    found: dict[str, tuple[int, ...]] = {}
    for volume in volumes:
        lengths = [layer[f"pitch_{axis}_mm"] for layer in volume["layers"] for axis in "uv"]
        if not all(lengths):
            return {}
        name = PIXEL if max(longest for _, longest in lengths) <= PIXEL_MM else "strip"
        found[name] = (*found.get(name, ()), volume["volume_id"])
    return found


def _has_frames(table: Table, endcap: np.ndarray) -> bool:
    """Whether the modules' axes lie as TrackML's: see `frames` of storage/detector.py."""
    if not all(name in table for name in _AXES):
        return False
    r = np.maximum(np.hypot(table["cx"], table["cy"]), 1e-9)
    cos, sin, none = table["cx"] / r, table["cy"] / r, np.zeros(len(r))
    azimuth, radial, along = np.array([-sin, cos, none]), np.array([cos, sin, none]), np.array([none, none, none + 1])
    u, v = (np.array([table[f"rot_{axis}{local}"] for axis in "xyz"]) for local in "uv")
    u_must = np.where(endcap & (table["cz"] > 0), -azimuth, azimuth)
    v_must = np.where(endcap, radial, along)
    return bool(min((u * u_must).sum(0).min(), (v * v_must).sum(0).min()) > ALIGNED)


def _volume(table: Table, number: int) -> dict[str, Any]:
    here = {name: values[table["volume_id"] == number] for name, values in table.items()}
    along = float(np.abs(here["rot_zw"]).mean())
    kind = "barrel" if along < 0.5 else "endcap"
    z = here["cz"]
    side = "both" if z.min() < 0 < z.max() else "negative" if z.max() <= 0 else "positive"
    layers = [_layer(here, int(layer)) for layer in np.unique(here["layer_id"])]
    return {"volume_id": number, "kind": kind, "side": side, "modules": len(z), "mirror": None, "layers": layers}


def _layer(volume: Table, number: int) -> dict[str, Any]:
    here = {name: values[volume["layer_id"] == number] for name, values in volume.items()}
    r = np.hypot(here["cx"], here["cy"])
    found = {"layer_id": number, "modules": len(r), "r_mm": _range(r), "z_mm": _range(here["cz"]), "mirror": None}
    for theirs, ours in _LENGTHS.items():
        known = here[theirs][here[theirs] > 0] if theirs in here else np.zeros(0)
        found[ours] = _range(known) if len(known) else None
    return found


def _range(values: np.ndarray) -> list[float]:
    """Of the modules' centres, or lengths: the least and the most."""
    return [round(float(values.min()), 4), round(float(values.max()), 4)]


def _mirror(volumes: list[dict[str, Any]]) -> None:
    """Note for each volume and layer where z -> -z takes it; nothing where there is no such place."""
    places = [(volume, layer) for volume in volumes for layer in volume["layers"]]
    for _, layer in places:
        low, high = layer["z_mm"]
        for other, there in places:
            bounds = [*there["r_mm"], *there["z_mm"]]
            if np.allclose(bounds, [*layer["r_mm"], -high, -low], atol=SAME_MM, rtol=0):
                layer["mirror"] = [other["volume_id"], there["layer_id"]]
                break
    for volume in volumes:
        found = {layer["mirror"][0] if layer["mirror"] else None for layer in volume["layers"]}
        volume["mirror"] = found.pop() if len(found) == 1 else None


def lines(found: dict[str, Any]) -> list[str]:
    """A description as text: a line a volume, and one for each of its layers."""
    out = [f"{found['modules']:,} modules in {len(found['volumes'])} volumes"]
    for volume in found["volumes"]:
        mirror = "" if volume["mirror"] in (None, volume["volume_id"]) else f", mirrors volume {volume['mirror']}"
        side = "" if volume["kind"] == "barrel" else f", z {volume['side']}"
        out.append(f"volume {volume['volume_id']}: {volume['kind']}{side}, {volume['modules']:,} modules{mirror}")
        for layer in volume["layers"]:
            at = f"r {layer['r_mm'][0]:g} to {layer['r_mm'][1]:g}, z {layer['z_mm'][0]:g} to {layer['z_mm'][1]:g} mm"
            pitch = layer["pitch_u_mm"] and f", pitch {layer['pitch_u_mm'][0]:g} x {layer['pitch_v_mm'][0]:g} mm"
            out.append(f"  layer {layer['layer_id']:3d}: {layer['modules']:5d} modules, {at}{pitch or ''}")
    return out

"""What a dataset says of its detector: what its volumes are, where z -> -z takes a layer, and which barrel layers are
neighbours.

A dataset that says nothing is of TrackML's detector, and so are parts of that detector. Others carry a text `detector`
in their index, which `hpctrack convert` writes from the source's modules; of a source without modules it says that the
detector is not known.

Legend: N hits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TEXT = "detector"  # of the index
FORMAT = {"format": "hpctrack-detector", "version": 1}
UNKNOWN = "null"  # its text where nothing is known of it
Place = tuple[int, int]  # volume and layer
PIXEL = "pixel"  # the part that others' rules ask for
PLACES = BELOW, BARREL, ABOVE = "negative endcap", "barrel", "positive endcap"  # of a volume, along z


@dataclass(frozen=True)
class Detector:
    """Volumes by their numbers.

    `below`, `above`: endcaps at z < 0 and at z > 0. `mirrors`: the place where z -> -z takes a layer of an endcap, and
    `sides` the volume. `neighbours`: barrel layers from the beam outwards. `frames`: whether modules' axes (u, v, w)
    lie as TrackML's do: in barrels along (azimuth, z, r), below along (azimuth, r, -z), above along (-azimuth, r, z).
    `parts`: the volumes of each kind of sensor by its name, "pixel" or of strips; none where that is not known.
    """

    barrels: tuple[int, ...]
    below: tuple[int, ...]
    above: tuple[int, ...]
    mirrors: Mapping[Place, Place]
    neighbours: tuple[Place, ...]
    frames: bool = True
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def volumes(self) -> tuple[int, ...]:
        """All that are known."""
        return self.barrels + self.endcaps

    def names(self) -> dict[int, str]:
        """Each volume's name, as `pixel barrel`; of one whose sensors are not known, `barrel`. Ascending."""
        sensors = {volume: f"{part} " for part, volumes in self.parts.items() for volume in volumes}
        places = {BELOW: self.below, BARREL: self.barrels, ABOVE: self.above}
        found = {volume: place for place, volumes in places.items() for volume in volumes}
        return {volume: f"{sensors.get(volume, '')}{place}" for volume, place in sorted(found.items())}

    @property
    def endcaps(self) -> tuple[int, ...]:
        """On both sides."""
        return self.below + self.above

    @property
    def sides(self) -> dict[int, int]:
        """The volume at the other side of each endcap that has one."""
        return {volume: other for (volume, _), (other, _) in self.mirrors.items()}

    def reflected_layers(self, volume_N: np.ndarray, layer_N: np.ndarray) -> np.ndarray:
        """Layers [N] where z -> -z takes them; of barrels, and of what has no mirror image, the same."""
        found = layer_N.copy()
        for volume in self.sides:
            there = volume_N == volume
            layers, which = np.unique(layer_N[there], return_inverse=True)
            found[there] = np.array([self.mirrors.get((volume, n), (0, n))[1] for n in layers.tolist()], found.dtype)[
                which
            ]
        return found

    def contains(self, other: Detector) -> bool:
        """Whether all that `other` says holds of this one."""
        order = [self.neighbours.index(place) for place in other.neighbours if place in self.neighbours]
        pixels = set(self.parts.get(PIXEL, ())).intersection(other.volumes)
        return (
            set(other.barrels) <= set(self.barrels)
            and set(other.below) <= set(self.below)
            and set(other.above) <= set(self.above)
            and other.mirrors.items() <= self.mirrors.items()
            and len(order) == len(other.neighbours)
            and order == sorted(order)
            and other.frames == self.frames
            and (not other.parts or set(other.parts.get(PIXEL, ())) == pixels)
        )

    def text(self) -> str:
        """For the index."""
        values: dict[str, Any] = {name: list(getattr(self, name)) for name in ("barrels", "below", "above")}
        values["mirrors"] = [[*place, *other] for place, other in sorted(self.mirrors.items())]
        values["neighbours"] = list(map(list, self.neighbours))
        parts = {"parts": {name: list(of) for name, of in self.parts.items()}} if self.parts else {}
        return json.dumps(FORMAT | values | {"frames": self.frames} | parts)

    @property
    def is_known(self) -> bool:
        """Whether anything is known of it."""
        return bool(self.barrels or self.endcaps)

    @classmethod
    def parse(cls, text: str | None) -> Detector:
        """Of an index's text, of which TrackML's has none. ValueError for a text that is none of `text`."""
        if text is None:
            return TRACKML
        if text == UNKNOWN:
            return NOT_KNOWN
        values: dict[str, Any] = json.loads(text)
        if {key: values.pop(key, None) for key in FORMAT} != FORMAT:
            raise ValueError(f"the text '{TEXT}' is of another version")
        return cls(
            barrels=tuple(values["barrels"]),
            below=tuple(values["below"]),
            above=tuple(values["above"]),
            mirrors={(a, b): (c, d) for a, b, c, d in values["mirrors"]},
            neighbours=tuple((a, b) for a, b in values["neighbours"]),
            frames=bool(values["frames"]),
            parts={str(name): tuple(of) for name, of in values.get("parts", {}).items()},
        )


def _trackml() -> Detector:
    """Endcaps' layers are numbered along z, so that a layer's number and its partner's have one sum."""
    pairs, sums = {7: 9, 12: 14, 16: 18}, {7: 16, 12: 14, 16: 14}
    mirrors = {}
    for below, above in pairs.items():
        for layer in range(sums[below] + 1):
            mirrors[below, layer] = (above, sums[below] - layer)
            mirrors[above, layer] = (below, sums[below] - layer)
    barrel = [(8, layer) for layer in (2, 4, 6, 8)] + [(13, layer) for layer in (2, 4, 6, 8)] + [(17, 2), (17, 4)]
    parts = {PIXEL: (7, 8, 9), "short strip": (12, 13, 14), "long strip": (16, 17, 18)}
    return Detector((8, 13, 17), tuple(pairs), tuple(pairs.values()), mirrors, tuple(barrel), parts=parts)


TRACKML = _trackml()
NOT_KNOWN = Detector((), (), (), {}, ())

"""Pixels that are on -> the four TrackML tables of an event, without cells: a pixel is a hit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.simulation.event import Tables, hit_weights
from hpctrack.simulation.settings import Settings
from hpctrack.storage.schema import PARTICLES

PION = 211


@dataclass(frozen=True)
class Pixels:
    """Pixels [H] that particles or noise turn on; one may stand more than once.

    `layer` [H]; `number` [H] of the pixel in its layer; `owner` [H]: row of the particle, -1 for noise; `position`
    [H, 3]: the pixel's centre, mm; `truth` [H, 3]: where the particle crossed the layer, mm; `momentum` [H, 3], GeV.
    """

    layer: np.ndarray
    number: np.ndarray
    owner: np.ndarray
    position: np.ndarray
    truth: np.ndarray
    momentum: np.ndarray

    def take(self, rows: np.ndarray) -> Pixels:
        """The chosen rows, a mask or indices."""
        return Pixels(*(values[rows] for values in vars(self).values()))

    def once(self) -> Pixels:
        """Each pixel once, by layer and number, as the first particle's; noise shows only where nobody else is."""
        last = np.where(self.owner < 0, self.owner.max(initial=0) + 1, self.owner)
        order = np.lexsort([last, self.number, self.layer])
        layer, number = self.layer[order], self.number[order]
        first = np.append(True, (layer[1:] != layer[:-1]) | (number[1:] != number[:-1]))[: len(order)]
        return self.take(order[first])


def joined(*parts: Pixels) -> Pixels:
    """These one behind the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Pixels(*(np.concatenate(column) for column in columns))


def pixel_tables(particles: dict[str, np.ndarray], pixels: Pixels) -> Tables:
    """The event's tables; `particles` has vertices, momenta and charges [P], and gets ids 1 to P in this order.

    Hits stand by layer and pixel, so that hit_id says nothing about the particle.
    """
    pixels = pixels.once()
    n, known = len(pixels.layer), len(particles["q"])
    particles = {
        **particles,
        "particle_id": np.arange(1, known + 1),
        "particle_type": PION * particles["q"],
        "nhits": np.bincount(pixels.owner[pixels.owner >= 0], minlength=known),
    }
    hit_id = np.arange(1, n + 1)
    ids = {"volume_id": np.ones(n, np.int64), "layer_id": pixels.layer, "module_id": np.zeros(n, np.int64)}
    none = np.zeros(0, np.int64)
    return {
        "hits": {"hit_id": hit_id, **dict(zip("xyz", pixels.position.T, strict=True)), **ids},
        "cells": {"hit_id": none, "ch0": none, "ch1": none, "value": np.zeros(0)},
        "particles": {name: particles[name] for name in PARTICLES},
        "truth": {
            "hit_id": hit_id,
            "particle_id": pixels.owner + 1,
            **dict(zip(("tx", "ty", "tz"), pixels.truth.T, strict=True)),
            **dict(zip(("tpx", "tpy", "tpz"), pixels.momentum.T, strict=True)),
            "weight": hit_weights(pixels.owner, pixels.truth[:, 2], particles),
        },
    }


def number_of_tracks(settings: Settings, rng: np.random.Generator) -> int:
    """How many tracks an event has: `tracks` on average (poisson), at most (uniform) or always (fixed)."""
    n = {
        "poisson": lambda: int(rng.poisson(settings.tracks)),
        "uniform": lambda: int(rng.integers(round(settings.tracks), endpoint=True)),
        "fixed": lambda: round(settings.tracks),
    }[settings.tracks_number]()
    return min(n, settings.tracks_max) if settings.tracks_max else n

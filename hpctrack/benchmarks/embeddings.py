"""Synthetic events and embeddings with the geometry of a trained model's: clusters around tracks, and noise.

Legend: N hits, E embedding dimensions, T tracks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Batch, Data

FEATURES = ["r", "phi", "cos_phi", "sin_phi", "z", "eta", "inverse_r"]
HITS_PER_TRACK = 12
FREE_DIMENSIONS = 4  # tracks are told apart by about so many numbers: direction, curvature, z0
SPACING = 1.3  # of tracks, in margins: the loss pushes them apart to the margin, whatever their number
SCATTER = 0.08  # of users and influencers about their track, per dimension


def embeddings(track_N: np.ndarray, dimensions: int, copies: int = 1, scale: float = 1.0, seed: int = 0) -> list:
    """`copies` embeddings float32 [N, E] about common centres: hits of a track lie together, others are spread evenly.

    `scale` 1 is as trained; a small one draws all hits together, as in a model that has not been.
    """
    rng = np.random.default_rng(seed)
    n_tracks = track_N.max(initial=-1) + 1
    free = min(FREE_DIMENSIONS, dimensions)
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0][:free]
    side = SPACING * max(1, len(track_N) / HITS_PER_TRACK) ** (1 / free)
    centre_TE = rng.uniform(0, side, (n_tracks, free)) @ turn
    place_NE = rng.uniform(0, side, (len(track_N), free)) @ turn
    place_NE[track_N >= 0] = centre_TE[track_N[track_N >= 0]]
    found = [place_NE + rng.normal(0, SCATTER, place_NE.shape) for _ in range(copies)]
    return [(scale * values).astype(np.float32) for values in found]


def tracks(n_hits: int, noise: float = 0.15, seed: int = 0) -> np.ndarray:
    """Track [N] of each hit, -1 for the share `noise` of them; hits in random order."""
    n_tracks = round(n_hits * (1 - noise)) // HITS_PER_TRACK
    track = np.full(n_hits, -1)
    track[: n_tracks * HITS_PER_TRACK] = np.repeat(np.arange(n_tracks), HITS_PER_TRACK)
    return np.random.default_rng(seed).permutation(track)


def straight_tracks(n_tracks: int, seed: int = 0) -> Batch:
    """One event of straight tracks through twelve layers, with FEATURES, without noise."""
    rng = np.random.default_rng(seed)
    track = rng.permutation(np.repeat(np.arange(n_tracks), HITS_PER_TRACK))
    order = np.argsort(track, kind="stable")
    layer = np.empty(len(track))
    layer[order] = np.tile(np.linspace(0.03, 1.0, HITS_PER_TRACK), n_tracks)
    phi, eta = rng.uniform(-np.pi, np.pi, n_tracks)[track], rng.uniform(-2, 2, n_tracks)[track]
    values = [layer, phi / np.pi, np.cos(phi), np.sin(phi), layer * np.sinh(eta), eta / 3, 0.03 / layer]
    data = Data(
        x=torch.tensor(np.stack(values, 1), dtype=torch.float32),
        track=torch.from_numpy(track),
        n_tracks=torch.tensor([n_tracks]),
        num_nodes=len(track),
    )
    return Batch.from_data_list([data])

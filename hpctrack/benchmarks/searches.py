"""Libraries for the fixed-radius search side by side, on one CPU thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from hpctrack.benchmarks.embeddings import embeddings, tracks
from hpctrack.benchmarks.measure import time_in_turn
from hpctrack.graphs.radius import near_blocks, radius_pairs

RADIUS = 1.0


def search_table(quick: bool) -> str:
    """Seconds of each library by size of the event and state of the model, as Markdown."""
    settings = [(6000, "trained"), (6000, "collapsed"), *([] if quick else [(100_000, "trained")])]
    columns = {f"{n:,} hits, {state}": measure(n, state) for n, state in settings}
    kinds = list(dict.fromkeys(kind for column in columns.values() for kind in column))
    rows = [
        f"| {kind} | " + " | ".join(f"{c[kind]:.3f}" if kind in c else "" for c in columns.values()) + " |"
        for kind in kinds
    ]
    return "\n".join(
        [
            "Seconds to find all pairs of users and influencers within radius 1 in 8 dimensions, one thread, fastest "
            "of three (benchmarks/embeddings.py; trained: clusters, collapsed: all pairs in reach). `this project` "
            "lists the pairs in chunks; `blocks` are what the loss takes, which computes dense rectangles unlisted.",
            "",
            "| search | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
            *rows,
            "",
        ]
    )


def measure(n_hits: int, state: str) -> dict[str, float]:
    """Fastest of three runs of each search that is at hand and bearable at this size."""
    scale = 1.0 if state == "trained" else 0.02
    user, influencer = embeddings(tracks(n_hits), 8, copies=2, scale=scale)
    u, v = torch.from_numpy(user), torch.from_numpy(influencer)
    work: dict[str, Callable[[], Any]] = {
        "this project": lambda: sum(len(i) for i, _ in radius_pairs(u, v, RADIUS)),
        "this project, blocks": lambda: sum(len(block.rows) for block in near_blocks(u, v, RADIUS)),
        "scipy sparse_distance_matrix": lambda: cKDTree(user).sparse_distance_matrix(
            cKDTree(influencer), RADIUS, output_type="ndarray"
        ),
        "scipy query_ball_point": lambda: cKDTree(user).query_ball_point(influencer, RADIUS, return_sorted=False),
    }
    if n_hits <= 10_000:
        work["torch cdist, in chunks"] = lambda: [(torch.cdist(q, v) < RADIUS).nonzero() for q in u.split(512)]
        if importlib.util.find_spec("faiss"):
            work["faiss IndexFlatL2.range_search"] = lambda: faiss_search(user, influencer)
    return {name: min(seconds) for name, seconds in time_in_turn(work, 3).items()}


def faiss_search(user: np.ndarray, influencer: np.ndarray) -> Any:
    """The exact index of faiss, on one thread."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(user.shape[1])
    index.add(user)
    return index.range_search(influencer, RADIUS**2)

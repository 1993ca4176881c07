"""Track parameters of candidates: the estimate that a model gives at each candidate's representative hit.

Legend: N hits that the model saw, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hpctrack.events.perigee import PHI, SCALES, wrapped
from hpctrack.storage.schema import Candidates

LOWER = np.tril_indices(len(SCALES))
ROWS, COLS = np.tril_indices(len(SCALES), -1)


def with_parameters(found: Candidates, outputs: Mapping[str, np.ndarray], hit_rows: np.ndarray) -> Candidates:
    """The candidates with the columns ESTIMATE, if the model has an output `parameters` [N, 20]; else as they are.

    `hit_rows` [N], ascending: the rows of the hits that the model saw.
    """
    if "parameters" not in outputs:
        return found
    chosen = representatives(found, outputs["user"], outputs["influencer"], hit_rows)
    return replace(found, parameters=estimates(outputs["parameters"][chosen]).astype(np.float32))


def representatives(found: Candidates, user: np.ndarray, influencer: np.ndarray, hit_rows: np.ndarray) -> np.ndarray:
    """Of each candidate, which of its hits has its influencer nearest to the mean of its users, index among N hits [C].

    Training puts its weight on the same hit of the true track (losses/influencer.py). Candidates have at least one hit.
    """
    hit = np.searchsorted(hit_rows, found.hit_rows)
    size, start = np.diff(found.hit_offsets), found.hit_offsets[:-1]
    if not len(size):
        return np.zeros(0, dtype=np.int64)
    mean = np.add.reduceat(user[hit].astype(np.float64), start) / size[:, None]
    square = np.square(influencer[hit] - np.repeat(mean, size, axis=0)).sum(axis=1)
    order = np.lexsort((square, np.repeat(np.arange(len(size)), size)))
    return hit[order[start]]


def estimates(output: np.ndarray) -> np.ndarray:
    """A model's output `parameters` [C, 20] (models/embedding.py) as columns ESTIMATE: means and covariance."""
    output = output.astype(np.float64)
    factor = np.tile(np.eye(len(SCALES)), (len(output), 1, 1))
    factor[:, ROWS, COLS] = output[:, 10:]
    root = np.linalg.inv(factor) * np.exp(-output[:, None, 5:10])
    covariance = root @ root.transpose(0, 2, 1) * np.outer(SCALES, SCALES)
    mean = output[:, :5].copy()
    mean[:, PHI] = wrapped(mean[:, PHI])
    return np.concatenate([mean, covariance[:, LOWER[0], LOWER[1]]], axis=1)

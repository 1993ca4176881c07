"""What a micro-batch costs, learned from the run's own steps: seconds here, bytes in resources/peak_memory.py.

    cost ~ a + b hits + c edges + d hits^2        (sums over the events of the micro-batch; a, b, c, d >= 0)

Fitted by non-negative least squares on relative errors at the end of each epoch, from samples of all ranks; between two
fits the model does not change, and it travels in the checkpoint, so a resumed run plans as the unbroken one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch_geometric.data import Batch

TERMS = ("batch", "hits", "edges", "hits^2")
KEEP = 2000  # newest samples that are fitted
ENOUGH = 8  # samples before the first fit
OUTLIER = 3.0  # residuals beyond so many robust standard deviations are left out of the second fit


class LinearFit:
    """One measured quantity against `terms`: `observe` on each rank, `learn` on all together, then `predict`."""

    terms: tuple[str, ...] = TERMS

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.samples = np.array(state.get("samples", []), dtype=np.float64).reshape(-1, len(self.terms) + 1)
        self.coefficients = np.array(state.get("coefficients") or [], dtype=np.float64)  # [T], or none yet
        self.error = state.get("error", 0.0)
        self.new: list[list[float]] = []  # of this rank since the last `learn`

    @property
    def fitted(self) -> bool:
        """True once there were enough samples."""
        return len(self.coefficients) > 0

    def observe(self, terms: Sequence[float], value: float) -> None:
        """Take in one micro-batch of this rank."""
        self.new.append([*terms, value])

    def collect(self, everyone: Sequence[Sequence[Sequence[float]]]) -> None:
        """Add the ranks' new samples (this rank's `new` and the others'), the same everywhere; keep the newest."""
        fresh = np.array([row for rank in everyone for row in rank], dtype=np.float64).reshape(-1, len(self.terms) + 1)
        self.samples = np.concatenate([self.samples, fresh])[-KEEP:]
        self.new = []

    def learn(self, enough: int = ENOUGH) -> bool:
        """Fit what was collected; False while there is too little."""
        if len(self.samples) < enough:
            return False
        self.coefficients, self.error = self.fit(self.samples[:, :-1], self.samples[:, -1])
        return True

    def fit(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        """Coefficients [T] for samples with terms `x` [n, T] and values `y` [n], and the median relative error."""
        return fit(x, y)

    def predict(self, terms: np.ndarray) -> np.ndarray:
        """Predicted values [n] of micro-batches with `terms` [n, T]; of one, with terms [T]."""
        return terms @ self.coefficients

    def line(self, name: str, unit: str) -> str:
        """The fit as people read it."""
        parts = [f"{c:.3g} {unit}/{t}" for t, c in zip(self.terms, self.coefficients, strict=True) if c > 0]
        return f"{name} ~ {' + '.join(parts) or '0'}, median error {100 * self.error:.1f} %"

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; collect first, so that no rank's samples are missing."""
        coefficients = self.coefficients.tolist() if self.fitted else None
        return {"samples": self.samples.tolist(), "coefficients": coefficients, "error": self.error}


class CostModel(LinearFit):
    """Seconds of a micro-batch."""

    def seconds(self, terms: np.ndarray) -> np.ndarray:
        """Predicted seconds [n] of micro-batches with `terms` [n, 4]."""
        return self.predict(terms)

    def lines(self) -> list[str]:
        """The fit as people read it, if there is one."""
        return [self.line("cost: seconds", "s")] if self.fitted else []


def fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Non-negative coefficients [terms] that minimise relative errors, and the median relative error.

    Fitted twice, the second time without outliers (a machine's hiccups). Columns are scaled, since hits^2 is large.
    """
    scale = np.maximum(np.abs(x).max(axis=0), 1e-30)

    def solve(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coefficients = nnls((x / scale / y[:, None])[chosen], np.ones(chosen.sum()))[0] / scale
        return coefficients, np.abs(x @ coefficients - y) / y

    coefficients, error = solve(np.ones(len(y), dtype=bool))
    spread = 1.4826 * np.median(error)
    inliers = error <= max(OUTLIER * spread, 1e-12)
    if ENOUGH <= inliers.sum() < len(y):
        coefficients, error = solve(inliers)
    return coefficients, float(np.median(error))


def batch_terms(batch: Batch) -> list[float]:
    """TERMS of a micro-batch."""
    hits = batch.ptr.diff().double()
    return [1.0, float(hits.sum()), float(batch.num_edges), float(hits.square().sum())]


def event_terms(hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
    """TERMS [n, 4] of single events with so many hits and edges (default: none), as they count within a micro-batch."""
    edges = np.zeros(len(hits)) if edges is None else edges
    return np.stack([np.zeros(len(hits)), hits, edges, np.square(hits, dtype=np.float64)], axis=1)

"""What a micro-batch costs: seconds and bytes, learned from the run's own steps.

    seconds, bytes ~ a + b hits + c edges + d hits^2        (sums over the events of the micro-batch; a, b, c, d >= 0)

Fitted by non-negative least squares on relative errors at the end of each epoch, from samples of all ranks; between two
fits the model does not change, and it travels in the checkpoint, so a resumed run plans as the unbroken one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch_geometric.data import Batch

TERMS = ("batch", "hits", "edges", "hits^2")
KEEP = 2000  # newest samples that are fitted
ENOUGH = 8  # samples before the first fit
OUTLIER = 3.0  # residuals beyond so many robust standard deviations are left out of the second fit


class CostModel:
    """Two fits over the same terms; `observe` on each rank, `learn` on all together, then `seconds` and `bytes`."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.samples = np.array(state.get("samples", []), dtype=np.float64).reshape(-1, len(TERMS) + 2)
        self.fits = {name: np.array(values) for name, values in state.get("fits", {}).items()}
        self.errors = dict(state.get("errors", {}))
        self.new: list[list[float]] = []  # of this rank since the last `learn`

    @property
    def fitted(self) -> bool:
        """True once there were enough samples."""
        return "seconds" in self.fits

    def observe(self, terms: Sequence[float], seconds: float, peak_bytes: float) -> None:
        """Take in one micro-batch of this rank."""
        self.new.append([*terms, seconds, peak_bytes])

    def collect(self, everyone: Sequence[Sequence[Sequence[float]]]) -> None:
        """Add the ranks' new samples (this rank's `new` and the others'), the same everywhere; keep the newest."""
        fresh = np.array([row for rank in everyone for row in rank], dtype=np.float64).reshape(-1, len(TERMS) + 2)
        self.samples = np.concatenate([self.samples, fresh])[-KEEP:]
        self.new = []

    def learn(self) -> bool:
        """Fit what was collected; False while there is too little."""
        if len(self.samples) < ENOUGH:
            return False
        x = self.samples[:, : len(TERMS)]
        for column, name in ((-2, "seconds"), (-1, "bytes")):
            y = self.samples[:, column]
            if (y > 0).sum() >= ENOUGH:
                self.fits[name], self.errors[name] = fit(x[y > 0], y[y > 0])
        return self.fitted

    def seconds(self, terms: np.ndarray) -> np.ndarray:
        """Predicted seconds [n] of micro-batches with `terms` [n, 4]."""
        return terms @ self.fits["seconds"]

    def bytes(self, terms: np.ndarray) -> np.ndarray:
        """Predicted peak bytes [n] of micro-batches with `terms` [n, 4]."""
        return terms @ self.fits["bytes"]

    def lines(self) -> list[str]:
        """The fits as people read them."""
        out = []
        for name, unit in (("seconds", "s"), ("bytes", "B")):
            if name in self.fits:
                parts = [f"{c:.3g} {unit}/{t}" for t, c in zip(TERMS, self.fits[name], strict=True) if c > 0]
                out.append(f"cost: {name} ~ {' + '.join(parts)}, median error {100 * self.errors[name]:.1f} %")
        return out

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; collect first, so that no rank's samples are missing."""
        fits = {name: values.tolist() for name, values in self.fits.items()}
        return {"samples": self.samples.tolist(), "fits": fits, "errors": self.errors}


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


def event_terms(hits: np.ndarray) -> np.ndarray:
    """TERMS [n, 4] of single events with so many hits, as they count within a micro-batch."""
    return np.stack([np.zeros(len(hits)), hits, np.zeros(len(hits)), np.square(hits, dtype=np.float64)], axis=1)


class MemoryMeter:
    """Bytes that a forward and backward pass needs at its peak, beyond what stood before.

    On GPUs the allocator's own peak; on the CPU, which has no such count, the tensors that autograd saves for backward.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0.0
        self.saved: dict[int, int] = {}

    def __enter__(self) -> MemoryMeter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
            self.hooks.__enter__()
        return self

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor's storage once."""
        storage = tensor.untyped_storage()
        self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = float(torch.cuda.max_memory_allocated(self.device) - self.before)
        else:
            self.hooks.__exit__(None, None, None)
            self.bytes = float(sum(self.saved.values()))

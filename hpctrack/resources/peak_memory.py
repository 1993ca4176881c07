"""Which memory mode each micro-batch runs in: the first of the model's ladder that is predicted to fit under the cap.

    peak bytes of forward and backward ~ a + b hits + c edges + d hits^2 + e min(hits, chunk) + f min(edges, chunk)

fitted for each mode (resources/cost_model.py); what the harder modes do chunk by chunk costs no more than one chunk.
The cap is for a rank's tensors: weights, gradients and optimizer state, which are counted, and the peak of a pass,
which is predicted. Fits come from a calibration before the first step (resources/calibration.py), are refined at the
end of each epoch from passes measured on the way, and travel in checkpoints: a resumed run chooses as the unbroken one
would.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import MemoryConfig
from hpctrack.errors import InputError
from hpctrack.models.memory_modes import CHUNK
from hpctrack.parallel.collectives import gather
from hpctrack.parallel.engine import Engine
from hpctrack.parallel.env import Env
from hpctrack.resources import cost_model
from hpctrack.resources.cost_model import TERMS, LinearFit, batch_terms

GIB = 2**30
SAFETY = 0.9  # share of the cap that predictions may fill
STATE_COPIES = 4  # weights, gradients and AdamW's two moments
ENOUGH = 5  # samples before a mode is fitted
CGROUP = Path("/sys/fs/cgroup/memory.max")
M_MMAP_THRESHOLD = -3  # of glibc's mallopt: blocks from so many bytes on have pages of their own
OWN_PAGES = (1 << 20, 9 << 20)  # that threshold, at least and at most: what a chunk needs again and again stays below
PIECES = 1 << 10  # blocks below it are less than this part of the cap


class PeakFit(LinearFit):
    """Peak bytes of a pass. What goes with hits^2 is taken in only if the largest events are predicted better with it.

    Small events alone cannot tell it from what goes with hits, and large ones would then be predicted far too high.
    """

    terms = (*TERMS, "hits of a chunk", "edges of a chunk")

    def fit(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        """The fit, with or without hits^2."""
        order = np.argsort(x[:, TERMS.index("hits")], kind="stable")
        smaller, largest = np.split(order, [-max(1, len(y) // 4)])

        def miss(columns: list[int]) -> float:
            coefficients = fit_columns(x[smaller], y[smaller], columns)[0]
            return float(np.abs(x[largest] @ coefficients / y[largest] - 1).max())

        every = list(range(len(self.terms)))
        columns = min([k for k in every if self.terms[k] != "hits^2"], every, key=miss)  # the simpler one, if equal
        return fit_columns(x, y, columns)


def fit_columns(x: np.ndarray, y: np.ndarray, columns: list[int]) -> tuple[np.ndarray, float]:
    """`cost_model.fit` with some columns of x alone; the coefficients of the others are 0."""
    coefficients = np.zeros(x.shape[1])
    coefficients[columns], error = cost_model.fit(x[:, columns], y)
    return coefficients, error


class Memory:
    """The section `memory` at work. Raises InputError for a policy that the model does not have."""

    def __init__(self, config: MemoryConfig, engine: Engine, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.env = engine.env
        modes = engine.module.memory_modes
        if config.policy not in ("auto", *modes):
            raise InputError(
                f"key 'memory.policy': the model has no memory mode '{config.policy}'; one of: auto, {', '.join(modes)}"
            )
        if config.policy == "auto" and not engine.can_discard:
            raise InputError("memory.policy=auto works with parallel.strategy ddp and fsdp; for deepspeed name a mode")
        self.policy = config.policy
        self.chunk = getattr(engine.module, "chunk", None) or CHUNK
        self.modes = [mode for mode in modes if mode != "offload" or self.env.device.type == "cuda"]
        self.source = "memory.cap_gib"
        self.cap = (config.cap_gib or 0.0) * GIB
        if self.auto and not self.cap:
            self.cap, self.source = memory_of_rank(self.env)
        if self.auto and self.env.device.type == "cpu":
            return_freed_memory(self.cap)
        weights = next(engine.module.parameters())
        self.fixed = STATE_COPIES * engine.n_parameters * weights.element_size()
        self.fits = {mode: PeakFit(state.get("fits", {}).get(mode)) for mode in self.modes}
        self.ceiling = state.get("ceiling") or float("inf")  # predictions from there on have run out of memory
        self.tight = False  # whether a batch was over the cap in every mode
        self.newest = (0.0, 0.0)  # predicted and measured bytes of the newest pass that was measured

    @property
    def auto(self) -> bool:
        """Whether modes are chosen, and a pass that runs out of memory is taken again in a harder one."""
        return self.policy == "auto"

    @property
    def fitted(self) -> bool:
        """Whether there is a fit to choose by."""
        return any(fit.fitted for fit in self.fits.values())

    @property
    def room(self) -> float:
        """Bytes that a pass may be predicted to need."""
        return min(SAFETY * self.cap - self.fixed, SAFETY * self.ceiling)

    def arrange(self, batches: list[Batch]) -> tuple[list[Batch], list[str]]:
        """Micro-batches and their modes: the policy's; with `auto`, each in the first mode that should fit.

        Several events that do not fit together in the first mode become micro-batches of their own: that costs less
        time than a harder mode, and adds up to the same gradient.
        """
        if not self.auto:
            return batches, [self.policy] * len(batches)
        parts = []
        for batch in batches:
            parts += self.split_events(batch) if self.exceeds_first_mode(batch) else [batch]
        return parts, [self.choose(batch) for batch in parts]

    def exceeds_first_mode(self, batch: Batch) -> bool:
        """Whether a micro-batch has several events that do not fit together in the first mode."""
        return batch.num_graphs > 1 and self.predict(batch, self.modes[0]) > self.room

    def split_events(self, batch: Batch) -> list[Batch]:
        """Its events one by one."""
        return [Batch.from_data_list([event]) for event in batch.to_data_list()]

    def choose(self, batch: Batch) -> str:
        """The first mode that is predicted to fit, else the hardest."""
        for mode in self.modes:
            if self.predict(batch, mode) <= self.room:
                return mode
        if not self.tight:
            self.tight, hardest = True, self.modes[-1]
            need, events = self.predict(batch, hardest), ", ".join(str(int(event)) for event in batch.event_id)
            print(
                f"memory: rank {self.env.rank}, event {events}: predicted to need {need / GIB:.3g} GiB even in mode "
                f"{hardest}, {self.source} leaves {self.room / GIB:.3g}; it and others like it are tried all the same",
                flush=True,
            )
        return self.modes[-1]

    def terms(self, batch: Batch) -> list[float]:
        """The terms of PeakFit."""
        terms = batch_terms(batch)
        return [*terms, min(terms[1], self.chunk), min(terms[2], self.chunk)]

    def predict(self, batch: Batch, mode: str) -> float:
        """Predicted peak bytes of a pass over the micro-batch; infinite for a mode that could not be calibrated."""
        fit = self.fits.get(mode)
        return float(fit.predict(np.array(self.terms(batch)))) if fit is not None and fit.fitted else float("inf")

    def next_mode(self, batch: Batch, mode: str) -> list[tuple[Batch, str]]:
        """What to try after a pass ran out of memory: its events one by one, then the next mode; in the end nothing."""
        if batch.num_graphs > 1:
            return [(event, mode) for event in self.split_events(batch)]
        following = self.modes[self.modes.index(mode) + 1 :]
        return [(batch, following[0])] if following else []

    # ------------------------------------------------------------------------------------- learning

    def observe(self, batch: Batch, mode: str, peak: float) -> None:
        """Take in a measured pass of this rank."""
        self.newest = (self.predict(batch, mode), peak)
        self.fits[mode].observe(self.terms(batch), peak)

    def collect(self) -> None:
        """Share the ranks' new samples."""
        everyone = gather({mode: fit.new for mode, fit in self.fits.items()}, self.env)
        for mode, fit in self.fits.items():
            fit.collect([new[mode] for new in everyone])

    def learn(self) -> list[str]:
        """Fit all ranks' samples, the same everywhere; what the fits say."""
        self.collect()
        return [fit.line(f"memory: {mode}", "B") for mode, fit in self.fits.items() if fit.learn(ENOUGH)]

    def lower_ceiling(self, predictions: Sequence[float]) -> None:
        """Passes with these predictions ran out of memory, on any rank: choose below them from now on."""
        self.ceiling = min(self.ceiling, *predictions)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; collect first."""
        ceiling = self.ceiling if self.ceiling < float("inf") else None
        return {"fits": {mode: fit.state() for mode, fit in self.fits.items()}, "ceiling": ceiling}


def return_freed_memory(cap: float) -> None:
    """Let the C library give a freed tensor's memory back at once, so that the process holds what its tensors need.

    That is, of tensors that count against a cap of so many bytes: new pages cost time. By default glibc keeps blocks
    below a threshold that rises to 32 MiB, in a heap that ends up in pieces. Other libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, int(min(max(cap / PIECES, OWN_PAGES[0]), OWN_PAGES[1])))


def memory_of_rank(env: Env) -> tuple[float, str]:
    """Bytes that this rank may count on, and where they are: its GPU's, or its part of the machine's memory."""
    if env.device.type == "cuda":
        return float(torch.cuda.get_device_properties(env.device).total_memory), "the GPU's memory"
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if CGROUP.is_file() and CGROUP.read_text().strip() != "max":
        total = min(total, float(CGROUP.read_text()))
    ranks = gather(socket.gethostname(), env).count(socket.gethostname())
    return total / ranks, f"the machine's memory / {ranks} ranks"

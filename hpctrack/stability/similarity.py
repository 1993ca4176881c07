"""How alike what two networks compute is: linear CKA between their layers, with the unbiased estimate of HSIC.

S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019; the estimate, added up over
mini-batches of rows, of T. Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021. With K and L
the kernels of n rows, diagonals zeroed, HSIC = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3)). Of
linear kernels it follows from the features, without a matrix of n x n. n: rows, D: features of all layers, L: layers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.errors import InputError
from hpctrack.models import Model

FEWEST = 4  # rows for which the estimate is defined
Features = dict[str, tuple[int, Tensor]]  # by layer: of how many rows, and the chosen ones [n, features]


class Rows:
    """Which rows of an event are taken, in mini-batches of `size`, at most `most` of them: at random, the same for all.

    Layers with as many rows have the same ones taken: row k of each stands for the same hit, edge or whatever it is.
    """

    def __init__(self, size: int, most: int, seed: int, event_id: int) -> None:
        self.size, self.most, self.seed = size, most, (seed, event_id)

    def __call__(self, n: int) -> Tensor:
        """Numbers of the chosen ones of n rows."""
        rng = np.random.default_rng([*self.seed, n])
        return torch.from_numpy(rng.permutation(n)[: self.size * self.most])

    def batches(self, n: int) -> list[slice]:
        """The mini-batches of n chosen rows; a last one of too few is left out."""
        ends = range(0, n, self.size)
        return [slice(k, min(n, k + self.size)) for k in ends if min(n, k + self.size) - k >= FEWEST]


class Layers:
    """What a model's layers put out on an event, in fp64: of each call of each chosen module.

    `patterns`: names of modules, with wildcards; none: every linear layer. InputError if there is no such module.
    """

    def __init__(self, model: Model, patterns: Sequence[str], where: str) -> None:
        self.model = model
        self.modules = {name: module for name, module in model.named_modules() if is_chosen(name, module, patterns)}
        if not self.modules:
            names = ", ".join(name for name, _ in model.named_modules() if name)
            raise InputError(f"{where}: no module is called {' or '.join(patterns)}; its modules: {names}")

    def __call__(self, batch: Batch, rows: Rows) -> Features:
        """The chosen rows of each layer; a module that is called again counts as another layer, `name#2`."""
        calls = Calls({batch.num_nodes, batch.num_edges}, rows)
        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: calls.take(name, output))
            for name, module in self.modules.items()
        ]
        try:
            with torch.no_grad():
                self.model(batch)
        finally:
            for handle in handles:
                handle.remove()
        return calls.all()


class Calls:
    """What modules put out, call by call. Some are called chunk by chunk: as long as their rows are fewer than those of
    all hits, or of all edges (`totals`), they wait for the next ones, and are one call together.
    """

    def __init__(self, totals: set[int], rows: Rows) -> None:
        self.totals, self.rows = totals, rows
        self.waiting: dict[str, list[Tensor]] = {}
        self.number: dict[str, int] = {}
        self.found: Features = {}

    def take(self, name: str, output: object) -> None:
        """What a module has put out: [rows, …, features], or one event of such."""
        if not isinstance(output, Tensor) or output.dim() < 2:
            return
        one = output.detach()
        pieces = self.waiting.setdefault(name, [])
        pieces.append(one.squeeze(0) if one.dim() > 2 and len(one) == 1 else one)
        size = sum(map(len, pieces))
        if size in self.totals:
            self._keep(name, [torch.cat(self.waiting.pop(name))])
        elif size > max(self.totals):  # rows of something else
            self._keep(name, self.waiting.pop(name))

    def all(self) -> Features:
        """All layers, once nothing more comes."""
        for name in list(self.waiting):
            self._keep(name, self.waiting.pop(name))
        return self.found

    def _keep(self, name: str, calls: Sequence[Tensor]) -> None:
        for one in calls:
            self.number[name] = self.number.get(name, 0) + 1
            flat = one.reshape(-1, one.shape[-1])
            chosen = flat[self.rows(len(flat)).to(flat.device)].double()
            self.found[name if self.number[name] == 1 else f"{name}#{self.number[name]}"] = len(flat), chosen


def is_chosen(name: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    """Whether a module is one of those that are looked at."""
    if not patterns:
        return isinstance(module, nn.Linear)
    return bool(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class Moments:
    """Of the features of one mini-batch [n, D] in L layers what HSIC needs: centred, which changes no value of it."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        centred = [one - one.mean(0) for one in layers]
        self.n = len(centred[0])
        self.features_nD = torch.cat(centred, dim=1)
        sizes = torch.tensor([one.shape[1] for one in centred])
        layer = torch.repeat_interleave(torch.arange(len(centred)), sizes).to(self.features_nD.device)
        self.of_LD = torch.nn.functional.one_hot(layer, len(centred)).T.to(self.features_nD)
        self.diagonal_nL = self.features_nD.square() @ self.of_LD.T  # k_ii
        # K1 without the diagonal; its first part, X (X'1), is 0 but for rounding once X is centred
        self.row_nL = (self.features_nD * self.features_nD.sum(0)) @ self.of_LD.T - self.diagonal_nL


def hsic(x: Moments, y: Moments) -> Tensor:
    """Unbiased HSIC [L, L'] of each layer of x with each of y, of the same rows."""
    n = x.n
    product_DD = x.features_nD.T @ y.features_nD
    trace = x.of_LD @ product_DD.square() @ y.of_LD.T - x.diagonal_nL.T @ y.diagonal_nL
    sums = torch.outer(x.row_nL.sum(0), y.row_nL.sum(0))
    rows = x.row_nL.T @ y.row_nL
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def of_event(features: Sequence[Features], rows: Rows) -> dict[str, list[list[float | None]]]:
    """Sums of HSIC over an event's mini-batches, between the layers of each pair of runs `a-b`, a = b among them.

    None for layers whose rows are not the same ones: of hits and of edges, say.
    """
    numbers = sorted({n for of_run in features for n, _ in of_run.values()})
    pairs = [(a, b) for a in range(len(features)) for b in range(a, len(features))]
    names = [list(of_run) for of_run in features]
    found = {pair: np.full((len(names[pair[0]]), len(names[pair[1]])), np.nan) for pair in pairs}
    for n in numbers:
        chosen = [[k for k, name in enumerate(names[r]) if of_run[name][0] == n] for r, of_run in enumerate(features)]
        kept = min(n, rows.size * rows.most)
        for part in rows.batches(kept):
            moments = [
                Moments([features[r][names[r][k]][1][part] for k in of_run]) if of_run else None
                for r, of_run in enumerate(chosen)
            ]
            for a, b in pairs:
                x, y = moments[a], moments[b]
                if x is not None and y is not None:
                    at = np.ix_(chosen[a], chosen[b])
                    found[a, b][at] = np.nan_to_num(found[a, b][at]) + hsic(x, y).cpu().numpy()
    return {
        f"{a}-{b}": [[None if np.isnan(value) else float(value) for value in row] for row in values]
        for (a, b), values in found.items()
    }


def cka(sums: Sequence[dict[str, np.ndarray]], a: int, b: int) -> np.ndarray:
    """CKA [L, L'] between the layers of two runs, from the sums of HSIC of events; not-a-number where there is none."""
    cross, own_a, own_b = (added([of[key] for of in sums]) for key in (f"{a}-{b}", f"{a}-{a}", f"{b}-{b}"))
    scale = np.outer(np.diag(own_a), np.diag(own_b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, cross / np.sqrt(np.where(scale > 0, scale, 1)), np.nan)


def added(values: Sequence[np.ndarray]) -> np.ndarray:
    """Sums over those events that have a number; not-a-number where none has."""
    stacked = np.stack(values)
    return np.where(np.isfinite(stacked).any(0), np.nansum(stacked, axis=0), np.nan)


def with_error(sums: Sequence[dict[str, np.ndarray]], a: int, b: int) -> tuple[np.ndarray, np.ndarray | None]:
    """CKA and its standard error by leaving out one event after the other (jackknife); None for one event."""
    whole, n = cka(sums, a, b), len(sums)
    if n < 2:
        return whole, None
    parts = np.stack([cka([*sums[:k], *sums[k + 1 :]], a, b) for k in range(n)])
    return whole, np.sqrt((n - 1) / n * ((parts - parts.mean(0)) ** 2).sum(0))


def summary(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The names of each run's `layers`, and CKA of all `pairs` of runs, each with itself too; None where there is none.

    `events`: of each the `layers` that ran, and their `hsic` as `of_event` gives it.
    """
    runs = range(len(events[0]["layers"]))
    names = [list(dict.fromkeys(name for event in events for name in event["layers"][r])) for r in runs]
    pairs = [(a, b) for a in runs for b in runs if a <= b]
    sums = []
    for event in events:
        at = [[names[r].index(name) for name in event["layers"][r]] for r in runs]
        of_event = {f"{a}-{b}": np.full((len(names[a]), len(names[b])), np.nan) for a, b in pairs}
        for a, b in pairs:
            values = np.array(event["hsic"][f"{a}-{b}"], dtype=float).reshape(len(at[a]), len(at[b]))
            of_event[f"{a}-{b}"][np.ix_(at[a], at[b])] = values
        sums.append(of_event)
    found = []
    for a, b in pairs:
        value, error = with_error(sums, a, b)
        found.append({"a": a, "b": b, "cka": plain(value), "error": None if error is None else plain(error)})
    return {"layers": names, "pairs": found}


def plain(values: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers, with None for what is none: JSON has no not-a-number."""
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]

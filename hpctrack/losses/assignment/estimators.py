"""Gradients of a loss through the exact assignment (graphs/assignment.py), which is constant but for jumps.

An estimator takes the costs of an event's edges, their choice, and g, what the loss says of choosing each edge: 1 for a
wrong one, -1 for a true one. It gives the derivative of sum(g y) by the costs; the loss scales it. So an estimate does
not depend on how many edges or events a step has, and its `strength` is a cost per edge.

Legend: M edges, K problems, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hpctrack.graphs.assignment import Assignment

Estimator = Callable[[Assignment, np.ndarray, np.ndarray, np.ndarray, "Strength"], np.ndarray]


class Strength:
    """How far an estimator looks: `cost` per edge, `samples` of noise drawn from `seed`, `rounds` of scaling."""

    def __init__(self, cost: float, samples: int, rounds: int, seed: tuple[int, ...]) -> None:
        self.cost, self.samples, self.rounds, self.seed = cost, samples, rounds, seed


def blackbox(solve: Assignment, cost_M: np.ndarray, chosen_M: np.ndarray, g_M: np.ndarray, by: Strength) -> np.ndarray:
    """-(y - y') / lambda, with y' the choice at costs + lambda g, not below 0.

    M. Vlastelica et al., ICLR 2020, for a loss that is this piece-wise linear one; `cost` is lambda.
    """
    other_M = solve(np.maximum(cost_M + by.cost * g_M, 0.0))
    return (other_M.astype(np.float64) - chosen_M) / by.cost


def identity(solve: Assignment, cost_M: np.ndarray, chosen_M: np.ndarray, g_M: np.ndarray, by: Strength) -> np.ndarray:
    """-g, without its mean over the edges of each problem, which moves no choice of as many edges.

    S. Sahoo et al., "Backpropagation through combinatorial algorithms: identity with projection works", ICLR 2023.
    """
    number_K = np.bincount(solve.component_M, minlength=solve.n_components)
    mean_K = np.bincount(solve.component_M, g_M, minlength=solve.n_components) / number_K
    return mean_K[solve.component_M] - g_M


def perturbed(solve: Assignment, cost_M: np.ndarray, chosen_M: np.ndarray, g_M: np.ndarray, by: Strength) -> np.ndarray:
    """Mean over noise Z of (g y(costs + sigma Z)) Z / sigma, problem by problem; `cost` is sigma.

    Q. Berthet et al., "Learning with differentiable perturbed optimizers", NeurIPS 2020. The choice without noise is
    taken off, which changes no mean and lowers the scatter.
    """
    rng, total_M = np.random.default_rng(by.seed), np.zeros(len(cost_M))
    k = solve.n_components
    for _ in range(by.samples):
        noise_M = rng.normal(size=len(cost_M))
        moved_M = solve(cost_M + by.cost * noise_M).astype(np.float64) - chosen_M
        total_M += np.bincount(solve.component_M, g_M * moved_M, minlength=k)[solve.component_M] * noise_M
    return total_M / (by.samples * by.cost)


def sinkhorn(solve: Assignment, cost_M: np.ndarray, chosen_M: np.ndarray, g_M: np.ndarray, by: Strength) -> np.ndarray:
    """The derivative through Sinkhorn's scaling of exp(-cost / tau), with `cost` as tau and so many `rounds`.

    M. Cuturi, NeurIPS 2013. A hit may stay without a next one at a cost of 1. At the fixed point y = exp(-(c + u + v) /
    tau); the derivative of g y is that of a linear system in u and v, solved by as many rounds of the same kind.
    """
    (row_M, rows), (column_M, columns) = solve.ends
    kernel_M = np.exp(-cost_M / by.cost)
    spare = np.exp(-1.0 / by.cost)
    u_R: np.ndarray = np.ones(rows)
    v_C: np.ndarray = np.ones(columns)
    for _ in range(by.rounds):
        u_R = 1 / (np.bincount(row_M, kernel_M * v_C[column_M], rows) + spare)
        v_C = 1 / (np.bincount(column_M, kernel_M * u_R[row_M], columns) + spare)
    y_M = kernel_M * u_R[row_M] * v_C[column_M]
    gy_M = g_M * y_M
    left_R: np.ndarray = np.zeros(rows)
    right_C: np.ndarray = np.zeros(columns)
    of_row, of_column = np.bincount(row_M, gy_M, rows), np.bincount(column_M, gy_M, columns)
    for _ in range(by.rounds):
        left_R = of_row - np.bincount(row_M, y_M * right_C[column_M], rows)
        right_C = of_column - np.bincount(column_M, y_M * left_R[row_M], columns)
    return -(gy_M - y_M * (left_R[row_M] + right_C[column_M])) / by.cost


ESTIMATORS: Mapping[str, Estimator] = {
    "blackbox": blackbox,
    "identity": identity,
    "perturbed": perturbed,
    "sinkhorn": sinkhorn,
}

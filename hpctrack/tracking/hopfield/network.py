"""A Hopfield network on segments between hits: its energy, its field, and how it relaxes.

A neuron V_e in [0, 1] stands for the directed segment e from a hit to one further out. Segments that go on in each
other support each other, those that leave or enter the same hit compete, and the mean field V = 1/2 (1 + tanh(- dE/dV /
T)) is followed while the temperature falls.

    E = - c/2 V W V + alpha/2 sum_h (out_h^2 + in_h^2) - alpha sum_e V_e^2 - bias V + delta/2 (sum V - N)^2

with out_h and in_h the sums of V over the segments that leave and enter hit h: the competition of all pairs at a hit
without a list of them. B. Denby, Comput. Phys. Commun. 49 (1988) 429; C. Peterson, NIM A279 (1989) 537; G.
Stimpfl-Abele and L. Garrido, Comput. Phys. Commun. 64 (1991) 46.

Nothing couples segments of different events: events may stand one behind the other in one network. The order of sums is
that of the segments, so the same network gives the same values bit for bit.

Legend: N hits, M segments, T triplets, i.e. pairs of segments of which the second begins where the first ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Network:
    """Neurons, couplings and competition.

    `edge_2M`: the hits where segments begin and end, numbers below `n_hits`. `support`: c W, [M, M], without a
    diagonal, symmetric. `bias`: of each neuron, or one number for all. `competition`: alpha. `crowding`: delta, and
    `expected`: N.
    """

    edge_2M: np.ndarray
    n_hits: int
    support: csr_matrix
    competition: float
    bias: np.ndarray | float = 0.0
    crowding: float = 0.0
    expected: float = 0.0

    def at_hits(self, value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of V over the segments that leave each hit, and over those that enter it, [N] each."""
        begin, end = self.edge_2M
        return np.bincount(begin, value_M, self.n_hits), np.bincount(end, value_M, self.n_hits)

    def energy(self, value_M: np.ndarray) -> float:
        """E of the activations V [M]."""
        leaving, entering = self.at_hits(value_M)
        rivals = (leaving**2).sum() + (entering**2).sum() - 2 * (value_M**2).sum()
        found = -0.5 * value_M @ (self.support @ value_M) + 0.5 * self.competition * rivals
        return float(found - (self.bias * value_M).sum() + 0.5 * self.crowding * (value_M.sum() - self.expected) ** 2)

    def free_energy(self, value_M: np.ndarray, temperature: float) -> float:
        """E - T S, which steps of little damping lower: their fixed points are those of the field at T.

        S = - 1/2 sum V ln V + (1 - V) ln(1 - V); towards T = 0 it is the energy.
        """
        inside = np.clip(value_M, 1e-300, 1 - 1e-16)
        entropy = -0.5 * (inside * np.log(inside) + (1 - inside) * np.log1p(-inside)).sum()
        return self.energy(value_M) - temperature * float(entropy)

    def supported(self, value_M: np.ndarray) -> np.ndarray:
        """What the segments before and behind each give it [M]."""
        return self.support @ value_M

    def field(self, value_M: np.ndarray, of_bias: float = 1.0) -> np.ndarray:
        """- dE/dV [M], with the bias times `of_bias`: linear in segments and triplets."""
        begin, end = self.edge_2M
        leaving, entering = self.at_hits(value_M)
        rivals = leaving[begin] + entering[end] - 2 * value_M
        found = self.supported(value_M) - self.competition * rivals + of_bias * self.bias
        return found - self.crowding * (value_M.sum() - self.expected) if self.crowding else found


class OfStrongest(Network):
    """Each neuron hears only the strongest, by c T V at the time, of those before it and of those behind it.

    Dense regions, where many segments go on in each, are no longer rewarded. The field is that of no energy.
    """

    def supported(self, value_M: np.ndarray) -> np.ndarray:
        """What the strongest before and behind each segment give it [M]."""
        found = np.zeros(len(value_M))
        for side in self._sides:
            rows = np.flatnonzero(np.diff(side.indptr))
            if len(rows):
                found[rows] += np.maximum.reduceat(side.data * value_M[side.indices], side.indptr[rows])
        return found

    @cached_property
    def _sides(self) -> tuple[csr_matrix, csr_matrix]:
        """The couplings to those behind, and to those before."""
        pairs = self.support.tocoo()
        behind = self.edge_2M[1, pairs.row] == self.edge_2M[0, pairs.col]
        first, second = (
            csr_matrix((pairs.data[of], (pairs.row[of], pairs.col[of])), shape=self.support.shape)
            for of in (behind, ~behind)
        )
        return first, second


@dataclass(frozen=True)
class Cooling:
    """How a network relaxes, by synchronous steps V <- (1 - damping) V + damping 1/2 (1 + tanh(field / T)).

    `steps` temperatures fall geometrically from `begin` to `end`. `halving`: instead, all are `begin`, and it and the
    bias are halved after half the steps (ALPHA-g). Then up to `rest` steps at the last temperature; these end where
    the mean |dV| of the undamped step is below `still`. Without damping (1) two states may take turns for ever.
    """

    begin: float
    end: float
    steps: int
    rest: int = 0
    damping: float = 0.5
    still: float = 5e-4
    halving: bool = False

    def schedule(self) -> list[tuple[float, float]]:
        """Temperature and factor of the bias in each step that is always taken."""
        if self.halving:
            half = self.steps // 2
            return [(self.begin, 1.0)] * half + [(self.begin / 2, 0.5)] * (self.steps - half)
        return [(float(t), 1.0) for t in np.geomspace(self.begin, self.end, self.steps)]


def relax(network: Network, start: np.ndarray | float, cooling: Cooling) -> np.ndarray:
    """Activations V [M] after cooling, from those of `start`."""
    value = np.broadcast_to(np.asarray(start, dtype=np.float64), network.edge_2M.shape[1:]).copy()
    if not len(value):
        return value
    for temperature, of_bias in cooling.schedule():
        step(network, value, temperature, cooling.damping, of_bias)
    for _ in range(cooling.rest):
        if step(network, value, temperature, cooling.damping, of_bias) < cooling.still:
            break
    return value


def step(network: Network, value_M: np.ndarray, temperature: float, damping: float, of_bias: float = 1.0) -> float:
    """One synchronous step of all neurons, in place; the mean |dV| that it would be without damping."""
    change = 0.5 * (1 + np.tanh(network.field(value_M, of_bias) / temperature)) - value_M
    value_M += damping * change
    return float(np.abs(change).mean())

"""Balance over ranks with measured costs: the plan against plain random and other people's rules; balance against
randomness; predicted against measured seconds.

Events of many sizes are drawn from a dataset, and forward and backward of the shipped model and loss are timed on each,
after some steps of training. The cost model is fitted on half of them. Epochs are then made of the other half: sizes
drawn with replacement and jittered (so that sorting cannot put copies of one event side by side), predicted by the
model, each with its origin's ratio of measured to predicted seconds, so that what the model does not know stays in.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DynamicBatchSampler

from hpctrack.benchmarks.measure import Figure, Page, helix_dataset
from hpctrack.benchmarks.peers import Assignment, assignments, deal
from hpctrack.config import RunConfig, load_config
from hpctrack.events.loader import EventLoader
from hpctrack.events.selection import COLUMNS, target_particles
from hpctrack.losses import build_loss, objective
from hpctrack.models import build_model
from hpctrack.models.graph_network import EDGES_POWER
from hpctrack.named_recipes import path_of
from hpctrack.planning.certificate import balances, randomness
from hpctrack.planning.plan import plan_epoch
from hpctrack.resources.cost_model import CostModel, batch_terms, event_terms
from hpctrack.storage.store import Dataset

CONFIG = "influencer"  # a recipe by name
GOAL = 0.97
SPREAD = 0.17  # of the drawn share of an event's tracks (log-normal); with ACTS events' 0.10, hits vary by 0.2
TABLE_CV = 0.2  # of mu = 200 events: hits vary by so much


@dataclass(frozen=True)
class Events:
    """An epoch: hits, predicted and measured seconds of each event, [n] each."""

    hits: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray

    def known(self) -> Events:
        """The same as if the measured seconds had been predicted."""
        return Events(self.hits, self.measured, self.measured)


def run(quick: bool, data: Path | None = None) -> Page:
    """All figures, the curve of balance against randomness as a table, and its plot."""
    events, trained, rounds, share, seeds = (40, 40, 4, 0.02, 2) if quick else (96, 100, 12, 0.03, 5)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(data or helix_dataset(Path(folder), 4 if quick else 12, 9500))
        batches, seconds = measure(dataset, load_config(path_of(CONFIG)), events, trained, rounds=rounds, share=share)
    best, first, second = (part.min(axis=1) for part in (seconds, seconds[:, ::2], seconds[:, 1::2]))
    train, test = slice(0, None, 2), slice(1, None, 2)
    cost = CostModel()
    for batch, value in zip(batches[train], best[train], strict=True):
        cost.observe(batch_terms(batch), value)
    cost.collect([cost.new])
    cost.learn()
    predicted = cost.seconds(np.array([batch_terms(batch) for batch in batches]))
    error = np.abs(predicted / best - 1)[test]
    alone = np.array([batch.num_graphs == 1 for batch in batches])[test]
    hits = np.array([batch.num_nodes for batch in batches])[test][alone]
    ratio, *halves = ((s / predicted)[test][alone] for s in (best, first, second))
    epochs = [resample(hits, ratio, cost, seed) for seed in range(seeds)]
    quiet_ratio = agreed(ratio, *halves)
    quiet = [resample(hits, quiet_ratio, cost, seed) for seed in range(seeds)]
    table = [from_table(seed) for seed in range(seeds)]
    figures = [
        *balance_figures(epochs, "", "measured seconds"),
        *balance_figures(quiet, "quiet_", "measured seconds without the timings' own noise"),
        *balance_figures([e.known() for e in epochs], "known_", "planned with the measured seconds themselves"),
        *balance_figures(table, "table_", f"cost = hits^{EDGES_POWER} known exactly, hits' CV {TABLE_CV}"),
        *peer_figures(epochs),
        Figure("cost_error_median", error.tolist(), "", "relative error of predicted seconds, held-out steps"),
        Figure("cost_error_spread", [float(np.std(ratio))], "", "standard deviation of measured / predicted seconds"),
        Figure("quiet_cost_error_spread", [float(np.std(quiet_ratio))], "", "without the timings' own noise"),
        Figure(
            "jitter", (np.median(seconds, axis=1) / best - 1).tolist(), "", f"median over least of {rounds} timings"
        ),
        Figure("hits", hits.tolist(), "hits", f"of the held-out events, CV {np.std(hits) / np.mean(hits):.2f}"),
        Figure("step_seconds", best[test][alone].tolist(), "s", "forward + backward of one event, CPU seconds"),
        Figure("plan_seconds_100k", plan_seconds(), "s", "to plan 100,000 events, for 2 to 4096 ranks x 4 events"),
    ]
    rows = curves(epochs[0].predicted, epochs[0].measured)
    ideal = curves(table[0].predicted, table[0].measured)
    source = f"{len(dataset)} events of {data}" if data else "helix events made for this run"
    return Page(figures, curve_page(rows, ideal, source, cost.lines(), peers_table(epochs[0])), partial(plot, rows))


# ------------------------------------------------------------------------------------------------ measurement


def draw(dataset: Dataset, config: RunConfig, n: int, share: float) -> list[Batch]:
    """Single events: of each, about `share` of its target tracks (those of the shipped selection), varied."""
    chosen = config.data.selection
    rng = np.random.default_rng(1)
    targets = []
    for row in range(min(n, len(dataset))):
        targets.append(target_particles(dataset.read(row, COLUMNS), chosen.pt_min_gev, chosen.min_hits).sum())
    batches = []
    for i in range(n):
        row = i % len(targets)
        tracks = max(2, round(share * targets[row] * rng.lognormal(0, SPREAD)))
        selection = chosen.model_copy(update={"tracks": tracks})
        load = EventLoader(dataset, config.data.features, selection, config.data.augment, (config.seed, 0))
        batches.append(Batch.from_data_list([load(row, i // len(targets))]))
    return batches


def measure(
    dataset: Dataset, config: RunConfig, n: int, trained: int, *, rounds: int, share: float
) -> tuple[list[Batch], np.ndarray]:
    """Micro-batches, and CPU seconds [n, rounds] of forward + backward on each, after `trained` steps of training.

    Three of four micro-batches are single events, the others four events together. Rounds go over all of them, so that
    the machine's moods hit all alike.
    """
    torch.manual_seed(config.seed)
    model, loss = build_model(config.model, config.data.features), build_loss(config.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)

    def work(batch: Batch) -> float:
        begin = time.process_time()
        optimizer.zero_grad()
        terms, counts = loss(model(batch), batch), loss.counts(batch)
        objective(loss.weights, terms, counts).backward()
        return time.process_time() - begin

    for batch in draw(dataset, config, trained, share / 2):
        work(batch)
        optimizer.step()
    single = draw(dataset, config, n, share)
    grouped = draw(dataset, config, n // 2, share / 2)
    four = [Batch.from_data_list(sum((b.to_data_list() for b in grouped[i : i + 4]), [])) for i in range(0, n // 2, 4)]
    batches = single + four
    work(max(batches, key=lambda batch: batch.num_nodes))
    return batches, np.array([[work(batch) for batch in batches] for _ in range(rounds)]).T


# ------------------------------------------------------------------------------------------------ epochs


def resample(hits: np.ndarray, ratio: np.ndarray, cost: CostModel, seed: int) -> Events:
    """An epoch of events like those measured: smoothed bootstrap of (hits, measured / predicted).

    The kernel's width follows Silverman's rule; sizes are shrunk to their mean so that the variance stays.
    """
    rng = np.random.default_rng([seed, 7])
    log = np.log(hits)
    chosen = rng.integers(len(hits), size=PER_EPOCH)
    width = 1.06 * log.std() * len(hits) ** -0.2
    moved = log[chosen] - log.mean() + width * rng.normal(size=PER_EPOCH)
    sizes = np.exp(log.mean() + moved / np.hypot(1, width / log.std()))
    predicted = cost.seconds(event_terms(sizes))
    return Events(sizes, predicted, predicted * ratio[chosen])


def agreed(ratio: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`ratio` [n] with its spread reduced to what two independent measurements of it, `first` and `second`, share.

    The covariance of the two is the variance of what they measure; the rest is noise of the timing.
    """
    log = np.log(ratio)
    shared = np.sqrt(max(0.0, float(np.cov(np.log(first), np.log(second))[0, 1])))
    return np.exp(log.mean() + (log - log.mean()) * min(1.0, shared / max(log.std(ddof=1), 1e-12)))


def from_table(seed: int) -> Events:
    """An epoch of mu = 200 sizes as tabulated, with exactly known costs."""
    hits = np.random.default_rng([seed, 8]).lognormal(0, np.sqrt(np.log1p(TABLE_CV**2)), PER_EPOCH) * 1e5
    cost = hits**EDGES_POWER
    return Events(hits, cost, cost)


# ------------------------------------------------------------------------------------------------ figures


def planned(events: Events, world: int, per_rank: int, window: int | None, seed: int = 0) -> float:
    """Balance of a plan made from predicted costs, with measured ones."""
    plan = plan_epoch(events.predicted, world, seed, 0, world * per_rank, window=window)
    return balances(plan.loads(events.measured, world))[0]


def balance_figures(epochs: list[Events], prefix: str, how: str) -> list[Figure]:
    """256 ranks x 4 events at window 1, and 64 ranks x 1 event at the smallest window that reaches the goal."""
    figures = [Figure(f"{prefix}balance_256x4", [planned(e, 256, 4, 1) for e in epochs], "", f"window 1, {how}")]
    steps = PER_EPOCH // 64
    for window in (*(2**k for k in range(20) if 2**k < steps), None):
        values = [planned(e, 64, 1, window) for e in epochs]
        if np.median(values) >= GOAL or window is None:
            break
    name = "the whole epoch" if window is None else f"window {window}"
    reached = f"the smallest that reaches {GOAL}" if np.median(values) >= GOAL else f"{GOAL} is not reached"
    return [
        *figures,
        Figure(f"{prefix}balance_64x1", values, "", f"{name}: {reached}; {how}"),
        Figure(f"{prefix}window_64x1", [window or steps], "steps", f"of {steps} in the epoch"),
    ]


def peers(events: Events, world: int, per_rank: int, seed: int) -> dict[str, Assignment]:
    """Other people's rules on the same events."""
    return {
        **assignments(events.hits, world, per_rank, seed),
        "DynamicBatchSampler (PyG)": pyg_dynamic(events.hits, world, per_rank, seed),
    }


def pyg_dynamic(hits: np.ndarray, world: int, per_rank: int, seed: int) -> Assignment:
    """PyG's own sampler, its batches dealt out to ranks; a last step that has no batch for every rank is left out."""
    torch.manual_seed(seed)
    nodes = [SimpleNamespace(num_nodes=int(n)) for n in hits]
    budget = int(max(per_rank * hits.mean(), hits.max())) + 1
    batches = [np.array(batch) for batch in DynamicBatchSampler(nodes, budget, mode="node", shuffle=True) if batch]
    return deal(batches[: len(batches) // world * world], world)


PEERS = {
    "random": "plain random",
    "pyg": "DynamicBatchSampler (PyG)",
    "fairchem": "LPT of hits (fairchem)",
    "fairchem_budget": "hit budget (fairchem)",
    "hydragnn": "sorted hit budget (HydraGNN)",
}


def peer_figures(epochs: list[Events]) -> list[Figure]:
    """Balance of the peers with the same measured seconds."""
    figures = []
    for world, per_rank in CURVES:
        found = [peers(events, world, per_rank, seed) for seed, events in enumerate(epochs)]
        for key, name in PEERS.items():
            values = [rules[name].efficiency(events.measured) for rules, events in zip(found, epochs, strict=True)]
            figures.append(Figure(f"{key}_{world}x{per_rank}", values, "", f"{name}, {world} ranks"))
    return figures


def peers_table(events: Events) -> list[str]:
    """What the peers reach, drop and repeat, as Markdown rows."""
    lines = ["| rule | ranks x events | balance | dropped | repeated |", "|---|---|---|---|---|"]
    n = len(events.hits)
    for world, per_rank in CURVES:
        for name, rule in peers(events, world, per_rank, 0).items():
            value, lost, again = rule.efficiency(events.measured), rule.dropped(n), rule.repeated(n)
            lines.append(f"| {name} | {world} x {per_rank} | {value:.3f} | {lost} | {again} |")
        ours = planned(events, world, per_rank, 1)
        lines.append(f"| **hpctrack, window 1** | {world} x {per_rank} | **{ours:.3f}** | 0 | 0 |")
    return lines


def plan_seconds() -> list[float]:
    """CPU seconds to plan 100,000 events of the tabulated sizes, for several numbers of ranks."""
    rng = np.random.default_rng(0)
    cost = rng.lognormal(0, np.sqrt(np.log1p(TABLE_CV**2)), 100_000) ** EDGES_POWER
    seconds = []
    for world in (2, 8, 64, 256, 1024, 4096):
        begin = time.process_time()
        plan_epoch(cost, world, 0, 0, 4 * world)
        seconds.append(time.process_time() - begin)
    return seconds


# --------------------------------------------------------- the curve of balance against randomness: points, table, plot


PER_EPOCH = 20_480  # events: 320 steps of 64, 80 of 256, 20 of 1024
CURVES = ((64, 1), (64, 4), (256, 4))  # ranks x events a rank


@dataclass(frozen=True)
class Point:
    """A plan: `window` in steps (None: the epoch); balance with measured costs; KS and entropy of the steps' sizes."""

    world: int
    per_rank: int
    fixed: str
    window: int | None
    balance: float
    time_balance: float
    ks: float
    entropy: float


def curves(predicted: np.ndarray, measured: np.ndarray) -> list[Point]:
    """Every setting of CURVES, steps of a fixed number of events and of a fixed predicted cost, windows 1, 2, 4 …"""
    points = []
    for world, per_rank in CURVES:
        n = world * per_rank
        for fixed, length in (("count", {"events_per_step": n}), ("cost", {"size_per_step": n * predicted.mean()})):
            for window in (*(2**k for k in range(20) if 2**k < len(predicted) // n), None):
                plan = plan_epoch(predicted, world, 0, 0, window=window, **length)
                values = *balances(plan.loads(measured, world)), *randomness(predicted[plan.event], plan.step_offsets)
                points.append(Point(world, per_rank, fixed, window, *values))
    return points


def curve_rows(points: list[Point]) -> list[str]:
    """The curve as Markdown rows."""
    return [
        "| ranks x events | fixed | window | balance | by time | KS | entropy |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {p.world} x {p.per_rank} | {p.fixed} | {p.window or 'epoch'} | {p.balance:.3f} | "
            f"{p.time_balance:.3f} | {p.ks:.3f} | {p.entropy:.3f} |"
            for p in points
        ),
    ]


def curve_page(
    points: list[Point], tabulated: list[Point], source: str, cost_lines: list[str], peers: list[str]
) -> str:
    """Markdown below the figures."""
    return "\n".join(
        [
            f"Events: {source}. {' '.join(cost_lines)}.",
            "",
            "## Other people's rules",
            "",
            "On the same events, with measured seconds; budgets hold as many mean events, or the largest event.",
            "",
            *peers,
            "",
            "## Balance against randomness",
            "",
            "![balance against randomness](plan.png)",
            "",
            "Balance: mean / slowest rank's measured seconds, averaged over steps; by time: weighted by the steps' "
            "length. KS: distance of a step's sizes from the epoch's; entropy: of its sizes over the epoch's deciles.",
            "",
            *curve_rows(points),
            "",
            "The same for sizes as tabulated, costs known exactly (what a better cost model could reach):",
            "",
            *curve_rows(tabulated),
            "",
        ]
    )


def plot(points: list[Point], file: BinaryIO) -> None:
    """Balance over the entropy that is left, a line a setting, a mark a window."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (world, per_rank) in enumerate(CURVES):
        for fixed, style in (("count", "o-"), ("cost", "s--")):
            mine = [p for p in points if (p.world, p.per_rank, p.fixed) == (world, per_rank, fixed)]
            x, y = [p.entropy for p in mine], [p.balance for p in mine]
            label = f"{world} ranks x {per_rank}, fixed {fixed}"
            axes.plot(x, y, style, color=f"C{i}", ms=4, lw=1.2, label=label, alpha=1 if fixed == "count" else 0.6)
            for p in mine if (per_rank, fixed) == (1, "count") else ():
                if (p.window or 99) <= 16:
                    text, at = f"window {p.window}", (p.entropy, p.balance)
                    axes.annotate(text, at, fontsize=7, textcoords="offset points", xytext=(5, 3))
    axes.axhline(GOAL, color="0.6", lw=0.8, ls=":")
    axes.set_xlim(-0.05, 1.13)
    axes.set_xlabel("entropy of a step's sizes (1: as mixed as the epoch)")
    axes.set_ylabel("balance: mean / slowest rank")
    axes.legend(fontsize=7, loc="lower left")
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=130, format="png")

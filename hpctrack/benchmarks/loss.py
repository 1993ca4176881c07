"""The influencer loss: its attraction's three forms, a training step against the baseline's, a full event; and
libraries for the fixed-radius search side by side, on one CPU thread.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.measure import (
    FEATURES,
    Figure,
    Page,
    embeddings,
    new_high_water_gib,
    ratio,
    status_gib,
    straight_tracks,
    time_in_turn,
    tracks,
)
from hpctrack.config import Named
from hpctrack.graphs.neighbours import near_blocks, radius_pairs
from hpctrack.losses import Loss, build_loss, objective
from hpctrack.losses.influencer import attraction, attraction_loop, attraction_scatter
from hpctrack.models import build_model

TRACKS = 500
FORMS: dict[str, Callable] = {
    "closed": lambda *args: attraction(*args)[0],
    "scatter": attraction_scatter,
    "loop": attraction_loop,
}
WEIGHTS = {"attraction": 4.0, "neighbours": 1.0, "per": "hit"}
INFLUENCER = {"repulsion_ii": 0.5, "compactness": 8.0, "squared_hinge_ui": True, "log_floor": 1e-4, **WEIGHTS}
SYSTEMS = {  # model and loss, alike in all that is not compared; weights as in configs/greedy.yaml
    "influencer": (Named(name="influencer"), Named(name="influencer", **INFLUENCER)),
    "baseline": (Named(name="embedding"), Named(name="contrastive", squared_hinge=True, **WEIGHTS)),
}
STATES = {"trained": 1.0, "collapsed": 0.02}  # scale of embeddings: clusters far apart, or all hits within the margin


def run(quick: bool) -> Page:
    """Forms and steps at 500 tracks of 12 hits, 8 dimensions, one event; the whole loss at 100,000 hits."""
    hits = 10_000 if quick else 100_000
    figures = [*forms(3 if quick else 15), *steps(3 if quick else 9)]
    for state, name in (("trained", "loss_100k"), ("collapsed", "loss_100k_collapsed")):
        seconds, gib = full_event(state, hits)
        at = f"whole loss of {hits} hits, {state} embeddings, forward + backward"
        figures += [
            Figure(f"{name}_s", [seconds], "CPU s", at),
            Figure(f"{name}_peak_gib", [gib], "GiB", f"peak of {at}"),
        ]
    return Page(figures, search_table(quick))


def forms(repeats: int) -> list[Figure]:
    """The attraction in closed form against loop and scatter, forward and backward."""
    batch = straight_tracks(TRACKS)

    def work(form: Callable) -> Callable[[], None]:
        def call() -> None:
            generator = torch.Generator().manual_seed(1)
            user, influencer = (
                torch.randn(batch.num_nodes, 8, generator=generator, requires_grad=True) for _ in range(2)
            )
            form(user, influencer, batch, 1e-6).backward()

        return call

    seconds = time_in_turn({name: work(form) for name, form in FORMS.items()}, repeats)
    at = f"{TRACKS} tracks, forward + backward"
    over = {name: ratio(seconds[name], seconds["closed"]) for name in ("loop", "scatter")}
    return [
        Figure("closed_over_loop", over["loop"], "x", f"loop s / closed-form s, {at}"),
        Figure("closed_over_scatter", over["scatter"], "x", f"pair-scatter s / closed-form s, {at}"),
        Figure("closed_seconds", seconds["closed"], "s", f"closed form, {at}"),
    ]


def steps(repeats: int) -> list[Figure]:
    """Whole training steps of the influencer system over the baseline's, and the loss's share of the first."""
    batch = straight_tracks(TRACKS)
    work: dict[str, Callable[[], Any]] = {}
    for name, (model_config, loss_config) in SYSTEMS.items():
        torch.manual_seed(0)
        model, loss = build_model(model_config, FEATURES), build_loss(loss_config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the state stays what it is
        with torch.no_grad():
            outputs = model(batch)
        values = as_trained(outputs, batch)
        work[f"{name}, trained"] = partial(step, model, loss, optimizer, batch, values)
        work[f"{name}, initial"] = partial(step, model, loss, optimizer, batch, None)
        leaves = {key: value.requires_grad_() for key, value in values.items()}
        work[f"{name}, loss"] = partial(backward, loss, leaves, batch)
    seconds = time_in_turn(work, repeats)
    at = f"{TRACKS} tracks, default backbone, forward + backward + optimizer"
    trained, initial, alone = (
        ratio(seconds[f"influencer, {k}"], seconds[f"baseline, {k}"]) for k in ("trained", "initial", "loss")
    )
    share = ratio(seconds["influencer, loss"], seconds["influencer, trained"])
    return [
        Figure("step_over_baseline", trained, "x", f"influencer step s / contrastive step s, {at}, outputs as trained"),
        Figure("step_over_baseline_initial", initial, "x", "the same, outputs of the model as initialised"),
        Figure("step_seconds", seconds["influencer, trained"], "s", f"influencer step, {at}, outputs as trained"),
        Figure("loss_over_baseline", alone, "x", "influencer loss s / contrastive loss s, outputs as trained"),
        Figure("loss_share", share, "of the step", "influencer loss alone, outputs as trained"),
    ]


def step(
    model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, batch: Batch, values: dict[str, Tensor] | None
) -> None:
    """A training step; `values` are what the loss sees in place of the model's outputs, with the slopes of these."""
    optimizer.zero_grad()
    outputs = model(batch)
    if values is not None:
        outputs = {name: output + (values[name].detach() - output.detach()) for name, output in outputs.items()}
    backward(loss, outputs, batch)
    optimizer.step()


def weighted(loss: Loss, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """The sum of a loss's weighted terms."""
    return objective(loss.weights, loss(outputs, batch))


def backward(loss: Loss, outputs: dict[str, Tensor], batch: Batch) -> None:
    """A loss and its gradient."""
    weighted(loss, outputs, batch).backward()


def as_trained(outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Values of the same shapes with the geometry of a trained model's: user and influencer about common centres."""
    track = batch.track.numpy()
    pair = embeddings(track, 8, copies=2)
    values = {"user": pair[0], "influencer": pair[1], "embedding": pair[0]}
    values["hit_score"] = np.where(track >= 0, 4.0, -4.0).astype(np.float32)
    spaces = {name: embeddings(track, value.shape[1])[0] for name, value in outputs.items() if name.startswith("space")}
    return {name: torch.from_numpy((values | spaces)[name]) for name in outputs}


def full_event(state: str, hits: int) -> tuple[float, float]:
    """CPU seconds and peak GiB, beyond what was there before, of the influencer loss in a process of its own."""
    command = [sys.executable, "-m", "hpctrack.benchmarks.loss", state, str(hits)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(found.stdout))


def one_loss(state: str, hits: int) -> tuple[float, float]:
    """What `full_event` measures: the loss with all its terms on noise and tracks, forward and backward."""
    torch.set_num_threads(1)
    track = tracks(hits)
    names = {"user": 8, "influencer": 8, "space_0": 4, "space_1": 4}
    pair = embeddings(track, 8, copies=2, scale=STATES[state])
    spaces = embeddings(track, 4, copies=2, scale=STATES[state])
    outputs = {name: torch.from_numpy(v).requires_grad_() for name, v in zip(names, pair + spaces, strict=True)}
    n_tracks = torch.tensor([track.max() + 1])
    batch = Batch.from_data_list([Data(track=torch.from_numpy(track), n_tracks=n_tracks, num_nodes=hits)])
    loss = build_loss(SYSTEMS["influencer"][1])
    before, begin = new_high_water_gib(), time.process_time()
    weighted(loss, outputs, batch).backward()
    return time.process_time() - begin, status_gib("VmHWM") - before


# ------------------------------------------------------------------------------------------------ searches


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
            "of three (benchmarks/measure.py; trained: clusters, collapsed: all pairs in reach). `this project` "
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
    user, influencer = embeddings(tracks(n_hits), 8, copies=2, scale=STATES[state])
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


if __name__ == "__main__":
    print(json.dumps(one_loss(sys.argv[1], int(sys.argv[2]))))

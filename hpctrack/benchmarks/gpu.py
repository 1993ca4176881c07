"""Steps and inference on full events on one GPU: seconds, GiB, share of the roofline. On a CPU it is a rehearsal.

Events are straight tracks through twelve layers (benchmarks/measure.py), weights as initialised; where a loss or a
builder depends on what the model has learned, outputs take the geometry of a trained model's. All sizes are in
`Sizes`; `--quick` divides them by QUICK. `--parts` names some of the parts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.inference import scan
from hpctrack.benchmarks.loss import SYSTEMS, as_trained, step
from hpctrack.benchmarks.measure import (
    FEATURES,
    HITS_PER_TRACK,
    Figure,
    Page,
    embeddings,
    ratio,
    slopes,
    straight_tracks,
    tracks,
)
from hpctrack.benchmarks.memory import near_pairs
from hpctrack.benchmarks.roofline import Peaks, counted, peaks, share
from hpctrack.config import Named
from hpctrack.errors import MEMORY, InputError, lacking
from hpctrack.events.padding import padded
from hpctrack.losses import Loss, build_loss
from hpctrack.models import Model, build_model
from hpctrack.named_recipes import path_of
from hpctrack.recipes import parse_yaml, read_recipe
from hpctrack.tracking.builders import build_builder
from hpctrack.training.compiled import compile_for_sizes
from hpctrack.training.telemetry import peak_gib, synchronize

RADIUS = 0.5  # of builders, what tuning finds for such scatter
REPEATS = 7
QUICK = 200


@dataclass(frozen=True)
class Sizes:
    """Tracks and hits of the events, edges of the graph."""

    small: int = 500  # tracks of pT > 1 GeV that influencer-500 sees
    full: int = 1650  # and with noise all that influencer-full sees: some 20,000 hits
    pixel: int = 64_000  # hits of the pixel detector
    event: int = 137_000  # hits of a full event
    edges: int = 1_600_000
    slope: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000, 340_000)

    def divided(self, by: int) -> Sizes:
        """All of them smaller."""
        slope = tuple(max(200, n // by) for n in self.slope)
        least = HITS_PER_TRACK * 2
        return Sizes(
            small=max(4, self.small // by),
            full=max(4, self.full // by),
            pixel=max(least, self.pixel // by),
            event=max(least, self.event // by),
            edges=max(100, self.edges // by),
            slope=tuple(n + k for k, n in enumerate(slope)),  # no two alike
        )


class Bench:
    """What all parts share: the device, the sizes, the roofline, and a timer."""

    def __init__(self, device: torch.device, sizes: Sizes, repeats: int) -> None:
        self.device, self.sizes, self.repeats = device, sizes, repeats
        self.reached: Peaks = peaks(device)
        self.rows: list[str] = []  # of the table

    def seconds(self, work: Callable[[], Any]) -> list[float]:
        """Of each repetition, after one that is not counted."""
        found = []
        for k in range(self.repeats + 1):
            begin = synchronize(self.device)
            work()
            if k:
                found.append(synchronize(self.device) - begin)
        return found

    def measure(self, name: str, hits: int, work: Callable[[], Any], what: str) -> list[Figure]:
        """Seconds, hits/s, GiB and share of the roofline of a piece of work on an event of so many hits."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self.seconds(work)
        gib = peak_gib(self.device)
        flop, moved = counted(work)
        shares = [share(flop, moved, s, self.reached) for s in seconds]
        middle = float(np.median(seconds))
        self.rows.append(
            f"| {what} | {hits:,} | {1e3 * middle:.1f} | {hits / middle:,.0f} | {gib:.2f} | {flop / 1e9:,.1f} | "
            f"{moved / 2**30:,.2f} | {100 * float(np.median(shares)):.0f} % |"
        )
        return [
            Figure(f"{name}_s", seconds, "s", f"{what}, {hits} hits"),
            Figure(f"{name}_gib", [gib], "GiB", f"peak of {what}"),
            Figure(f"{name}_roofline", shares, "", f"share of the roofline, {what}"),
        ]

    def table(self) -> str:
        """What was measured, as Markdown."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return "\n".join(
            [
                f"Device: {device}"
                + ("." if self.device.type == "cuda" else ", a REHEARSAL: no figure on this page is a GPU's."),
                f"Reached: {self.reached.flops / 1e12:.2f} TFLOP/s in fp32, {self.reached.bytes / 1e9:.0f} GB/s.",
                "",
                "| what | hits | ms | hits/s | peak GiB | GFLOP | GiB moved | roofline |",
                "|---|---|---|---|---|---|---|---|",
                *self.rows,
                "",
            ]
        )


def run(quick: bool, parts: str | None = None) -> Page:
    """All parts, or those named, on the GPU if there is one; `quick`: on a small part of the sizes."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    names = list(PARTS) if parts is None else parts.split(",")
    for name in names:
        if name not in PARTS:
            raise InputError(f"--parts {parts}: no part '{name}'; there are: {', '.join(PARTS)}")
    sizes = Sizes().divided(QUICK) if quick else Sizes()
    bench, figures = Bench(device, sizes, 2 if quick else REPEATS), list[Figure]()
    for name in names:
        figures += PARTS[name](bench)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return Page(figures, bench.table())


# ------------------------------------------------------------------------------------------------ parts


def training(bench: Bench, recipe: str, n_tracks: int, name: str) -> list[Figure]:
    """A step of a recipe's model and loss on one event: forward, backward, optimizer."""
    model, loss, batch = built(bench, recipe, n_tracks)
    work = step_of(bench, model, loss, batch)
    return bench.measure(name, batch.num_nodes, work, f"step of {recipe}, {n_tracks} tracks")


def recipe_of(name: str) -> dict[str, Any]:
    """The sections of a recipe that comes with the package."""
    path = path_of(name)
    return parse_yaml(read_recipe(path), str(path))


def built(bench: Bench, recipe: str, n_tracks: int) -> tuple[Model, Loss, Batch]:
    """A recipe's model and loss, and an event."""
    values = recipe_of(recipe)
    torch.manual_seed(0)
    model = build_model(Named(**values["model"]), FEATURES).to(bench.device)
    return model, build_loss(Named(**values["loss"])), straight_tracks(n_tracks)


def step_of(bench: Bench, model: nn.Module, loss: Loss, batch: Batch) -> Callable[[], None]:
    """A training step on what a trained model would put out."""
    here = batch.to(bench.device)
    with torch.no_grad():
        outputs = model(here)
    values = {k: v.to(bench.device) for k, v in as_trained(outputs, here.clone().cpu()).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # weights stay what they are
    return partial(step, model, loss, optimizer, here, values)


def paper(bench: Bench) -> list[Figure]:
    """Fig. 3 of the influencer paper: the step against the baseline's, and building against the greedy baseline's."""
    n_tracks, found, gib = bench.sizes.small, {}, {}
    for name, (model_config, loss_config) in SYSTEMS.items():
        torch.manual_seed(0)
        model = build_model(model_config, FEATURES).to(bench.device)
        work = step_of(bench, model, build_loss(loss_config), straight_tracks(n_tracks))
        work()
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        found[name], gib[name] = bench.seconds(work), peak_gib(bench.device)
    at = f"{n_tracks} tracks"
    hits = n_tracks * HITS_PER_TRACK
    outputs = dict(zip(("user", "influencer"), embeddings(tracks(hits, 0.0), 8, copies=2), strict=True))
    tensors = {name: torch.from_numpy(value).to(bench.device) for name, value in outputs.items()}
    tensors |= {"embedding": tensors["user"], "beta": tensors["influencer"][:, :1]}
    built_s = bench.seconds(building(Named(name="radius", radius=RADIUS), tensors, hits))
    rounds_s = bench.seconds(building(Named(name="greedy", radius=RADIUS), tensors, hits))
    condensed_s = bench.seconds(building(Named(name="condensation", radius=RADIUS, beta_min=0.1), tensors, hits))
    greedy_s = bench.seconds(lambda: scan(outputs["user"], RADIUS))
    on_device_s = bench.seconds(lambda: greedy_scan(tensors["user"], RADIUS))
    return [
        Figure(
            "gpu_step_over_baseline", ratio(found["influencer"], found["baseline"]), "x", f"influencer step s, {at}"
        ),
        Figure("gpu_memory_over_baseline", [gib["influencer"] / gib["baseline"]], "x", f"peaks of the same, {at}"),
        Figure(
            "gpu_build_over_greedy", ratio(on_device_s, built_s), "x", f"greedy loop on the device s / radius s, {at}"
        ),
        Figure(
            "gpu_build_over_greedy_host", ratio(greedy_s, built_s), "x", f"greedy loop on the host s / radius s, {at}"
        ),
        Figure("gpu_build_s", built_s, "s", f"radius, with duplicates removed, {at}"),
        Figure("gpu_greedy_s", rounds_s, "s", f"greedy, all seeds of a round at a time, {at}"),
        Figure("gpu_greedy_over_loop", ratio(on_device_s, rounds_s), "x", f"greedy loop s / this s, {at}"),
        Figure("gpu_condensation_s", condensed_s, "s", f"condensation, in the same rounds, {at}"),
    ]


def building(config: Named, tensors: dict[str, Tensor], hits: int) -> Callable[[], None]:
    """What a builder does on the device, with all that is stored brought to the host."""
    builder = build_builder(config)

    def build() -> None:
        with torch.inference_mode():
            builder.build_on_device(tensors, np.arange(hits), hits, 0)

    return build


def greedy_scan(x_NE: Tensor, radius: float) -> list[Tensor]:
    """Greedy random condensation as it is told, on a device: each seed is compared with all hits still free."""
    free = torch.randperm(len(x_NE), generator=torch.Generator().manual_seed(0)).to(x_NE.device)
    groups = []
    while len(free):
        near = (x_NE[free] - x_NE[free[0]]).square().sum(1) <= radius**2
        groups.append(free[near])
        free = free[~near]
    return groups


def interaction(bench: Bench) -> list[Figure]:
    """Forward and backward of the interaction network 128 x 8 on a full event, in the first mode that has room."""
    batch = graph_event(bench)
    torch.manual_seed(0)
    model = build_model(Named(name="interaction", width=128, iterations=8), FEATURES).to(bench.device)

    def work() -> None:
        model.zero_grad()
        model(batch)["edge_score"].square().mean().backward()

    mode = mode_with_room(model, work)
    if mode is None:
        raise InputError(f"the device has no room for {batch.num_edges:,} edges in any mode; take --quick")
    what = f"interaction network 128 x 8, {batch.num_edges:,} edges, forward + backward, mode {mode}"
    figures = bench.measure("gpu_full_event", batch.num_nodes, work, what)
    return [*figures, Figure("gpu_full_event_edges", [batch.num_edges], "edges", "of that event")]


def mode_with_room(model: Model, work: Callable[[], None]) -> str | None:
    """The first memory mode in which a pass does not run out of memory; None if there is none."""
    for mode in model.memory_modes:
        model.set_memory(mode)
        try:
            work()
        except (RuntimeError, MemoryError) as error:
            if lacking(error) != MEMORY:
                raise
            model.zero_grad(set_to_none=True)
            continue
        return mode
    return None


def graph_event(bench: Bench) -> Batch:
    """A full event with a graph, on the device."""
    batch = straight_tracks(bench.sizes.event // HITS_PER_TRACK)
    batch.edge_index = near_pairs(batch.x, bench.sizes.edges)
    return batch.to(bench.device)


def inference(bench: Bench, hits: int, name: str, what: str) -> list[Figure]:
    """Model and building of influencer-full on an event, without reading: in all, and each stage."""
    n_tracks = hits // HITS_PER_TRACK
    model, _, batch = built(bench, "influencer-full", n_tracks)
    model.eval()
    here = batch.to(bench.device)
    n = batch.num_nodes
    pair = embeddings(here.track.cpu().numpy(), 8, copies=2)
    tensors = {key: torch.from_numpy(v).to(bench.device) for key, v in zip(("user", "influencer"), pair, strict=True)}
    tensors["hit_score"] = torch.where(here.track >= 0, 4.0, -4.0)
    build = building(Named(**(recipe_of("influencer-full")["builder"] | {"radius": RADIUS, "cut": 0.5})), tensors, n)
    figures = bench.measure(f"{name}_model", n, partial(predicted, model, here), f"{what}: model")
    figures += bench.measure(f"{name}_build", n, build, f"{what}: candidates, on the device")
    total = [a + b for a, b in zip(figures[0].values, figures[3].values, strict=True)]
    return [Figure(f"{name}_s", total, "s", f"{what}: model and candidates"), *figures]


def chain(bench: Bench) -> list[Figure]:
    """Inference of the pipeline by stage: embedding, radius graph, filter and its edges, interaction network, walk."""
    batch, figures = straight_tracks(bench.sizes.event // HITS_PER_TRACK), list[Figure]()
    hits, track = batch.num_nodes, batch.track.numpy()
    place = torch.from_numpy(embeddings(track, 12)[0]).to(bench.device)
    batch.edge_index = near_pairs(batch.x, bench.sizes.edges)
    here = batch.to(bench.device)
    models = {}
    for name in ("embedding", "filter", "gnn"):
        values = recipe_of(f"pipeline/{name}")
        torch.manual_seed(0)
        models[name] = build_model(Named(**values["model"]), FEATURES).to(bench.device).eval()

    true = here.track[here.edge_index[0]] == here.track[here.edge_index[1]]
    scored = {"edge_index": here.edge_index, "edge_score": torch.where(true, 4.0, -4.0)}
    walk = Named(name="walk", cut=0.5)
    stages: dict[str, Callable[[], Any]] = {
        "embedding": partial(predicted, models["embedding"], here),
        "radius_graph": building(Named(name="radius_graph", radius=RADIUS), {"embedding": place}, hits),
        "filter": partial(predicted, models["filter"], here),
        "edges": building(Named(name="edges", cut=0.5), scored, hits),
        "gnn": partial(predicted, models["gnn"], here),
        "walk": building(walk, scored, hits),
    }
    for name, work in stages.items():
        figures += bench.measure(f"gpu_chain_{name}", hits, work, f"chain: {name}")
    of_stages = [f.values for f in figures if f.name.endswith("_s")]
    total = [sum(values) for values in zip(*of_stages, strict=True)]
    arrays = {name: value.cpu().numpy() for name, value in scored.items()}
    host_s = bench.seconds(lambda: build_builder(walk).build(arrays, np.arange(hits), hits, 0))
    joined_s = bench.seconds(building(Named(name="components", cut=0.5), scored, hits))
    return [
        Figure("gpu_chain_s", total, "s", f"chain: all stages, {hits} hits"),
        *figures,
        Figure("gpu_chain_walk_host_s", host_s, "s", "chain: walk, on the host"),
        Figure("gpu_chain_components_s", joined_s, "s", "chain: components in the place of the walk"),
    ]


def compiled(bench: Bench) -> list[Figure]:
    """Filter and graph network of the pipeline on an event padded to sizes of buckets, compiled, over eager."""
    event = Data(x=straight_tracks(bench.sizes.event // HITS_PER_TRACK).x)
    event.edge_index = near_pairs(event.x, bench.sizes.edges)
    whole = padded(event).to(bench.device)
    return [f for name in ("filter", "gnn") for f in compiled_over_eager(bench, name, f"pipeline/{name}", whole)]


def compiled_over_eager(bench: Bench, name: str, recipe: str, batch: Batch) -> list[Figure]:
    """Seconds of a recipe's model as `hpctrack infer --compile` has it, and their ratio to those without."""
    torch.manual_seed(0)
    model = build_model(Named(**recipe_of(recipe)["model"]), FEATURES).to(bench.device).eval()
    work = partial(predicted, model, batch)
    eager_s = bench.seconds(work)
    compile_for_sizes(model)
    for _ in range(3):  # compiles, records, plays
        work()
    compiled_s = bench.seconds(work)
    what = f"{name}, {batch.num_nodes} hits, {batch.num_edges} edges"
    return [
        Figure(f"gpu_compiled_{name}_s", compiled_s, "s", f"compiled: {what}"),
        Figure(f"gpu_compiled_{name}_over_eager", ratio(compiled_s, eager_s), "x", f"compiled s / eager s: {what}"),
    ]


def predicted(model: Model, batch: Batch) -> None:
    """A pass without gradients."""
    with torch.inference_mode():
        model(batch)


def slope(bench: Bench) -> list[Figure]:
    """How the default backbone's seconds grow with hits."""
    rows = []
    torch.manual_seed(0)
    model = build_model(Named(name="influencer"), FEATURES).to(bench.device).eval()
    for hits in bench.sizes.slope:
        batch = straight_tracks(max(1, hits // HITS_PER_TRACK)).to(bench.device)

        rows.append(bench.seconds(partial(predicted, model, batch)))
    sizes = bench.sizes.slope
    found = slopes([list(row) for row in zip(*rows, strict=True)], sizes)
    return [Figure("gpu_slope", found, "power of hits", f"default backbone, {sizes[0]} to {sizes[-1]} hits")]


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {  # in order of worth
    "influencer-500": lambda b: training(b, "influencer-500", b.sizes.small, "gpu_step_500"),
    "paper": paper,
    "interaction": interaction,
    "influencer-full": lambda b: (
        training(b, "influencer-full", b.sizes.full, "gpu_step_full")
        + inference(b, b.sizes.full * HITS_PER_TRACK, "gpu_infer_full", "inference of influencer-full")
    ),
    "pixel": lambda b: inference(b, b.sizes.pixel, "gpu_infer_pixel", "inference of a pixel event"),
    "slope": slope,
    "chain": chain,
    "compiled": compiled,
    "compiled-influencer": lambda b: compiled_over_eager(
        b, "influencer", "influencer-full", straight_tracks(b.sizes.full).to(b.device)
    ),
}

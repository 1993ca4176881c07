"""A second level, tracks -> collisions, on pile-up: the influencer loss on tracks against cuts at gaps in z0.

    python -m tests.campaigns.vertices --train DATASET --valid DATASET --test DATASET --steps 600 --out FOLDER
        [--candidates FOLDER FOLDER FOLDER | --deviations-mm 0.02,0.1,0.5]

With `--candidates` (three folders of `hpctrack infer`, of a model with track parameters, beside the datasets) the
tracks are candidates without duplicates; it is trained and judged on what the first level found, which gets no
gradient. Without, they are the true particles of pT > 1 GeV with z0 smeared by each of --deviations-mm: what a second
level can do with tracks so well measured. The model is the influencer model on a dense transformer, with z0 as a first
guess in its embedding, the loss the influencer loss, the builder the radius; radius and gap are tuned alike on
validation events. Finished settings stand in FOLDER/vertices.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import match_candidates
from hpctrack.evaluation.metrics import double_matched, fraction
from hpctrack.events import perigee
from hpctrack.events.selection import target_particles
from hpctrack.losses import build_loss
from hpctrack.models.embedding import InfluencerModel
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.schema import ESTIMATE, Event
from hpctrack.storage.store import Dataset
from hpctrack.tracking import vertices
from hpctrack.tracking.builders import build_builder, choose, tuning_counts
from tests.campaigns.points import Points

MODEL = InfluencerModel.Options(embedding=4, backbone={"name": "transformer", "width": 64, "layers": 3, "heads": 4})
LENGTH_MM = 0.3  # of z0 in a unit of the embedding, the loss's margin: what repels each other before training
LOSS = Named(name="influencer", attraction=4.0, repulsion_ii=0.5, compactness=8.0, squared_hinge_ui=True, per="hit")
BUILDER = Named(name="radius", radius=None, min_hits=vertices.MIN_TRACKS)
GAPS_MM = [0.01 * 1.35**k for k in range(20)]
COLUMNS = ["truth.particle_row", "particles.particle_id", *perigee.COLUMNS]
SHOWN = ("efficiency", "fakes", "purity", "assigned")


class VertexModel(InfluencerModel):
    """The influencer model whose embeddings begin at z0: else all tracks of an event begin within the margin."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`user` and `influencer` [T, E] of tracks with the features vertices.FEATURES."""
        guess = torch.zeros(batch.num_nodes, MODEL.embedding)
        guess[:, 0] = vertices.Z0_UNIT_MM / LENGTH_MM * batch.x[:, vertices.FEATURES.index("z0")]
        return {name: value + guess for name, value in super().forward(batch).items()}


class Tracks:
    """Tracks of one event: their estimates [T, 20], collisions [T], and true z of the collisions [V]."""

    def __init__(self, event: Event, estimate: np.ndarray, particle: np.ndarray) -> None:
        self.estimate = estimate
        born = np.stack([event.column(f"particles.v{axis}").astype(np.float64) for axis in "xyz"], axis=1)
        self.collision, self.z = vertices.collisions(event.column("particles.particle_id"), born, particle)
        self.data = Data(
            x=torch.from_numpy(vertices.features(estimate)),
            track=torch.from_numpy(self.collision),
            n_tracks=torch.tensor([len(self.z)]),
            num_nodes=len(estimate),
        )


def smeared(event: Event, deviation_mm: float) -> Tracks:
    """Tracks from the true particles of pT > 1 GeV, with z0 off by so much; the same draw every time."""
    particle = np.flatnonzero(target_particles(event, 1.0))
    table = np.zeros((len(particle), len(ESTIMATE)))
    table[:, :5] = perigee.perigee({name: event.column(name)[particle] for name in perigee.COLUMNS}, event.field_t)
    table[:, vertices.Z0] += np.random.default_rng([1, event.event_id]).normal(0, deviation_mm, len(particle))
    table[:, vertices.VARIANCE_Z0] = deviation_mm**2
    return Tracks(event, table, particle)


def found(event: Event, store: CandidateStore, i: int) -> Tracks:
    """Tracks from candidates: those that are the best-scored ones at most of their hits."""
    candidates = store.read(i)
    if candidates.parameters is None:
        raise InputError(f"{store.folder}: candidates have no track parameters; train with model.parameters=true")
    n = len(event.column("particles.particle_id"))
    matched = match_candidates(candidates, event.column("truth.particle_row"), n)
    best = np.zeros(len(candidates.track_ids) + 1)
    np.maximum.at(best, candidates.hit_rows, np.repeat(candidates.scores, np.diff(candidates.hit_offsets)))
    size = np.diff(candidates.hit_offsets)
    leads = np.repeat(candidates.scores, size) >= best[candidates.hit_rows]
    keep = 2 * np.add.reduceat(leads, candidates.hit_offsets[:-1]) > size if len(size) else np.zeros(0, bool)
    particle = np.where(double_matched(matched), matched.majority, -1)[keep]
    return Tracks(event, candidates.parameters[keep].astype(np.float64), particle)


def read(data: Path, candidates: Path | None, deviation_mm: float | None, limit: int) -> list[Tracks]:
    """The tracks of a dataset's first events."""
    dataset = Dataset(data)
    events = [dataset.read(row, COLUMNS) for row in range(min(limit, len(dataset)))]
    if candidates is None:
        return [smeared(event, deviation_mm) for event in events]
    store = CandidateStore(candidates)
    place = {int(event): i for i, event in enumerate(store.event_ids)}
    return [found(event, store, place[event.event_id]) for event in events]


def train(events: Sequence[Tracks], steps: int, seed: int = 1) -> torch.nn.Module:
    """The second level, one event a step."""
    torch.manual_seed(seed)
    model, loss = VertexModel(vertices.FEATURES, MODEL), build_loss(LOSS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        batch = Batch.from_data_list([events[rng.integers(len(events))].data])
        value = sum(loss.weights[name] * term.sum for name, term in loss(model(batch), batch).items())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step}: loss {value.item():.3f}", flush=True)
    return model.eval()


def predict(model: torch.nn.Module, event: Tracks) -> dict[str, np.ndarray]:
    """The model's outputs for one event."""
    with torch.inference_mode():
        return {name: value.numpy() for name, value in model(Batch.from_data_list([event.data])).items()}


def track_ids(event: Tracks, gap_mm: float) -> np.ndarray:
    """The baseline's vertex of each track."""
    z0 = event.estimate[:, vertices.Z0]
    return vertices.gap_clusters(z0, gap_mm).candidates(len(z0), 0, vertices.MIN_TRACKS).track_ids


def evaluate(events: Sequence[Tracks], ids: Sequence[np.ndarray]) -> dict[str, Any]:
    """Fractions over all events, and the robust width of the z residuals."""
    parts = [vertices.judge(i, e.collision, e.estimate, e.z) for e, i in zip(events, ids, strict=True)]
    out: dict[str, Any] = {name: fraction(*np.sum([part[name] for part in parts], axis=0).tolist()) for name in SHOWN}
    residual = np.concatenate([part["residual_mm"] for part in parts])
    low, high = np.quantile(residual, (0.1587, 0.8413)) if len(residual) else (np.nan, np.nan)
    return out | {"z_width_mm": float(high - low) / 2, "vertices": len(residual)}


def setting(args: argparse.Namespace, deviation_mm: float | None) -> dict[str, Any]:
    """Train, tune and judge once; the influencer level and the baseline."""
    paths = (args.train, args.valid, args.test)
    stores = args.candidates or (None, None, None)
    training, valid, test = (read(d, c, deviation_mm, args.events) for d, c in zip(paths, stores, strict=True))
    model = train(training, args.steps)
    found = ((predict(model, e), e.collision, np.ones(e.collision.max(initial=-1) + 1, dtype=bool)) for e in valid)
    counts = tuning_counts(BUILDER, found)
    tuned = choose(BUILDER, counts)
    builder = build_builder(BUILDER, **tuned)
    ids = []
    for event in test:
        n = len(event.estimate)
        ids.append(builder.build(predict(model, event), np.arange(n), n, 0).track_ids)
    tried = [evaluate(valid, [track_ids(event, gap) for event in valid]) for gap in GAPS_MM]
    gap = GAPS_MM[int(np.argmax([one["efficiency"]["value"] - (one["fakes"]["value"] or 0) for one in tried]))]
    return {
        "tracks": sum(len(event.estimate) for event in test),
        "events": len(test),
        "influencer": evaluate(test, ids) | {"tuned": f"radius {tuned['radius']}"},
        "gap": evaluate(test, [track_ids(event, gap) for event in test]) | {"tuned": f"gap {gap:.3f} mm"},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| tracks | method | efficiency | fakes | purity | tracks assigned | z width, mm | tuned |"
    lines = [head, "|---" * 8 + "|"]
    for row in rows:
        name = "candidates" if row["deviation_mm"] is None else f"true, z0 ± {row['deviation_mm']:g} mm"
        for method in ("influencer", "gap"):
            one = row[method]
            cells = [f"{one[k]['value']:.3f} ± {one[k]['error']:.3f}" if one[k]["denominator"] else "–" for k in SHOWN]
            lines.append(f"| {name} | {method} | {' | '.join(cells)} | {one['z_width_mm']:.3f} | {one['tuned']} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "valid", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--candidates", nargs=3, type=Path, metavar=("TRAIN", "VALID", "TEST"))
    parser.add_argument("--deviations-mm", type=lambda t: [float(v) for v in t.split(",")], default="0.02,0.1,0.5")
    parser.add_argument("--events", type=int, default=100, help="of each dataset, at most")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    points = Points(args.out / "vertices.jsonl", ("deviation_mm", "candidates", "steps", "seen"))
    wanted = []
    for deviation in [None] if args.candidates else args.deviations_mm:
        key = {"deviation_mm": deviation, "candidates": str(args.candidates), "steps": args.steps, "seen": args.events}
        wanted.append(points.key(key))
        if points.key(key) not in points.done:
            points.add(key | setting(args, deviation))
    text = table([row for row in points.rows if points.key(row) in wanted])
    (args.out / "vertices.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

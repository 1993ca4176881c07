"""What models of tracks as lines reach on events that they were not trained on: one table of several runs.

    python -m tests.campaigns.line_models NAME=RUN … --data DATASET --events 10000 --out FOLDER

Runs are of `captioning`, `track_queries`, `track_counting` or `line_bins`. FOLDER/lines.md has a row a run, and
FOLDER/lines.json the same with the command; `hpctrack report --study FOLDER` shows the table. Squared deviations are
those of HEP.TrkX: of intercept and slope times half the planes, mean of the two and over all tracks. `matched` takes
for each track the slot that a least-cost matching of these gives it; `sorted` the one of its rank by intercept.
Errors are standard errors over events.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named
from hpctrack.events.loader import EventLoader
from hpctrack.files.atomic import write_json, write_text
from hpctrack.losses import build_loss
from hpctrack.losses.images.counts import LineBinsLoss
from hpctrack.losses.images.lines import LineLoss, TracksInSlots, whitened
from hpctrack.models import build_model
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint, run_settings

AT_A_TIME = 100  # events
LEVELS = (0.68, 0.95)
COLUMNS = {
    "events": "events",
    "sorted": "squared deviation, sorted",
    "matched": "squared deviation, matched",
    "in 68 %": "inside the 68 % ellipse",
    "in 95 %": "inside the 95 % ellipse",
    "number": "events with the right number of tracks",
    "hits": "hits with the right track",
    "bins": "bins that are right",
    "recall": "bins with a track that are found",
}
Counts = dict[str, list[tuple[float, float]]]  # name: of each event, numerator and denominator


def measure(name: str, run: Path, data: Dataset, events: int) -> dict[str, Any]:
    """Rates and mean deviations of a run, each with its standard error."""
    path = checkpoint.find(run)
    meta = checkpoint.read_meta(path)
    config = run_settings.run_config(meta, path)
    model = build_model(config.model, config.data.features)
    checkpoint.load_model(model, checkpoint.read_state(path, mapped=True)["model"], path)
    loss = build_loss(config.loss)
    load = EventLoader(
        data, config.data.features, config.data.selection, AugmentConfig(), (0, 1), of_tracks=loss.of_tracks
    )
    counts: Counts = {"events": []}
    with torch.no_grad():
        for first in range(0, min(events, len(data)), AT_A_TIME):
            rows = range(first, min(first + AT_A_TIME, events, len(data)))
            batch = Batch.from_data_list([load(row, 0) for row in rows])
            counts["events"] += [(1.0, 1.0)] * len(rows)
            for what, numerator, denominator in of_batch(model.eval()(batch), batch, loss):
                counts.setdefault(what, []).extend(zip(numerator.tolist(), denominator.tolist(), strict=True))
    found = {what: mean_with_error(np.array(pairs)) for what, pairs in counts.items()}
    return {"name": name, "run": str(run), "step": meta["step"], "weights": weights(model), **found}


def weights(model: torch.nn.Module) -> int:
    """How many the model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def mean_with_error(pairs: np.ndarray) -> dict[str, float]:
    """Sum of numerators over sum of denominators [n, 2], its standard error over events, and the numbers."""
    (numerator, denominator), n = pairs.sum(0), len(pairs)
    value = numerator / max(denominator, 1e-300)
    spread = pairs[:, 0] - value * pairs[:, 1]
    error = math.sqrt(n / max(n - 1, 1) * float((spread**2).sum())) / max(denominator, 1e-300)
    return {"value": value, "error": error, "numerator": numerator, "denominator": denominator}


def of_batch(outputs: dict[str, Tensor], batch: Batch, loss: torch.nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each quantity that the outputs give: its name, and numerators and denominators of the events [B]."""
    one_B = torch.ones(batch.num_graphs)
    if "event_count" in outputs:
        yield "number", (outputs["event_count"].argmax(1) == batch.n_tracks).float(), one_B
    if "event_bins" in outputs:
        assert isinstance(loss, LineBinsLoss)
        score_BQ = outputs["event_bins"]
        true_BQ, found_BQ = loss.true_bins(batch, math.isqrt(score_BQ.shape[1])), score_BQ > 0
        yield "bins", (true_BQ == found_BQ).sum(1).float(), one_B * score_BQ.shape[1]
        yield "recall", (true_BQ & found_BQ).sum(1).float(), true_BQ.sum(1).float()
    if "event_lines" in outputs:
        assert isinstance(loss, LineLoss)
        yield from of_lines(outputs, batch, loss)


def of_lines(outputs: dict[str, Tensor], batch: Batch, loss: LineLoss) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same of lines in slots."""
    found_BS2 = loss.scaled(outputs["event_lines"].unflatten(1, (-1, 2)))
    true_T2 = loss.scaled(batch.lines[:, [0, 2]].to(found_BS2.dtype))
    tracks = TracksInSlots(batch, found_BS2.shape[1])
    plain = build_loss(Named(name="lines", slots="matched", lever=loss.options.lever))
    assert isinstance(plain, LineLoss)
    near_T = tracks.matched(plain.costs(outputs, found_BS2, true_T2, tracks))
    slot_of = {"sorted": tracks.by_rank(true_T2[:, 0]), "matched": near_T}
    own_T = slot_of["sorted"]  # the slot by which this model was trained
    if loss.options.slots == "matched":
        own_T = tracks.matched(loss.costs(outputs, found_BS2, true_T2, tracks))

    def per_event(value_T: Tensor) -> Tensor:
        return torch.zeros(batch.num_graphs).index_add(0, tracks.event, value_T.float())

    for how, slot_T in slot_of.items():
        if how == "matched" or loss.options.slots == "sorted":
            square_T = (found_BS2[tracks.event, slot_T] - true_T2).square().mean(1)
            yield how, per_event(square_T), tracks.number.float()
    if "event_covariance" in outputs:
        raw_T3 = outputs["event_covariance"].unflatten(1, (-1, 3))[tracks.event, own_T]
        square_T = whitened(found_BS2[tracks.event, own_T] - true_T2, raw_T3).square().sum(1)
        for level in LEVELS:
            yield f"in {level:.0%}".replace("%", " %"), per_event(square_T < chi2.ppf(level, 2)), tracks.number.float()
    if "event_presence" in outputs:
        right_B = (outputs["event_presence"] > 0).sum(1) == batch.n_tracks
        yield "number", right_B.float(), torch.ones(batch.num_graphs)
    if "hit_slot" in outputs:
        right_N = outputs["hit_slot"].argmax(1) == tracks.slot_of_hits(own_T, batch)
        per = torch.zeros(batch.num_graphs).index_add(0, batch.batch, right_N.float())
        yield "hits", per, batch.ptr.diff().float()


def table(rows: Sequence[dict[str, Any]], command: str) -> str:
    """A Markdown table with a row a run; a quantity that no run has is left out."""
    shown = [what for what in COLUMNS if any(what in row for row in rows)]
    lines = ["| run | weights | steps | " + " | ".join(COLUMNS[what] for what in shown) + " |"]
    lines.append("|---" * (len(shown) + 3) + "|")
    for row in rows:
        cells = [row["name"], f"{row['weights']:,}", f"{row['step']:,}"]
        for what in shown:
            found = row.get(what)
            if found is None:
                cells.append("–")
            elif what == "events":
                cells.append(f"{found['denominator']:,.0f}")
            else:
                cells.append(f"{found['value']:.4f} ± {found['error']:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(["# Tracks as lines", "", *lines, "", f"`{command}`", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write table and numbers."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", metavar="NAME=RUN")
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--events", type=int, default=10_000)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    data = Dataset(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [measure(name, Path(run), data, args.events) for name, run in (text.split("=", 1) for text in args.runs)]
    command = "python -m tests.campaigns.line_models " + " ".join(sys.argv[1:] if argv is None else argv)
    write_json(args.out / "lines.json", {"command": command, "rows": rows})
    write_text(args.out / "lines.md", table(rows, command))
    print(table(rows, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

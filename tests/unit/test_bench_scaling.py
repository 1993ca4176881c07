"""The scaling benchmark on runs made up for it, and the projection's model of communication."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpctrack.benchmarks import scaling
from hpctrack.errors import InputError
from hpctrack.training import checkpoint

MACHINE = scaling.PERLMUTTER_LIKE


def made_up_run(folder: Path, ranks: int, batch: int, waiting: float = 0.02) -> None:
    """Events of one second each; 2 % of a step spent waiting where there are ranks to wait for."""
    path = folder / scaling.name_of(ranks, batch, 0)
    path.mkdir(parents=True)
    lost = waiting if ranks > 1 else 0.0
    seconds = batch / ranks / (1 - lost)
    parts = {"compute_s": seconds * (1 - lost), "wait_s": seconds * lost, "communicate_s": 0.0, "data_s": 0.0}
    values = {"step_s": seconds, "hits_per_s": 100 * batch / seconds, "peak_gib": 1.0, **parts}
    lines = [json.dumps({"kind": "train", "step": step, **values}) + "\n" for step in range(1, 6)]
    (path / "metrics.jsonl").write_text("".join(lines))
    hits = np.random.default_rng(0).uniform(80, 120, 40)
    samples = [[1.0, h, 0.0, h * h, h * h * 1e-4] for h in hits]
    meta = {"step": 5, "config": {}, "data": "", "tuned": {}, "window": {}, "cost": {"samples": samples}}
    checkpoint.save(path / "checkpoints", 5, {"model": {"w": torch.zeros(1000)}}, meta, 1)


def test_figures_and_page_of_runs(tmp_path):
    for ranks, batch in ((1, 4), (1, 8), (2, 8)):
        made_up_run(tmp_path, ranks, batch)
    page = scaling.run(quick=False, runs=tmp_path)
    figures = {figure.name: figure.summary() for figure in page.figures}
    assert figures["strong_2"]["median"] == pytest.approx(0.98) and figures["strong_2"]["n"] == 4
    assert figures["weak_2"]["median"] == pytest.approx(0.98)
    assert figures["imbalance_share"]["median"] == pytest.approx(0.02) and figures["imbalance_share"]["n"] == 2
    assert figures["data_wait_share"]["median"] == 0
    assert figures["hits_per_s_2"]["median"] == pytest.approx(196)
    projected = [summary for name, summary in figures.items() if name.startswith("projected_")]
    assert len(projected) == 8 and all("PROJECTION, not measured" in summary["meaning"] for summary in projected)
    assert (
        "## Projected, not measured" in page.text and "| 2 | 8 | 4.08 | 196 | strong 0.980, weak 0.980 |" in page.text
    )
    with open(tmp_path / "scaling.png", "wb") as file:
        page.plot(file)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runs ranks-N-batch-B-round-I in here"):
        scaling.run(quick=False, runs=tmp_path)


def test_all_reduce_within_a_node_between_nodes_and_never_faster_on_more():
    assert MACHINE.all_reduce(1e6, 1) == 0
    inside = 8.4e-6 + 6 * (3.4e-6 + 0.25e6 / 100e9)
    assert MACHINE.all_reduce(1e6, 4) == pytest.approx(inside)
    tree = 2 * 14e-6 + 2 * 0.25e6 / 25e9
    ring = 2 * (14e-6 + 0.125e6 / 25e9)
    assert MACHINE.all_reduce(1e6, 8) == pytest.approx(inside + min(tree, ring))
    seconds = [MACHINE.all_reduce(1e6, world) for world in scaling.WORLDS]
    assert seconds == sorted(seconds)


def test_faster_ranks_scale_worse():
    samples = [[1.0, h, 0.0, h * h, h * h * 1e-4] for h in np.linspace(80, 120, 40)]
    slow, fast = (scaling.project({"samples": samples}, 200_000, speedup, MACHINE) for speedup in (1.0, 1e4))
    for a, b in zip(slow, fast, strict=True):
        assert a.efficiency >= b.efficiency and b.efficiency + b.imbalance + b.communication == pytest.approx(1)
    assert slow[0].efficiency == pytest.approx(1) and slow[-1].communication < 1e-3

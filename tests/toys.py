"""A tiny model, its checkpoints, and what its runs have logged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpctrack.models import build_model
from hpctrack.testing.toys import toy_config
from hpctrack.training import checkpoint
from hpctrack.training.optimizers import build_optimizer


def toy_model(step: int) -> torch.nn.Module:
    """The model of `toy_config`, with weights of its own for each step."""
    config = toy_config(Path("run"), Path("data"))
    torch.manual_seed(step)
    return build_model(config.model, config.data.features).double()


def toy_checkpoint(
    folder: Path, step: int, change: Callable[[dict[str, Any]], None] = lambda state: None, keep: int = 3
) -> Path:
    """A checkpoint (of `toy_model`) in a folder of checkpoints, whose state was changed before it was written."""
    config, model = toy_config(folder.parent, folder.parent / "data"), toy_model(step)
    optimizer = build_optimizer(model, config.optim)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    model.load_state_dict(toy_model(step).state_dict())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    change(state)
    meta = {"hpctrack": "0", "step": step, "epoch": 1, "plan": {"epoch": 0, "step": step, "hash": "0"}, "cost": {}}
    meta |= {"memory": {}, "precision": {"loss_scale": 1.0, "good_steps": 0, "skipped_steps": 0}}
    meta |= {"config": config.model_dump(mode="json"), "data": "abc", "tuned": {"radius": 0.3}, "window": {}}
    return checkpoint.save(folder, step, state, meta, keep)


def losses(run: Path) -> list[float]:
    """Training losses that a run has logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]

"""What is not finite is named with its event by all ranks, in training and inference, with every backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpctrack import infer
from hpctrack.errors import MachineError
from hpctrack.parallel.env import distributed
from hpctrack.storage.journals import committed
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train

BACKBONES = {
    "mlp": {"name": "mlp", "width": 8, "layers": 1},
    "neighbours": {"name": "neighbours", "width": 8, "stages": 1, "steps": 1, "neighbours": 4, "heads": 2},
    "transformer": {"name": "transformer", "width": 8, "layers": 1, "heads": 2},
}
BAD = 2  # the event with a hit that is nowhere


def spoil(folder: str, bad: float) -> None:
    """In this process, a hit of event BAD of datasets in `folder` is read as one whose z is `bad`."""
    read = Dataset.read

    def spoiled(self, *args, **options):
        event = read(self, *args, **options)
        if self.folder.name == folder and event.event_id == BAD and "z" in event.tables.get("hits", {}):
            event.tables["hits"]["z"][3] = bad
        return event

    Dataset.read = spoiled


def config(folder: Path, data: Path, backbone: str, valid: Path | None = None):
    model = {"name": "influencer", "embedding": 3, "backbone": BACKBONES[backbone]}
    loss = {"name": "influencer", **({"neighbours": 1.0} if backbone == "neighbours" else {})}
    return toy_config(folder, data, valid, model=model, loss=loss, train={"precision": "fp32", "steps": 2})


def expect_error(config, folder: str, bad: float, text: str) -> None:
    spoil(folder, bad)
    with distributed(config.parallel, 1) as env, pytest.raises(MachineError, match=text):
        train(config, env)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_names_the_event_on_all_ranks(tmp_path, backbone):
    data = toy_dataset(tmp_path / "data", sizes=(4, 5, 6, 4))
    text = f"loss is not finite in event {BAD};"
    run_ranks(2, expect_error, config(tmp_path / "run", data, backbone), "data", np.nan, text)


def test_validation_names_it_too(tmp_path):
    data, valid = (toy_dataset(tmp_path / name, sizes=(4, 5, 6, 4)) for name in ("data", "valid"))
    run = config(tmp_path / "run", data, "neighbours", valid)
    run_ranks(2, expect_error, run, "valid", np.inf, f"validation loss is not finite in event {BAD}$")


def infer_badly(run: Path, data: Path, out: Path) -> None:
    spoil("data", np.nan)
    assert infer.main(["--checkpoint", str(run), "--data", str(data), "--out", str(out)]) == 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_inference_names_it_and_does_the_others(tmp_path, backbone, capfd):
    data = toy_dataset(tmp_path / "data", sizes=(4, 5, 6, 4))
    run_ranks(1, do_train, config(tmp_path / "run", data, backbone))
    capfd.readouterr()
    run_ranks(2, infer_badly, tmp_path / "run", data, tmp_path / "out")
    error = capfd.readouterr().err
    assert f"event {BAD}: the model's output" in error and "is not finite" in error and "Traceback" not in error
    assert sorted(committed(tmp_path / "out")) == [0, 1, 3]


def do_train(config) -> None:
    with distributed(config.parallel, 1) as env:
        train(config, env)

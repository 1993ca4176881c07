"""Metrics in MLflow and W&B: what they are told, runs that go on, packages that are missing, servers that fail."""

from __future__ import annotations

import json
import threading

import pytest

from hpctrack import train as verb
from hpctrack.errors import InputError
from hpctrack.parallel.env import distributed
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import loggers
from hpctrack.training.loggers import IDENTIFIERS, check_installed, read_identifiers
from hpctrack.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toys") / "data")


class Made:
    """A logger that keeps what it is told; from a step on it fails, or hangs."""

    told, opened, fails_at, hangs = [], [], 10**9, False

    def __init__(self, folder, known, settings):
        self.id = known or f"run-{len(self.opened)}"
        self.opened.append((known, settings["optim.lr"]))

    def write(self, step, values):
        if step >= self.fails_at:
            if self.hangs:
                threading.Event().wait()
            raise ConnectionError("no route to the server\nand more")
        self.told.append((step, values))

    def close(self):
        self.told.append("closed")


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, "mlflow", type("Fresh", (Made,), {"told": [], "opened": []}))
    monkeypatch.setattr("hpctrack.training.build.check_installed", lambda names: None)
    return loggers.LOGGERS["mlflow"]


def run(folder, data, steps=2, **options):
    config = toy_config(
        folder, data, train={"steps": steps, "log_to": ["mlflow"]} | options, optim={"schedule": "constant"}
    )
    with distributed(config.parallel, 1) as env:
        assert train(config, env) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_they_are_told_what_metrics_say_and_a_run_goes_on_there(tmp_path, data, made):
    lines = run(tmp_path / "run", data)
    expected = [
        (line["step"], {f"{line['kind']}/{k}": v for k, v in line.items() if k not in ("kind", "step")})
        for line in lines
    ]
    assert made.told == [*expected, "closed"] and expected[0][1]["train/loss"] > 0
    run(tmp_path / "run", data, steps=3)
    assert made.opened == [(None, 0.01), ("run-0", 0.01)]
    assert json.loads((tmp_path / "run" / IDENTIFIERS).read_text()) == {"mlflow": "run-0"}
    assert [told[0] for told in made.told[len(expected) + 1 : -1]] == [3, 3]  # train, waste


def test_one_that_fails_is_said_once_and_the_run_goes_on(tmp_path, data, made, capsys):
    made.fails_at = 2
    lines = run(tmp_path / "run", data, steps=3)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    said = "train.log_to: mlflow failed, and logs no more of this run: no route to the server\n"
    assert capsys.readouterr().out.count(said) == 1 and [told[0] for told in made.told] == [1]


def test_one_that_hangs_is_left_behind(tmp_path, data, made, capsys, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSE_S", 0.2)
    made.fails_at, made.hangs = 2, True
    lines = run(tmp_path / "run", data, steps=3)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert "mlflow failed, and logs no more of this run: it had not taken everything" in capsys.readouterr().out


def test_one_that_cannot_begin_ends_a_new_run_alone(tmp_path, data, made, capsys, monkeypatch):
    def begin(folder, known, settings):
        raise ConnectionError("no route to the server")

    with monkeypatch.context() as patch:
        patch.setitem(loggers.LOGGERS, "mlflow", begin)
        with pytest.raises(InputError, match="train.log_to: mlflow cannot begin: no route to the server"):
            run(tmp_path / "run", data)
    run(tmp_path / "run", data)
    monkeypatch.setitem(loggers.LOGGERS, "mlflow", begin)
    assert len(run(tmp_path / "run", data, steps=3)) > 2
    assert "cannot begin: no route to the server (run run-0 of" in capsys.readouterr().out


def test_a_missing_package_is_a_line_before_training_begins(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(toy_config(tmp_path / "run", data).model_dump(mode="json")))
    assert verb.main([str(config), "train.log_to=[wandb]"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wandb, but wandb is not installed: pip install 'hpctrack[wandb]'" in error
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """W&B makes a folder `wandb`, which Python would take for a package without contents."""
    (tmp_path / "a_logger_of_no_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="is not installed"):
        check_installed(["a_logger_of_no_package"])


def test_damaged_identifiers_are_named(tmp_path):
    for text in ("{", "[]", '{"mlflow": 3}'):
        (tmp_path / IDENTIFIERS).write_text(text)
        with pytest.raises(InputError, match="no JSON object of identifiers; remove it"):
            read_identifiers(tmp_path / IDENTIFIERS)


def test_with_mlflow_itself(tmp_path, data, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra `mlflow`)")
    pytest.importorskip("sqlalchemy", reason="MLflow is not installed (extra `mlflow`)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for steps in (2, 3):
        lines = run(tmp_path / "run", data, steps=steps)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("hpctrack").experiment_id])
    assert [(one.info.status, one.info.run_name) for one in found] == [("FINISHED", "run")]
    assert found[0].data.params["model.backbone.name"] == "transformer"
    history = client.get_metric_history(found[0].info.run_id, "train/loss")
    assert {one.step: one.value for one in history} == {
        line["step"]: line["loss"] for line in lines if line["kind"] == "train"
    }
    (tmp_path / "run/mlflow.db").unlink()
    run(tmp_path / "run", data, steps=4)
    assert "mlflow cannot begin" in capsys.readouterr().out


def test_with_wandb_itself(tmp_path, data, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="W&B is not installed (extra `wandb`)")
    begun, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options) or init(**options))
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for steps in (2, 3):
        run(tmp_path / "run", data, steps=steps, log_to=["wandb"])
    identifier = json.loads((tmp_path / "run" / IDENTIFIERS).read_text())["wandb"]
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert [one["group"] for one in begun] == [identifier] * 2
    assert {file.stem for file in files} == {f"run-{one['id']}" for one in begun} and len(files) == 2
    assert all(file.stat().st_size for file in files)

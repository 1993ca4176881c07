"""Metrics of a run in MLflow and in Weights & Biases, if it asks for that (train.log_to); TensorBoard has them always.

Without a word of the user's both write into the run's folder and need no network. Their own environment variables lead
elsewhere. A run that goes on goes on there, too: its identifiers are in the run's folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpctrack.errors import InputError
from hpctrack.files.atomic import write_json

PROJECT = "hpctrack"
IDENTIFIERS = "loggers.json"  # in the run's folder: {logger: the run's identifier there}
MLFLOW_BATCH = 100  # parameters that MLflow takes at a time
MLFLOW_LENGTH = 500  # characters of a parameter that every MLflow server takes


class Logger(Protocol):
    """One of them. `id`: of the run there; `errors`: what it throws where it fails."""

    id: str
    errors: tuple[type[Exception], ...]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """After the last one."""


class MLflow:
    """A run in MLflow: in `mlflow.db` of the run's folder, or where MLFLOW_TRACKING_URI says.

    `known`: the identifier of a run that goes on. Settings become parameters, when it begins.
    """

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient  # here, since it takes seconds to load
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self.errors: tuple[type[Exception], ...] = (MlflowException, OSError)
        self.metric = Metric
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        try:
            self.client = MlflowClient(tracking_uri=where)
            if known is not None:
                self.client.update_run(known, status="RUNNING")
                self.id = known
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            self.id = self.client.create_run(experiment, run_name=folder.resolve().name).info.run_id
            params = [Param(key, str(value)[:MLFLOW_LENGTH]) for key, value in settings.items()]
            for begin in range(0, len(params), MLFLOW_BATCH):
                self.client.log_batch(self.id, params=params[begin : begin + MLFLOW_BATCH])
        except self.errors as error:
            raise InputError(f"train.log_to=mlflow: {where}{_of(known)}: {_first_line(error)}") from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[self.metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        """Say that the run has ended."""
        self.client.set_terminated(self.id)


class Wandb:
    """A run in Weights & Biases: in the folder `wandb` of the run's, for `wandb sync`, or as WANDB_MODE says.

    `known`: the identifier of a run that goes on.
    """

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        import wandb  # here, since it takes seconds to load

        self.errors: tuple[type[Exception], ...] = (wandb.errors.Error, OSError)
        self.id = known or uuid.uuid4().hex[:8]
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.resolve().name,
                id=self.id,
                resume="allow",
                dir=str(folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                settings=wandb.Settings(console="off"),  # the run's own lines stay as they are
            )
            self.run.config.update(dict(settings), allow_val_change=True)
        except self.errors as error:
            raise InputError(f"train.log_to=wandb{_of(known)}: {_first_line(error)}") from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Write out what is left."""
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Logger]] = {"mlflow": MLflow, "wandb": Wandb}


class Loggers:
    """Those of a run, on rank 0. `say` is told of one that fails, which is asked no more: a run does not end of it."""

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        path, self.say = folder / IDENTIFIERS, say
        known = read_identifiers(path) if names else {}
        self.open = {name: LOGGERS[name](folder, known.get(name), settings) for name in dict.fromkeys(names)}
        if self.open:
            write_json(path, known | {name: logger.id for name, logger in self.open.items()})

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, as `kind/name`."""
        self._each(lambda logger: logger.write(step, {f"{kind}/{name}": value for name, value in values.items()}))

    def close(self) -> None:
        """After the last step."""
        self._each(lambda logger: logger.close())

    def _each(self, work: Callable[[Logger], None]) -> None:
        for name, logger in list(self.open.items()):
            try:
                work(logger)
            except logger.errors as error:
                self.say(f"train.log_to: {name} failed, and logs no more of this run: {_first_line(error)}")
                del self.open[name]


def read_identifiers(path: Path) -> dict[str, str]:
    """What the runs of a folder are called in each logger; InputError for a file that does not say it."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{path}: no JSON object of identifiers; remove it to begin new runs in {', '.join(LOGGERS)}")
    return found


def check_installed(names: Sequence[str]) -> None:
    """InputError naming the first logger whose package is not there; a folder of that name is none."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise InputError(f"key 'train.log_to' has {name}, which is not installed: pip install 'hpctrack[{name}]'")


def _of(known: str | None) -> str:
    return "" if known is None else f", run {known} (of {IDENTIFIERS}; without that file a new one begins)"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

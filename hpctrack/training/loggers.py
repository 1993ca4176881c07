"""Metrics of a run in MLflow and in Weights & Biases, if it asks for that (train.log_to); TensorBoard has them always.

Without a word of the user's both write into the run's folder and need no network. Their own environment variables lead
elsewhere. A run that goes on goes on there, too: its identifiers are in the run's folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpctrack.errors import InputError
from hpctrack.files.atomic import write_json

PROJECT = "hpctrack"
IDENTIFIERS = "loggers.json"  # in the run's folder: {logger: the run's identifier there}
PACKAGES = {"mlflow": ("mlflow", "sqlalchemy", "alembic")}  # of a logger, if they are more than its name
WAITING = 1000  # numbers of steps that a logger may have taken late
CLOSE_S = 30.0  # what it then gets for the rest
MLFLOW_BATCH = 100  # parameters that MLflow takes at a time
MLFLOW_LENGTH = 500  # characters of a parameter that every MLflow server takes
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # its own: 16 minutes


class Logger(Protocol):
    """One of them. `id`: of the run there."""

    id: str

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """After the last one."""


class MLflow:
    """A run in MLflow: in `mlflow.db` of the run's folder, or where MLFLOW_TRACKING_URI says.

    `known`: the identifier of a run that goes on. Settings become parameters, when it begins.
    """

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        for name, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # here, since it takes seconds to load
        from mlflow.entities import Metric, Param

        self.metric, own = Metric, f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
        if known is not None:
            self.client.update_run(known, status="RUNNING")
            self.id = known
            return
        self.id = self.client.create_run(self.experiment(), run_name=folder.resolve().name).info.run_id
        params = [Param(key, str(value)[:MLFLOW_LENGTH]) for key, value in settings.items()]
        for begin in range(0, len(params), MLFLOW_BATCH):
            self.client.log_batch(self.id, params=params[begin : begin + MLFLOW_BATCH])

    def experiment(self) -> str:
        """The identifier of the experiment, which another run may make at the same moment."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name)
        except MlflowException:
            if found := self.client.get_experiment_by_name(name):
                return found.experiment_id
            raise

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[self.metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        """Say that the run has ended."""
        self.client.set_terminated(self.id)


class Wandb:
    """A run in Weights & Biases: in the folder `wandb` of the run's, for `wandb sync`, or as WANDB_MODE says.

    `known`: the identifier of a run that goes on. Offline W&B cannot go on with a run: each start is a run there, and
    all of them are a group of that name.
    """

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None:
        import wandb  # here, since it takes seconds to load

        self.id, mode = known or new_identifier(), os.environ.get("WANDB_MODE") or "offline"
        own = {"id": new_identifier(), "group": self.id} if mode == "offline" else {"id": self.id, "resume": "allow"}
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            dir=str(folder),
            mode=mode,
            settings=wandb.Settings(console="off"),  # the run's own lines stay as they are
            **own,
        )
        self.run.config.update(dict(settings), allow_val_change=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Write out what is left."""
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, str | None, Mapping[str, Any]], Logger]] = {"mlflow": MLflow, "wandb": Wandb}


class Line:
    """What a logger is told, in a thread of its own, so that one that hangs holds up nothing.

    `failed`: why it is asked no more.
    """

    def __init__(self, logger: Logger) -> None:
        self.failed: str | None = None
        self._logger = logger
        self._told: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while (told := self._told.get()) is not None:
                self._logger.write(*told)
            self._logger.close()
        except Exception as error:  # noqa: BLE001 - packages of others fail in their own ways
            self.failed = _first_line(error)

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        try:
            self._told.put_nowait((step, values))
        except queue.Full:
            self.failed = self.failed or f"it is {WAITING} steps late"

    def close(self) -> None:
        """After the last one; wait for it, but not for ever."""
        if not self._told.full():
            self._told.put_nowait(None)
            self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self.failed = self.failed or f"it had not taken everything {CLOSE_S:g} s after the end"


class Loggers:
    """Those of a run, on rank 0. `say` is told of one that fails, which is asked no more: a run does not end of it.

    InputError for one that a new run cannot begin with; a run that goes on goes on without it.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        path, self.say = folder / IDENTIFIERS, say
        self.open: dict[str, Line] = {}
        known = read_identifiers(path) if names else {}
        for name in dict.fromkeys(names):
            try:
                logger = LOGGERS[name](folder, known.get(name), settings)
            except Exception as error:
                line = f"train.log_to: {name} cannot begin: {_first_line(error)}"
                if name not in known:
                    raise InputError(line) from error
                say(f"{line} (run {known[name]} of {path}; without that file a new one begins)")
                continue
            self.open[name] = Line(logger)
            known[name] = logger.id
            write_json(path, known)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, as `kind/name`."""
        self._each(lambda line: line.tell(step, {f"{kind}/{name}": value for name, value in values.items()}))

    def close(self) -> None:
        """After the last step."""
        self._each(Line.close)

    def _each(self, work: Callable[[Line], None]) -> None:
        for name, line in list(self.open.items()):
            work(line)
            if line.failed is not None:
                self.say(f"train.log_to: {name} failed, and logs no more of this run: {line.failed}")
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
    """InputError naming the first logger of which a package is not there; a folder of that name is none."""
    for name in names:
        for package in PACKAGES.get(name, (name,)):
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise InputError(
                    f"key 'train.log_to' has {name}, but {package} is not installed: pip install 'hpctrack[{name}]'"
                )


def new_identifier() -> str:
    """Of a run."""
    return uuid.uuid4().hex[:8]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

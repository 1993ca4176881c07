"""The verbs' commands on tiny input, for the campaign of file faults (injected.py).

An `out` folder holds everything that a command writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from faults import strike
from helpers import make_trackml
from matplotlib.figure import Figure

from hpctrack import convert, evaluate, export, infer, inspect, report, simulate, train
from hpctrack.config import dump_yaml
from hpctrack.errors import EXIT_PREEMPTED
from hpctrack.formats import replacement
from hpctrack.storage import journals, store
from hpctrack.storage.hdf5 import INDEX
from hpctrack.testing.toys import FEATURES, toy_config, toy_dataset
from hpctrack.training import checkpoint, checkpoint_metadata, loop


class Inputs:
    """What the verbs work on, made when it is first asked for."""

    def __init__(self, room: Path) -> None:
        self.room = room

    @cached_property
    def csv(self) -> Path:
        """Three TrackML events."""
        return make_trackml(self.room / "csv", range(100, 103), n_particles=4, n_noise=2)

    @cached_property
    def data(self) -> Path:
        """Five events of straight tracks in two shards."""
        return toy_dataset(self.room / "data", sizes=(4, 6, 5, 3, 4), per_shard=3)

    def recipe(self, run: Path, tuned: bool = False) -> Path:
        """A recipe of four steps with a checkpoint each other step, of which one is kept; `tuned`: and validated."""
        path = self.room / f"{run.name}-{tuned}.yaml"
        settings = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 1, "valid_every": 1000}
        valid, builder = (self.data, {"radius": None}) if tuned else (None, {})
        path.write_text(dump_yaml(toy_config(run, self.data, valid, train=settings, builder=builder)))
        return path

    @cached_property
    def trained(self) -> Path:
        """A run that has ended."""
        run = self.room / "trained"
        recipe = self.recipe(run)
        done(lambda: train.main([str(recipe)]), self.room)
        return run

    @cached_property
    def candidates(self) -> Path:
        """Candidates of all events."""
        out = self.room / "candidates"
        words = ["--method", "dbscan", "--data", str(self.data), "--out", str(out)]
        done(lambda: infer.main(words), self.room)
        return out

    @cached_property
    def results(self) -> Path:
        """What was evaluated of them."""
        out = self.room / "results.json"
        words = [str(self.candidates), "--data", str(self.data), "--out", str(out)]
        done(lambda: evaluate.main(words), self.room)
        return out


def done(verb: Callable[[], int], room: Path, code: int = 0) -> None:
    """Run a verb in a process of its own, where it says what it likes."""
    outcome = strike(verb, [room / "nothing"], None)
    assert outcome.code == code, outcome.said


# ------------------------------------------------------------------------------------------------ the verbs


class Work:
    """A verb's command in the folder `out`, which begins as `begin` leaves it."""

    needs: tuple[str, ...] = ("data",)  # inputs, which are made before processes are forked
    ends = 0  # exit code of the command
    thin = 8  # of many writes to a file in a row, every so-many-th
    tuned = False

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        for name in self.needs:
            getattr(inputs, name)

    def begin(self, out: Path) -> None:
        """What is there before."""

    def run(self, out: Path) -> int:
        """The command."""
        raise NotImplementedError

    def again(self, out: Path) -> int:
        """The same command after a fault."""
        return self.run(out)

    def progress(self, out: Path) -> int:
        """How much is done for good; it never becomes less."""
        return 0

    def standing(self, out: Path) -> list[str]:
        """What this verb must keep whole at any time besides."""
        return []


class Train(Work):
    """A run."""

    thin = 1

    def run(self, out: Path) -> int:
        """Train from scratch, or go on."""
        return train.main([str(self.inputs.recipe(out / "run", self.tuned))])

    def progress(self, out: Path) -> int:
        """The step that the newest checkpoint has."""
        newest = checkpoint.latest(out / "run" / "checkpoints")
        return checkpoint.read_meta(newest)["step"] if newest else 0


class Tuned(Train):
    """A run with validation and tuning after its last step."""

    tuned = True


class Preempted(Train):
    """A run that is told to end amid its steps; the same command again finishes it."""

    ends, at = EXIT_PREEMPTED, 2

    def run(self, out: Path) -> int:
        """Train until SIGUSR1, as at the end of a walltime."""
        return told(self.at, lambda: super(Preempted, self).run(out))

    def again(self, out: Path) -> int:
        """This time without the signal."""
        return Train.run(self, out)


def told(at: int, run: Callable[[], int]) -> int:
    """`run()`, with SIGUSR1 while its step `at` goes on, so that the next one is the last."""
    step, count = loop.train_step, 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(*args, **more)

    with patch.object(loop, "train_step", counted):
        return run()


class Rewritten(Train):
    """A run that was preempted at a step whose checkpoint is due anyway, and is written again."""

    def begin(self, out: Path) -> None:
        """Preempted at step 2."""
        before = self.inputs.room / "preempted"
        if not before.exists():
            done(lambda: told(1, lambda: Train.run(self, out)), self.inputs.room, EXIT_PREEMPTED)
            shutil.copytree(out, before)
        else:
            shutil.copytree(before, out, dirs_exist_ok=True)


class RolledBack(Train):
    """A finished run, of which `latest` was made to name an older checkpoint."""

    def begin(self, out: Path) -> None:
        """At step 4, set back to step 2."""
        before, early = self.inputs.room / "ahead", "step-00000002"
        if not before.exists():
            done(lambda: told(1, lambda: Train.run(self, out)), self.inputs.room, EXIT_PREEMPTED)
            shutil.copytree(out / "run/checkpoints" / early, self.inputs.room / early)
            done(lambda: Train.run(self, out), self.inputs.room)
            shutil.move(self.inputs.room / early, out / "run/checkpoints" / early)
            (out / "run/checkpoints" / checkpoint_metadata.LATEST).write_text(early)
            shutil.copytree(out, before)
        else:
            shutil.copytree(before, out, dirs_exist_ok=True)


class Staged(Work):
    """Training's copy of the dataset on a node's scratch disk."""

    def run(self, out: Path) -> int:
        """One step from a staged dataset."""
        (out / "scratch").mkdir(exist_ok=True)
        run = self.inputs.room / "staged"
        shutil.rmtree(run, ignore_errors=True)
        config = toy_config(run, self.inputs.data, train={"steps": 1}, reading={"stage_to": str(out / "scratch")})
        path = self.inputs.room / "staged.yaml"
        path.write_text(dump_yaml(config))
        return train.main([str(path)])


class Convert(Work):
    """TrackML CSV to two shards."""

    needs = ("csv",)
    thin = 1

    def run(self, out: Path, *more: str) -> int:
        """In one process."""
        words = [str(self.inputs.csv), str(out / "data"), "--events-per-shard", "2", "--jobs", "1", *more]
        return convert.main(words)

    def progress(self, out: Path) -> int:
        """Files that are whole."""
        return len(list((out / "data").glob("*.h5")))


class Replace(Convert):
    """A conversion in the place of another dataset."""

    thin = 8

    def begin(self, out: Path) -> None:
        """One event, of other options."""
        words = [str(self.inputs.csv), str(out / "data"), "--limit", "1", "--no-truth"]
        done(lambda: convert.main(words), self.inputs.room)

    def run(self, out: Path) -> int:
        """Replace it."""
        return super().run(out, "--overwrite")

    def progress(self, out: Path) -> int:
        """Not a matter of files."""
        return 0

    def standing(self, out: Path) -> list[str]:
        """There is a whole dataset all the time, the old one or the new one; the latter may be on its way."""
        if (out / "data" / replacement.NEW / INDEX).exists():
            return []
        try:
            return [] if len(store.open_dataset(out / "data")) else ["an empty dataset"]
        except ValueError as error:
            return [f"neither the old nor the new dataset is there: {error}"]


class Skipping(Convert):
    """A conversion that leaves out a bad event."""

    thin = 8

    def begin(self, out: Path) -> None:
        """A folder with an event whose hits are cut short."""
        self.source = self.inputs.room / "bad"
        if not self.source.exists():
            make_trackml(self.source, range(100, 102), n_particles=2, n_noise=1)
            bad = self.source / "event000000101-hits.csv"
            bad.write_bytes(bad.read_bytes()[:-9])

    def run(self, out: Path) -> int:
        """The other event."""
        words = [str(self.source), str(out / "data"), "--events-per-shard", "1", "--jobs", "1", "--skip-bad"]
        return convert.main(words)


class SubEvents(Convert):
    """A dataset to a dataset of sub-events."""

    needs = ("data",)
    thin = 8

    def run(self, out: Path) -> int:
        """Of two tracks each."""
        words = [str(self.inputs.data), str(out / "data"), "--tracks", "2", "--draws", "1", "--events-per-shard", "3"]
        return convert.main([*words, "--jobs", "1"])


class Infer(Work):
    """A model's candidates, and a submission."""

    needs = ("data", "trained")
    thin = 1

    def words(self, out: Path) -> list[str]:
        """The command but for its end."""
        return ["--checkpoint", str(self.inputs.trained), "--data", str(self.inputs.data), "--out", str(out / "found")]

    def run(self, out: Path) -> int:
        """On one rank."""
        return infer.main([*self.words(out), "--submission", str(out / "submission.csv")])

    def progress(self, out: Path) -> int:
        """Events that are committed."""
        whole = (out / "found" / INDEX).exists()
        return len(store.open_dataset(self.inputs.data)) if whole else len(journals.committed(out / "found"))


class Parts(Infer):
    """Two jobs of an array, one after the other; the last one joins."""

    thin = 8

    def run(self, out: Path) -> int:
        """Both, and the next one even if one fails, as jobs do."""
        return max(infer.main([*self.words(out), "--part", f"{part}/2"]) for part in (0, 1))


class Edges(Infer):
    """A pipeline's stage, which stores edges."""

    thin = 8

    @cached_property
    def stage(self) -> Path:
        """An embedding whose neighbours are the edges."""
        run = self.inputs.room / "stage"
        backbone = {"name": "mlp", "width": 8, "layers": 1}
        values = {
            "run": str(run),
            "data": {"train": str(self.inputs.data), "features": FEATURES, "graph": {"name": "truth"}},
            "model": {"name": "embedding", "embedding": 3, "backbone": backbone},
            "loss": {"name": "metric"},
            "builder": {"name": "radius_graph", "radius": 0.4},
            "plan": {"events_per_step": 4},
            "train": {"steps": 1, "precision": "fp32"},
        }
        path = self.inputs.room / "stage.yaml"
        path.write_text(json.dumps(values))
        done(lambda: train.main([str(path)]), self.inputs.room)
        return run

    def begin(self, out: Path) -> None:
        """The stage is trained before."""
        assert self.stage

    def run(self, out: Path) -> int:
        """Its edges."""
        return infer.main(
            ["--checkpoint", str(self.stage), "--data", str(self.inputs.data), "--out", str(out / "found")]
        )


class Simulate(Work):
    """Two events of helices."""

    needs = ()

    def run(self, out: Path) -> int:
        """One process."""
        return simulate.main([str(out / "csv"), "--source", "helix", "--events", "2", "--particles", "3"])

    def progress(self, out: Path) -> int:
        """Files that are whole."""
        return len(list((out / "csv").glob("event*")))


class Evaluate(Work):
    """results.json, in the place of another one."""

    needs = ("data", "candidates")

    def begin(self, out: Path) -> None:
        """The results of other cuts."""
        words = [str(self.inputs.candidates), "--data", str(self.inputs.data), "--out", str(out / "results.json")]
        done(lambda: evaluate.main([*words, "--min-hits", "4"]), self.inputs.room)

    def run(self, out: Path) -> int:
        """Evaluate anew."""
        words = [str(self.inputs.candidates), "--data", str(self.inputs.data), "--out", str(out / "results.json")]
        return evaluate.main(words)


class Report(Work):
    """The page and the picture of an event; nothing is drawn, which takes long and makes no file."""

    needs = ("data", "candidates", "results", "trained")

    def run(self, out: Path) -> int:
        """With everything that it can show."""
        given = {"results": self.inputs.results, "run": self.inputs.trained, "data": self.inputs.data}
        given |= {"candidates": self.inputs.candidates, "out": out / "page.html", "display-png": out / "event.png"}
        with patch.object(Figure, "savefig", lambda *_, **__: None):
            return report.main([word for name, value in given.items() for word in (f"--{name}", str(value))])


class Export(Work):
    """A checkpoint to give away; once it is there, the verb refuses."""

    needs = ("data", "trained")

    def run(self, out: Path) -> int:
        """Into a new folder."""
        return export.main([str(self.inputs.trained), str(out / "given")])

    def again(self, out: Path) -> int:
        """Only if it is not there."""
        return 0 if (out / "given").exists() else self.run(out)


class Inspect(Work):
    """What `inspect --json` writes."""

    def run(self, out: Path) -> int:
        """Of a dataset."""
        return inspect.main([str(self.inputs.data), "--json", str(out / "facts.json")])


WORKS = {
    "train": Train,
    "train, tuned": Tuned,
    "train, preempted": Preempted,
    "train, a checkpoint rewritten": Rewritten,
    "train, rolled back": RolledBack,
    "train, staged data": Staged,
    "convert": Convert,
    "convert --overwrite": Replace,
    "convert --skip-bad": Skipping,
    "convert, sub-events": SubEvents,
    "infer": Infer,
    "infer --part": Parts,
    "infer, edges": Edges,
    "simulate": Simulate,
    "evaluate": Evaluate,
    "report": Report,
    "export": Export,
    "inspect --json": Inspect,
}

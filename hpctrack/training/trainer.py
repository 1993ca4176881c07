"""A training run on one rank: data, model, engine, and the position in the plan that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from hpctrack import __version__
from hpctrack.config import RunConfig, dump_yaml
from hpctrack.errors import InputError
from hpctrack.files.atomic import clear_leftovers, text_with_checksum, with_checksum, write_json, write_text
from hpctrack.files.jsonlines import METRICS, Mark, mismatch
from hpctrack.files.lock import Owner
from hpctrack.losses import Loss
from hpctrack.parallel.collectives import all_max, all_sum, barrier, run_on_main
from hpctrack.parallel.engine import Engine
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.process.versions import versions
from hpctrack.requirements import fields
from hpctrack.resources.calibration import calibrate
from hpctrack.resources.cost_model import CostModel
from hpctrack.resources.peak_memory import GIB, Memory
from hpctrack.tracking.builder import to_numpy
from hpctrack.tracking.builders import build_builder, choose, tuning_counts
from hpctrack.training import checkpoint, run_settings
from hpctrack.training.batches import Batches
from hpctrack.training.compiled import try_compiled
from hpctrack.training.ledger import NAME as LEDGER
from hpctrack.training.ledger import Ledger
from hpctrack.training.loggers import IDENTIFIERS, Loggers
from hpctrack.training.planner import BY_INDEX, Planner, Rules
from hpctrack.training.profiling import Profiler
from hpctrack.training.run_folder import CONFIG, VERSIONS
from hpctrack.training.sensors import Sensors, means_of_gpus
from hpctrack.training.step import StepResult, agree, in_lockstep, validate
from hpctrack.training.telemetry import Metrics, Progress, Waste, Window, peak_gib, synchronize, waste_lines


@dataclass
class Parts:
    """What a run consists of, as build.py makes it.

    `found`: the newest checkpoint of its folder; `alive` is told what the run has come to, so that it does not hang.
    """

    found: Path | None
    precision: Precision
    loss: Loss
    batches: Batches
    planner: Planner
    engine: Engine
    memory: Memory
    alive: Callable[[str], None]


class Trainer:
    """What `train` acts on: the parts of a run, its position in the plan, and all that a checkpoint keeps.

    `owner`: of the run's folder, on rank 0; asked before anything is written there.
    """

    def __init__(self, config: RunConfig, env: Env, parts: Parts, owner: Owner | None = None) -> None:
        self.config, self.env, self.owner = config, env, owner
        self.options, self.builder = config.train, config.builder
        self.folder = Path(config.run)
        self.found, self.precision, self.loss = parts.found, parts.precision, parts.loss
        self.alive = parts.alive
        self.planner, self.engine, self.memory = parts.planner, parts.engine, parts.memory
        self.reading = parts.batches
        valid = parts.batches.valid
        self.data, self.valid = parts.batches.train.dataset, valid.dataset if valid is not None else None
        kept = parts.batches.train.loader.draw.kept
        self.kept = None if kept is None else kept.identity  # which hits there are, None for all
        self.step, self.window = 0, Window()
        self.tuned: dict[str, bool | int | float | str | None] = {}  # options of the builder
        self.pending = False  # whether what is due after the newest step (validation, tuning) is still to be done
        self.saved: int | None = None  # the step that the newest checkpoint is of
        self.ledger: Ledger | None = None
        self.metrics: Metrics | None = None
        self.waste = Waste()
        self.parts: dict[str, float] = {}  # seconds, of the newest probed step
        self.exchanged_s = 0.0  # in exchanges between ranks of an event, up to the newest line
        self.next_cost_lines = 0
        self.progress = Progress(config.train.steps)
        self.profiler, self.sensors = Profiler(self.folder, config.train.profile, env), Sensors(env)

    # ------------------------------------------------------------------------------------- batches

    def batches(self) -> Iterator[tuple[list[Batch], list[str]]]:
        """This rank's micro-batches and their memory modes for each step from the current one to the last."""
        stream = self.reading.train.loader.stream
        of_steps = self.reading.of_steps(self.planner, self.step, self.options.steps)
        for step, batches in enumerate(of_steps, self.step):
            # randomness inside the model (dropout) follows from the step, so no generator state is kept
            torch.manual_seed(int(np.random.SeedSequence([*stream, step, self.env.rank]).generate_state(1)[0]))
            parts, modes = self.memory.arrange(batches)
            yield parts, [agree(batch, mode) for batch, mode in zip(parts, modes, strict=True)]

    def valid_batches(self, whole: bool = False) -> Iterator[Batch]:
        """This rank's share of the validation events, one a batch, the same draws every time.

        `whole`: events are not divided over ranks.
        """
        return self.reading.of_validation(self.step, whole)

    # ------------------------------------------------------------------------------------- checkpoints

    def resume(self) -> None:
        """Go on from the newest checkpoint, which rank 0 chooses, or start; refuse a run that was something else."""
        found, marks = self.found, {}
        if found:
            self.alive(f"going on from {found}")
            meta = run_on_main(lambda: checkpoint.read_meta(found), self.env)
            self.step, self.window, self.tuned = meta["step"], Window(meta["window"]), meta["tuned"]
            self.pending = meta["pending"]
            self.check_same_run(meta, found)
            marks = meta.get("journals", {})
            run_on_main(lambda: check_journals(self.folder, marks, found), self.env)
            run_on_main(lambda: checkpoint.check_state(found), self.env)
            state = checkpoint.read_state(found, mapped=True, checked=True)
            checkpoint.check_goes_on(meta, state, found)
            run_on_main(lambda: checkpoint.check_fits(self.engine, state, found, self.config.optim), self.env)
            checkpoint.load_into(self.engine, state, found)
            self.planner.cost = CostModel(meta["cost"])
            self.memory = Memory(self.config.memory, self.engine, meta["memory"])
            self.precision.load(meta["precision"])
            self.saved = self.step
            self.check_same_plan(meta, found)
        if self.step < self.options.steps:
            self.planner.prepare(self.step, self.options.steps)
        run_on_main(lambda: self.open_folder(found, marks), self.env)
        n = self.engine.n_parameters
        self.env.say(
            f"{self.folder}: {self.config.model.name} ({n:,} parameters), {len(self.data)} events, "
            f"{self.env.world} x {self.env.device.type} ({self.env.source}, {self.env.backend or 'no'} process group), "
            f"{self.options.precision}; {f'resumed at step {self.step}' if found else 'new run'}"
        )
        if self.step < self.options.steps:
            for line in self.planner.certificate(self.step):
                self.env.say(line)
            self.warm_up()

    def open_folder(self, found: Path | None, marks: dict[str, Mark]) -> None:
        """Make the run's folder ready to be written, as far as `marks` say that its files hold what was done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reading.keep_sizes()
        checkpoint.clear(self.folder / "checkpoints")
        if found:
            checkpoint.rotate(found, self.options.keep_checkpoints)
        for name in (CONFIG, VERSIONS, METRICS, LEDGER, IDENTIFIERS):
            clear_leftovers(self.folder, name, owned=True)
        write_text(self.folder / CONFIG, text_with_checksum(dump_yaml(self.config)))
        write_json(self.folder / VERSIONS, with_checksum(versions() | run_settings.package_versions(self.config)))
        settings = {key: value for key, value, _ in run_settings.entries(self.config)}
        loggers = Loggers(self.options.log_to, self.folder, settings, self.env.say)
        self.metrics = Metrics(self.folder, self.step, marks.get(METRICS), loggers)
        self.ledger = Ledger(self.folder, self.step, len(self.data), marks.get(LEDGER))

    def warm_up(self) -> None:
        """Passes before the first step, whose gradients are discarded: to compile, and to learn what passes need."""
        if self.options.compile and self.engine.can_discard:
            self.alive("compilation")
            self.env.say(try_compiled(self.engine, self.loss, self.middle_event()))
        if self.memory.auto:
            self.prepare_memory()

    def middle_event(self) -> Data:
        """The event of median size."""
        return self.reading.train.loader(int(np.argsort(self.planner.hits(0), kind="stable")[len(self.data) // 2]), 0)

    def prepare_memory(self) -> None:
        """Let the memory policy know what passes need, if no checkpoint says so, and say what it goes by."""
        if not self.memory.fitted:
            self.alive("the calibration of memory")
            for line in calibrate(self.engine, self.loss, self.memory, self.middle_event()):
                self.env.say(line)
        self.env.say(
            f"memory: at most {self.memory.cap / GIB:.3g} GiB a rank ({self.memory.source}), of which a pass may be "
            f"predicted to need {self.memory.room / GIB:.3g}; modes: {', '.join(self.memory.modes)}"
        )

    def check_same_run(self, meta: dict[str, Any], path: Path) -> None:
        """InputError naming the first key (or dataset) in which the checkpoint's run differs from this one.

        If its number of steps does, what is due after the last one is due again, and nothing is tuned before.
        """
        then = run_settings.check_same_run(meta, self.config, path)
        if meta["data"] != self.data.fingerprint:
            raise InputError(f"{path}: was trained on other events than {self.config.data.train}; give that dataset")
        if meta.get("hits") != self.kept:
            raise InputError(
                f"{path}: was trained on other hits than those that data.hits names in {self.config.data.train}: a "
                "filter has written them anew; begin another run, or let the same filter write them"
            )
        if fields.trained_field(meta) not in (None, (now := self.data.field_t)):
            raise InputError(f"{path}: was trained in {meta['field_t']:g} T, but {self.data.folder} is of {now:g} T")
        if then.train.steps != self.options.steps:
            self.tuned, self.pending = {}, self.pending or self.step == self.options.steps

    def check_same_plan(self, meta: dict[str, Any], path: Path) -> None:
        """InputError if the epoch that goes on would consume its events in other steps than it began."""
        then = {"sizes": BY_INDEX} | meta["plan"]
        self.planner.compose_by(then["sizes"])
        now = self.planner.identity(self.step)
        if then != now:
            raise InputError(
                f"{path}: was planned as {then}, now {now}; hpctrack {meta['hpctrack']} wrote it and planned "
                f"otherwise: finish the run with that version"
            )

    def save(self, pending: bool = False) -> None:
        """Write a checkpoint, with what all ranks have learned of costs; `pending`: before what its step makes due.

        Of a step that is saved already the weights are the same, so only what is said of them is written again.
        """
        self.alive(f"the checkpoint of step {self.step}")
        begin, self.pending = synchronize(self.env.device), pending
        self.planner.collect()
        self.memory.collect()
        state = self.engine.state_dict() if self.saved != self.step else None
        run_on_main(lambda: self.write_checkpoint(state), self.env)
        self.saved = self.step
        self.waste.add({"checkpoint_s": synchronize(self.env.device) - begin})

    def write_checkpoint(self, state: dict[str, Any] | None) -> None:
        """Model, optimizer (`state`; None: they stand), and everything by which the run goes on where it stopped."""
        if self.owner:
            self.owner.check()
        meta = {
            "hpctrack": __version__,
            "schema": run_settings.SCHEMA,
            "step": self.step,
            "plan": self.planner.identity(self.step),
            "cost": self.planner.cost.state(),
            "memory": self.memory.state(),
            "precision": self.precision.state(),
            "config": self.config.model_dump(mode="json"),
            "neutral": run_settings.neutral(self.config),
            "data": self.data.fingerprint,
            "hits": self.kept,
            "field_t": self.data.field_t,
            "packages": run_settings.packages(self.config),
            "tuned": self.tuned,
            "window": self.window.sums,
            "pending": self.pending,
            "journals": self.journals(),
        }
        keep = self.options.keep_checkpoints
        if state is not None:
            self.found = checkpoint.save(self.folder / "checkpoints", self.step, state, meta, keep)
        elif self.found is not None:
            checkpoint.amend(self.found, meta)

    def journals(self) -> dict[str, Mark]:
        """How far ledger and metrics are, on disk: what a resume believes of them."""
        files = {LEDGER: self.ledger, METRICS: self.metrics}
        return {name: file.lines.mark() for name, file in files.items() if file}

    # ------------------------------------------------------------------------------------- telemetry

    def probe(self) -> bool:
        """Whether the current step is timed in parts. On one rank that costs nothing, on several the overlap."""
        return self.env.world == 1 or (self.step + 1) % self.options.probe_every == 0

    def measure(self) -> bool:
        """Whether the current step measures the peak of a pass; another one than is timed, if there are two."""
        return self.memory.auto and self.step % self.options.probe_every == 0

    def learn(self) -> None:
        """At the end of an epoch: what its steps have cost, said at most as often as validations are."""
        lines = [*self.planner.learn(), *(self.memory.learn() if self.memory.auto else [])]
        if self.step >= self.next_cost_lines and lines:
            self.next_cost_lines = self.step + self.options.valid_every
            for line in lines:
                self.env.say(line)

    def observe(self, result: StepResult, lr: float, step_s: float, data_s: float) -> None:
        """Take a finished step into the ledger, the means of the current log window and the waste report."""
        if self.owner:
            self.owner.check(every_s=1.0)
        if self.ledger:
            done = self.step - 1  # steps are counted from 0 in plans
            self.ledger.record(self.step, self.planner.position(done)[0], self.planner.step_events(done))
        self.waste.add({"step_s": step_s, "data_s": data_s})
        if result.parts:
            self.waste.add_probe(result.parts)
            self.parts = result.parts
        terms = {f"loss/{name}": value for name, value in result.terms.items()}
        planned = self.planner.step_hits(self.step - 1)
        sizes = {"events": result.events, "hits": result.hits, "hits_planned": planned}
        values = {"loss": result.loss, **terms, "lr": lr, "grad_norm": result.grad_norm, **sizes}
        if self.precision.scaled:
            values |= {"skipped": float(result.skipped), "loss_scale": self.precision.loss_scale}
        for retry in result.retries:
            self.env.say(f"step {self.step}: {retry.line()}")
            if self.metrics:
                self.metrics.write("memory", self.step, retry.values())
        if result.skipped:
            self.env.say(
                f"step {self.step}: the gradient overflowed fp16, no update (number {self.precision.skipped_steps} of "
                f"the run); loss scale now {self.precision.loss_scale:.0f}"
            )
        self.window.add(values, {"step_s": step_s, "data_s": data_s})

    def log(self) -> None:
        """Write the window's means and start a new one."""
        means = self.window.means()
        slowest_step, slowest_data, memory, *newest = all_max(
            [means["step_s"], means["data_s"], peak_gib(self.env.device), *self.memory.newest], self.env
        )
        means |= {"step_s": slowest_step, "data_s": slowest_data, "peak_gib": memory}
        if self.memory.auto:
            means |= {"pass_predicted_gib": newest[0] / GIB, "pass_measured_gib": newest[1] / GIB}
        means["hits_per_s"] = means["hits"] / slowest_step
        if self.env.device.type == "cuda":
            events = means["events"] * self.window.timing["steps"]
            means |= means_of_gpus(all_sum(list(self.sensors.read()), self.env), events)
        if self.parts:  # of the newest probed step, mean over ranks
            parts = all_sum(list(self.parts.values()), self.env)
            means |= {name: value / self.env.world for name, value in zip(self.parts, parts, strict=True)}
        if self.reading.groups:  # of all steps
            spent = self.reading.exchange_s
            since, self.exchanged_s = spent - self.exchanged_s, spent
            means["exchange_s"] = all_sum([since], self.env)[0] / self.env.world / self.window.timing["steps"]
        values = {"epoch": self.planner.position(self.step - 1)[0], **means}
        if self.metrics:
            self.metrics.write("train", self.step, values)
        self.env.say(self.progress.line(self.step, values))
        self.window = Window()

    def validate(self) -> None:
        """Loss on the validation events."""
        if not self.valid:
            return
        result = validate(self.engine, self.loss, self.valid_batches())
        terms = {f"loss/{name}": value for name, value in result.terms.items()}
        values = {
            "epoch": self.planner.position(self.step - 1)[0],
            "loss": result.loss,
            **terms,
            "events": result.events,
        }
        values |= {f"metric/{name}": value for name, value in result.metrics.items()}
        if self.metrics:
            self.metrics.write("valid", self.step, values)
        more = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in result.metrics.items())
        self.env.say(f"step {self.step}  validation loss {result.loss:.4f} on {result.events} events{more}")

    def tune(self) -> None:
        """Choose the builder's open options on the validation events."""
        config = self.builder
        if not build_builder(config).needs_tuning:
            return
        events = (
            (to_numpy(self.engine.predict(b), b), *self.particles(b))
            for b in in_lockstep(self.engine, self.valid_batches(whole=True))
        )
        counts = tuning_counts(config, events)
        summed = np.array(all_sum(counts.ravel().tolist(), self.env)).reshape(counts.shape)
        self.tuned = choose(config, summed)
        self.env.say(f"tuned on validation events: {', '.join(f'builder.{k}={v}' for k, v in self.tuned.items())}")

    def particles(self, event: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Each hit's particle [N], or -1, in a validation event, and which particles [P] are targets."""
        assert self.valid is not None
        row = int(np.searchsorted(self.valid.event_ids, int(event.event_id)))
        column = "truth.particle_row"
        particle = self.valid.read(row, [column]).column(column)[event.hit_row.cpu().numpy()]
        target = np.zeros(particle.max(initial=-1) + 1, dtype=bool)
        target[particle[event.track.cpu().numpy() >= 0]] = True
        return particle, target

    def stop(self, why: str) -> None:
        """End before the last step, with a checkpoint from which the same command goes on."""
        self.save(pending=True)
        self.end()
        self.env.say(f"{why}: step {self.step} is saved, the same command goes on")

    def close(self, peers: Rules | None = None) -> None:
        """End the run after its last step; `peers`: rules that its balance over ranks is compared with."""
        report = self.waste.report(self.env)
        if report:
            counter = self.planner.counterfactual(self.step - 1, peers) if peers else {}
            if self.metrics:
                self.metrics.write("waste", self.step, report | {f"balance/{k}": v for k, v in counter.items()})
            self.save()  # again, for the sake of this line
            for line in [*self.planner.cost.lines(), *waste_lines(report, counter)]:
                self.env.say(line)
        self.end()
        self.env.say(f"done: {self.step} steps, {self.folder / 'checkpoints'}")

    def end(self) -> None:
        """Close the files on rank 0, which may still be writing the checkpoint; the other ranks wait for it."""
        self.profiler.close()
        if self.metrics and self.ledger:
            self.metrics.close()
            self.ledger.close()
        barrier(self.env)


def check_journals(run: Path, marks: dict[str, Mark], path: Path) -> None:
    """InputError if ledger or metrics do not begin with what they held when the checkpoint at `path` was written."""
    for name, mark in marks.items():
        if wrong := mismatch(run / name, mark):
            raise InputError(
                f"{run / name}: {wrong}; {path.name} goes on from it: restore it, or begin another run from these "
                f"weights with train.start_from={path}"
            )

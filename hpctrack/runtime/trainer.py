"""A training run on one rank: data, model, engine, and the position in the plan that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch_geometric.data import Batch

from hpctrack import __version__
from hpctrack.config import AugmentConfig, RunConfig, dump_yaml
from hpctrack.data.files import write_text
from hpctrack.data.loader import EventLoader, expected_hits, iterate, open_events
from hpctrack.data.plan import EpochPlan, plan_epoch, split_by_cost
from hpctrack.errors import InputError
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.parallel.collectives import all_max, all_sum, barrier, broadcast
from hpctrack.parallel.env import Env
from hpctrack.parallel.strategy import PRECISIONS, STRATEGIES
from hpctrack.runtime import checkpoint
from hpctrack.runtime.optim import build_optimizer
from hpctrack.runtime.step import StepResult, validate
from hpctrack.runtime.telemetry import Metrics, Progress, Window, peak_gib
from hpctrack.tracking.builders import build_builder, choose, tuning_counts

TRAIN, VALID = 0, 1  # random streams of the two datasets
MAY_CHANGE = {  # keys that a resumed run may set otherwise: they do not change what it computes
    "run",
    "data.train",  # the folder may have moved; its content is checked
    "data.valid",
    "data.workers",
    "data.prefetch_factor",
    "data.verify",
    "data.stage_to",
    "data.in_memory",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.valid_every",
    "train.threads",
    "parallel.device",
    "parallel.timeout_s",
}


class Trainer:
    """What `train` acts on. Raises InputError for data or options that do not fit each other."""

    def __init__(self, config: RunConfig, env: Env) -> None:
        self.config, self.env = config, env
        self.folder = Path(config.run)
        self.dtype = PRECISIONS[config.train.precision]
        self.data = open_events(config.data, config.data.train, env.local_rank)
        valid = config.data.valid
        self.valid = open_events(config.data, valid, env.local_rank) if valid else None
        if not len(self.data):
            raise InputError(f"key 'data.train': {config.data.train} has no event; expected at least one")
        self.hits = expected_hits(self.data, config.data.selection)
        self.loss = build_loss(config.loss)
        if build_builder(config.builder).needs_tuning and not (self.valid and len(self.valid)):
            raise InputError("section 'builder' has an option to tune: give data.valid, or a value for it")
        torch.manual_seed(config.seed)  # the same weights on every rank
        model = build_model(config.model, len(config.data.features), config.train.recompute)
        model = model.to(env.device, self.dtype)
        optimizer = build_optimizer(model, config.optim)
        self.engine = STRATEGIES[config.parallel.strategy](model, optimizer, env, config.train.precision)
        self.step, self.window, self.tuned = 0, Window(), {}
        self.metrics: Metrics | None = None
        self.progress = Progress(config.train.steps)
        self.plan = lru_cache(maxsize=4)(self._plan)  # this epoch's, and the next one's when readers are ahead

    # ------------------------------------------------------------------------------------- plan and batches

    def _plan(self, epoch: int) -> EpochPlan:
        plan = self.config.plan
        cap = plan.hits_per_micro_batch
        return plan_epoch(self.hits, self.env.world, self.config.seed, epoch, plan.events_per_step, self.hits, cap)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within the epoch) of an optimizer step."""
        return divmod(step, -(-len(self.data) // self.config.plan.events_per_step))

    def micro_batches(self, step: int) -> list[tuple[int, np.ndarray]]:
        """This rank's micro-batches of a step as (epoch, rows)."""
        epoch, within = self.position(step)
        return [(epoch, rows) for rows in self.plan(epoch).micro_batches(within, self.env.rank)]

    def batches(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches, loaded, for each step from the current one to the last."""
        data, steps = self.config.data, range(self.step, self.config.train.steps)
        stream = (self.config.seed, TRAIN)
        load = EventLoader(self.data, data.features, data.selection, data.augment, stream, self.dtype)
        ahead = (specification for step in steps for specification in self.micro_batches(step))
        loaded = iterate(load, ahead, data.workers, self.env.device.type == "cuda", data.prefetch_factor)
        for step in steps:
            # randomness inside the model (dropout) follows from the step, so a checkpoint needs no generator state
            torch.manual_seed(int(np.random.SeedSequence([*stream, step, self.env.rank]).generate_state(1)[0]))
            yield [next(loaded).to(self.env.device, non_blocking=True) for _ in self.micro_batches(step)]

    def valid_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation events, one a batch, the same draws every time."""
        data = self.config.data
        assert self.valid is not None
        stream = (self.config.seed, VALID)
        load = EventLoader(self.valid, data.features, data.selection, AugmentConfig(), stream, self.dtype)
        rank = split_by_cost(expected_hits(self.valid, data.selection), self.env.world)
        for row in np.flatnonzero(rank == self.env.rank):
            yield Batch.from_data_list([load(int(row), 0)]).to(self.env.device)

    # ------------------------------------------------------------------------------------- checkpoints

    def resume(self) -> None:
        """Go on from the newest checkpoint, which rank 0 chooses, or start; refuse a run that was something else."""
        found = broadcast(checkpoint.latest(self.folder / "checkpoints") if self.env.is_main else None, self.env)
        if found:
            meta = checkpoint.read_meta(found)
            self.check_same_run(meta, found)
            state = checkpoint.read_state(found, self.env.device)
            checkpoint.load_into(self.engine, state, found)
            self.step, self.window, self.tuned = meta["step"], Window(meta["window"]), meta["tuned"]
        if self.env.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", dump_yaml(self.config))
            self.metrics = Metrics(self.folder, self.step)
        n = sum(p.numel() for p in self.engine.module.parameters())
        self.say(
            f"{self.folder}: {self.config.model.name} ({n:,} parameters), {len(self.data)} events, "
            f"{self.env.world} x {self.env.device.type} ({self.env.source}, {self.env.backend or 'no'} process group), "
            f"{self.config.train.precision}; {f'resumed at step {self.step}' if found else 'new run'}"
        )

    def check_same_run(self, meta: dict[str, Any], path: Path) -> None:
        """InputError naming the first key (or dataset) in which the checkpoint's run differs from this one."""
        then, now = flatten(meta["config"]), flatten(self.config)
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key) and key not in MAY_CHANGE:
                raise InputError(
                    f"{path}: was trained with {key}={then.get(key)!r}, now {now.get(key)!r}; "
                    f"use that value, or another folder as 'run'"
                )
        if meta["data"] != self.data.fingerprint:
            raise InputError(f"{path}: was trained on other events than {self.config.data.train}; give that dataset")

    def save(self) -> None:
        """Rank 0 writes a checkpoint; the others go on and meet it in the next step."""
        if not self.env.is_main:
            return
        meta = {
            "hpctrack": __version__,
            "step": self.step,
            "epoch": self.position(self.step)[0],
            "plan": self.plan(self.position(self.step)[0]).hash,
            "config": self.config.model_dump(mode="json"),
            "data": self.data.fingerprint,
            "tuned": self.tuned,
            "window": self.window.sums,
        }
        keep = self.config.train.keep_checkpoints
        checkpoint.save(self.folder / "checkpoints", self.step, self.engine.state_dict(), meta, keep)

    # ------------------------------------------------------------------------------------- telemetry

    def observe(self, result: StepResult, lr: float, step_s: float, data_s: float) -> None:
        """Take a finished step into the means of the current log window."""
        terms = {f"loss/{name}": value for name, value in result.terms.items()}
        sizes = {"events": result.events, "hits": result.hits}
        values = {"loss": result.loss, **terms, "lr": lr, "grad_norm": result.grad_norm, **sizes}
        self.window.add(values, {"step_s": step_s, "data_s": data_s})

    def log(self) -> None:
        """Write the window's means and start a new one."""
        means = self.window.means()
        slowest_step, slowest_data, memory = all_max([means["step_s"], means["data_s"], self.peak()], self.env)
        means |= {"step_s": slowest_step, "data_s": slowest_data, "peak_gib": memory}
        means["hits_per_s"] = means["hits"] / slowest_step
        values = {"epoch": self.position(self.step - 1)[0], **means}
        if self.metrics:
            self.metrics.write("train", self.step, values)
        self.say(self.progress.line(self.step, values))
        self.window = Window()

    def peak(self) -> float:
        """Largest memory of this rank so far, GiB."""
        return peak_gib(self.env.device)

    def validate(self) -> None:
        """Loss on the validation events."""
        if not self.valid:
            return
        result = validate(self.engine, self.loss, self.valid_batches())
        terms = {f"loss/{name}": value for name, value in result.terms.items()}
        values = {"epoch": self.position(self.step - 1)[0], "loss": result.loss, **terms, "events": result.events}
        if self.metrics:
            self.metrics.write("valid", self.step, values)
        self.say(f"step {self.step}  validation loss {result.loss:.4f} on {result.events} events")

    def tune(self) -> None:
        """Choose the builder's open options on the validation events."""
        config = self.config.builder
        if not build_builder(config).needs_tuning:
            return
        outputs = (
            ({k: v.float().cpu().numpy() for k, v in self.engine.predict(b).items()}, b.track.cpu().numpy())
            for b in self.valid_batches()
        )
        counts = tuning_counts(config, outputs)
        counts = np.array(all_sum(counts.ravel(), self.env)).reshape(counts.shape)
        self.tuned = choose(config, counts)
        self.say(f"tuned on validation events: {', '.join(f'builder.{k}={v}' for k, v in self.tuned.items())}")

    def close(self) -> None:
        """End the run on all ranks together."""
        if self.metrics:
            self.metrics.close()
        barrier(self.env)
        self.say(f"done: {self.step} steps, {self.folder / 'checkpoints'}")

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.env.is_main:
            print(text, flush=True)


def flatten(config: BaseModel | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping with dotted keys."""
    values = config if isinstance(config, dict) else config.model_dump(mode="json")
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out

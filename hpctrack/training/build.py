"""The assembly of a training run, in one place: what is made of which section of the configuration, in which order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hpctrack.config import AugmentConfig, CurriculumStage, RunConfig
from hpctrack.errors import InputError
from hpctrack.events.kept_hits import stored_hits
from hpctrack.events.loader import EventLoader, open_events
from hpctrack.files.lock import Owner
from hpctrack.graphs import build_graph, graph_columns
from hpctrack.losses import Loss, build_loss
from hpctrack.models import Model, build_model
from hpctrack.parallel.collectives import run_on_main
from hpctrack.parallel.env import Env
from hpctrack.parallel.groups import make_groups
from hpctrack.parallel.precision import Precision, emulated
from hpctrack.parallel.strategies import STRATEGIES
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.planning.plan import GROUP_SIZES
from hpctrack.requirements import fields
from hpctrack.resources.peak_memory import Memory
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builders import build_builder
from hpctrack.training import checkpoint, data_needs, run_settings
from hpctrack.training.batches import Batches, EventSet
from hpctrack.training.compiled import compile_model
from hpctrack.training.loggers import check_installed
from hpctrack.training.optimizers import build_optimizer
from hpctrack.training.planner import Planner
from hpctrack.training.size_table import SizeTable
from hpctrack.training.trainer import Parts, Trainer

TRAIN, VALID = 0, 1  # random streams of the two datasets


def build(config: RunConfig, env: Env, watchdog: Watchdog | None = None, owner: Owner | None = None) -> Trainer:
    """A run before its first step or, if its folder has a checkpoint, before it is resumed; all ranks come together.

    `owner`: of the run's folder, on rank 0. InputError for data or options that do not fit each other.
    """
    run_on_main(lambda: check_installed(config.train.log_to), env)
    found = run_on_main(lambda: newest_checkpoint(Path(config.run)), env)
    precision = Precision(config.train.precision, env.device, config.train.tf32)
    say_emulated(env, config.train.precision)
    loss = build_loss(config.loss)
    alive = watchdog.feed if watchdog else _nobody_asks
    dtype, labels = precision.weights_dtype, loss.edge_labels
    train, valid = build_events(config, env, alive, dtype, loss.of_tracks, edge_labels=labels)
    if build_builder(config.builder).needs_tuning and not (valid and len(valid.dataset)):
        raise InputError("section 'builder' has an option to tune: give data.valid, or a value for it")

    torch.manual_seed(config.seed)  # the same weights on every rank
    model = build_model(config.model, config.data.features).to(env.device, precision.weights_dtype)
    if config.train.start_from and not found:
        source = checkpoint.find(Path(config.train.start_from))
        then, data = fields.trained_field(checkpoint.read_meta(source)), train.dataset
        say_field(env, lambda: fields.check_field(data, str(config.train.start_from), then, parameters=False))
        anew = checkpoint.begin_from(model, source, config.data.features)
        env.say(f"weights of {source}{f', {len(anew)} tensors more begin anew: {anew[0]} …' if anew else ''}")
    if config.train.compile:
        compile_model(model, config.memory.policy == "auto", env.device.type)

    sizes = check_divisible(config, env, model, loss)
    planner = Planner(
        config.plan,
        train.sizes,
        model,
        env,
        seed=config.seed,
        selection=config.data.selection,
        share=config.data.augment.share,
        edges=train.graph.n_edges if train.graph else None,
        ranks_per_event=config.parallel.ranks_per_event,
    )
    optimizer = partial(build_optimizer, config=config.optim)
    strategy = STRATEGIES[config.parallel.strategy]
    engine = strategy(model, optimizer, env, precision, config.parallel, clip_norm=config.optim.clip_norm)
    memory = Memory(config.memory, engine)
    groups = make_groups(env, sizes, config.parallel.timeout_s, config.parallel.exchange)
    together = config.parallel.ranks_per_event
    batches = Batches(
        train, valid, env, config.data, alive, groups=groups, ranks_per_event=1 if together == "auto" else together
    )
    parts = Parts(found, precision, loss, batches, planner, engine=engine, memory=memory, alive=alive)
    return Trainer(config, env, parts, owner)


def check_divisible(config: RunConfig, env: Env, model: Model, loss: Loss) -> list[int]:
    """The sizes of the groups of ranks that hold events together; InputError if the run cannot divide events."""
    wanted = config.parallel.ranks_per_event
    key = f"key 'parallel.ranks_per_event': {wanted}"
    if wanted == 1:
        return []
    if config.train.compile:
        raise InputError(f"{key} does not go with train.compile=true; set one of them to its default")
    backbone = config.model.options.get("backbone", {}).get("name")
    for what, named, ok in (
        ("model", f"{config.model.name}{f' with backbone {backbone}' if backbone else ''}", model.divisible),
        ("loss", config.loss.name, loss.divisible),
    ):
        if not ok:
            raise InputError(f"{key}, but the {what} '{named}' (as set) takes whole events alone; use 1")
    if wanted != "auto" and env.world % wanted:
        raise InputError(f"{key} does not divide the {env.world} ranks; start a multiple of {wanted}, or use 1 or auto")
    return [size for size in GROUP_SIZES if env.world % size == 0] if wanted == "auto" else [wanted]


def say_field(env: Env, check: Callable[[], str | None]) -> None:
    """Say what rank 0 finds of magnetic fields that differ."""
    if line := run_on_main(check, env):
        env.say(line)


def say_emulated(env: Env, name: str) -> None:
    """Say it if the first rank's processor only emulates a number format."""
    if emulated(name, env.device):
        env.say(
            f"train.precision={name}: this processor has no arithmetic of it, a matrix product takes tens of times as "
            "long as in fp32; train.precision=fp32 is faster here"
        )


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint from which a run goes on, None for a new run; InputError if it needs packages that are missing."""
    found = checkpoint.latest(run / "checkpoints")
    if found:
        run_settings.check_packages(checkpoint.read_meta(found), found)
    return found


def build_events(
    config: RunConfig,
    env: Env,
    alive: Callable[[str], None],
    dtype: torch.dtype,
    of_tracks: tuple[str, ...],
    *,
    edge_labels: bool = True,
) -> tuple[EventSet, EventSet | None]:
    """The events of training and of validation; InputError for what is damaged, lacks something or teaches nothing.

    One rank looks whether their files are there, and tells the others. `dtype`: of features; `of_tracks`: what
    events say of their tracks, `edge_labels`: whether of edges which are true (events/loader.py); `alive` is told what
    takes its time.
    """
    data = config.data

    def open_whole(folder: str) -> Dataset:
        found = Dataset(folder)
        data_needs.check_run(found, config)
        return found

    def look(folder: str) -> Dataset:
        source = run_on_main(lambda: open_whole(folder), env)
        return open_events(data, source, env.local_rank, of_tracks, graph_columns(data.graph))

    def see(
        dataset: Dataset, folder: str, stream: int, augment: AugmentConfig, curriculum: list[CurriculumStage]
    ) -> EventSet:
        graph = build_graph(data.graph, folder, dataset)
        loader = EventLoader(
            dataset,
            data.features,
            data.selection,
            augment,
            (config.seed, stream),
            dtype=dtype,
            curriculum=curriculum,
            kept=stored_hits(data.hits, folder, dataset),
            of_tracks=of_tracks,
            emphasis=data.emphasis,
            graph=graph,
            labels=edge_labels,
        )
        folders = [Path(folder), Path(config.run)]
        return EventSet(
            dataset, graph, loader, SizeTable(dataset, loader.draw, env, folders, alive, key="data.selection")
        )

    train, valid = look(data.train), look(data.valid) if data.valid else None
    if not len(train):
        raise InputError(f"key 'data.train': {data.train} has no event; expected at least one")
    if valid is not None:
        name = f"a model of {data.train}"
        say_field(env, lambda: fields.check_field(valid, name, train.field_t, "parameters" in of_tracks))
    seen = see(train, data.train, TRAIN, data.augment, data.curriculum)
    return seen, see(valid, data.valid, VALID, AugmentConfig(), []) if valid is not None and data.valid else None


def _nobody_asks(at: str) -> None:
    """What is told the progress of a run without a watchdog."""

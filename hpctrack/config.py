"""The typed configuration of a run: a YAML file, then `key.sub=value` overrides, both strict.

Unknown keys and wrong types are errors. Units stand in the names (`pt_min_gev`). `model`, `loss` and `builder` name an
entry of their table; the other keys of these sections are its own options, checked as strictly when it is built.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hpctrack.config_complaints import complaint
from hpctrack.errors import InputError
from hpctrack.named_recipes import find
from hpctrack.process.arguments import REAL_MAX, SECONDS_MAX, SEED_END, THREADS_MAX, WHOLE_MAX, Unit
from hpctrack.recipes import apply_overrides, named, origin, parse_yaml, read_recipe


def free_field(*args: Any, **kwargs: Any) -> Any:
    """A Field that does not change what a run computes: a resumed run may set it anew (training/run_settings.py)."""
    return Field(*args, json_schema_extra={"free": True}, **kwargs)


def _in_64_bits(value: Any) -> Any:
    if isinstance(value, int) and not 0 <= value < SEED_END:
        raise ValueError("must be a whole number from 0 to 2^64 - 1")
    return value


Events = Annotated[int, Unit("events")]
Hits = Annotated[int, Unit("hits")]
Steps = Annotated[int, Unit("steps")]
Tracks = Annotated[int, Unit("tracks")]
Seed = Annotated[int, BeforeValidator(_in_64_bits), Field(ge=0, lt=SEED_END)]


def _bends_tracks(value: float) -> float:
    if not 0.1 <= abs(value) <= 10:
        raise ValueError("must be between 0.1 and 10 T, or -10 and -0.1")
    return value


FieldT = Annotated[float, AfterValidator(_bends_tracks)]  # a magnetic field along z, Tesla


class Section(BaseModel):
    """A section of the configuration: strict types, no unknown keys, immutable, numbers finite and of a size.

    A key that says nothing else changes the result of a run; those that do not are made by `free_field`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_of_a_size(cls, value: Any, info: ValidationInfo) -> Any:
        own_bound = any(isinstance(rule, (Le, Lt)) for rule in cls.model_fields[str(info.field_name)].metadata)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            most = REAL_MAX if isinstance(number, float) else WHOLE_MAX
            if isinstance(number, (int, float)) and not own_bound and most < abs(number) < math.inf:
                raise ValueError(f"must be at most {most:,.0f} in size")
        return value


class Named(Section):
    """A section that names a table entry; further keys are the entry's options."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The entry's own keys."""
        return dict(self.model_extra or {})


class SelectionConfig(Section):
    """Which particles are targets and which hits the model sees."""

    pt_min_gev: float = Field(0.0, ge=0, description="targets have at least this transverse momentum")
    min_hits: Hits = Field(3, ge=1, description="targets have at least this many hits")
    eta_max: float | None = Field(None, gt=0, description="targets have at most this |pseudorapidity|; null: any")
    noise: bool = Field(True, description="keep noise hits")
    noise_share: float | None = Field(
        None, gt=0, lt=1, description="noise hits are thinned to this share of all hits; null: all stay"
    )
    other_hits: bool = Field(True, description="keep hits of particles that are no targets, as hits of no track")
    tracks: Tracks | None = Field(None, ge=1, description="number of target tracks drawn per event; null: all")
    volumes: list[int] | None = Field(None, min_length=1, description="hits of these volumes alone; null: all")

    def recorded(self) -> dict[str, Any]:
        """Plain values for what has a digest: without `eta_max` where none is, so digests are those of before it."""
        return self.model_dump(mode="json", exclude={"eta_max"} if self.eta_max is None else None)


class CurriculumStage(Section):
    """Fewer tracks at first: a stage of the curriculum in the number of tracks."""

    until_epoch: Annotated[int, Unit("epochs")] = Field(ge=1, description="the stage's end, counted from epoch 0")
    tracks: Tracks = Field(ge=1, description="number of target tracks drawn per event until then")


class AugmentConfig(Section):
    """What training does to events at random: symmetries of the detector, and parts of an event."""

    rotate: bool = Field(False, description="random rotation about the beam line")
    mirror: bool = Field(False, description="random reflections y -> -y and z -> -z")
    sector_rad: float | None = Field(
        None, gt=0, lt=2 * math.pi, description="only hits in a random sector of phi of this size; null: whole events"
    )
    outside: float = Field(
        0.0, ge=0, le=1, description="share of the hits outside the sector that stay, as hits of no track"
    )

    @property
    def share(self) -> float:
        """Expected share of an event's hits."""
        if self.sector_rad is None:
            return 1.0
        inside = self.sector_rad / (2 * math.pi)
        return inside + (1 - inside) * self.outside


class EmphasisConfig(Section):
    """Targets that count more in a loss's means over tracks: as much as 1 and what each kind that they are of adds."""

    short: float = Field(0.0, ge=0, description="added for targets with few hits")
    short_max_hits: Hits = Field(6, ge=1, description="most hits of a short target")
    displaced: float = Field(0.0, ge=0, description="added for targets created far from the beam")
    displaced_min_mm: float = Field(30.0, ge=0, description="least radius of creation of a displaced target")
    hard: float = Field(0.0, ge=0, description="added for targets of large transverse momentum")
    hard_min_gev: float = Field(5.0, ge=0, description="least transverse momentum of a hard target")

    @property
    def wanted(self) -> bool:
        """Whether any target counts more than another."""
        return max(self.short, self.displaced, self.hard) > 0


class KeptConfig(Section):
    """Only the hits that a hit filter has kept: others do not exist. Without this section (null) there are all."""

    stored: str = Field(description="name of a folder in the dataset's folder `hits`, or a path")
    score_min: float = Field(0.0, ge=0, le=1, description="leave out hits with a lower score")


class DataConfig(Section):
    """Datasets (folders made by `hpctrack convert`) and what is read from them."""

    train: str = free_field(
        description="the dataset that training reads; a resumed run may find it elsewhere, its content is compared"
    )
    valid: str | None = free_field(None, description="the dataset that validation and tuning read; null: none")
    hits: KeptConfig | None = None
    selection: SelectionConfig = SelectionConfig()
    curriculum: list[CurriculumStage] = Field([], description="training on fewer tracks first; then as selection says")
    emphasis: EmphasisConfig = EmphasisConfig()
    features: list[str] = Field(["x", "y", "z"], min_length=1, description="what the model sees of each hit, by name")
    graph: Named | None = Field(None, description="edges between an event's hits; null: none")
    augment: AugmentConfig = AugmentConfig()
    workers: Annotated[int, Unit("processes")] = free_field(
        0, ge=0, le=THREADS_MAX, description="reader processes per rank; 0 reads in the training process"
    )
    prefetch_factor: Annotated[int, Unit("micro-batches")] = free_field(
        2, ge=1, description="micro-batches each reader process is ahead"
    )
    verify: bool = free_field(True, description="compare what is read with its checksums")
    stage_to: str | None = free_field(
        None, description="folder on each node's own disk (or /dev/shm) to read copies from"
    )
    in_memory: bool = free_field(False, description="hold the columns that the features need in memory, on every rank")

    @field_validator("curriculum")
    @classmethod
    def _stages_follow_each_other(cls, stages: list[CurriculumStage]) -> list[CurriculumStage]:
        ends = [stage.until_epoch for stage in stages]
        if any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"until_epoch must grow from stage to stage, got {ends}")
        return stages


class PlanConfig(Section):
    """How events become optimizer steps (so many events, or so much cost, a step) and are split over ranks."""

    events_per_step: Events | None = Field(
        8, ge=1, description="global batch: events per optimizer step, over all ranks"
    )
    cost_per_step: Annotated[float, Unit("mean events")] | None = Field(
        None, gt=0, description="in place of events_per_step: predicted cost of a step"
    )
    window: Steps | Literal["epoch"] = Field(
        1, description="steps within which like-sized events are grouped; 1: plain random, epoch: all sorted"
    )
    cost: Literal["sizes", "learned"] = free_field(
        "sizes", description="what a split balances: the model's own estimate from sizes, or measured seconds"
    )
    locality: bool = free_field(
        False, description="ranks prefer shards they have read before, where that costs nothing"
    )
    hits_per_micro_batch: Hits | None = free_field(
        None, ge=1, description="a forward pass takes no more, but at least one event; null: no limit"
    )
    over_cap: Literal["error", "alone"] = free_field(
        "alone", description="a single event with more hits: refuse it, or let it be a micro-batch of its own"
    )

    @model_validator(mode="after")
    def _one_length_of_a_step(self) -> PlanConfig:
        if (self.events_per_step is None) == (self.cost_per_step is None):
            raise ValueError("give either events_per_step or cost_per_step, and null for the other")
        if isinstance(self.window, int) and self.window < 1:
            raise ValueError(f"window must be 1 or more, or epoch, not {self.window}")
        return self


class MemoryConfig(Section):
    """How much memory a rank may use, and which memory modes it uses to that end (models/memory_modes.py)."""

    cap_gib: float | None = free_field(
        None,
        gt=0,
        description="memory a rank may use for weights, gradients, optimizer and passes; null with auto: what there is",
    )
    policy: Literal["auto", "plain", "recompute", "nested", "chunks", "offload"] = free_field(
        "plain", description="mode of all passes; auto (the default with a cap): for each the first that should fit"
    )

    @model_validator(mode="before")
    @classmethod
    def _auto_with_a_cap(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("cap_gib") is not None:
            values = {"policy": "auto"} | values
        return values

    @model_validator(mode="after")
    def _cap_is_for_auto(self) -> MemoryConfig:
        if self.cap_gib is not None and self.policy != "auto":
            raise ValueError(f"cap_gib is kept by policy auto, not by {self.policy}; leave one of them out")
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """The optimizer, linear warm-up and cosine decay, and how the learning rate follows the global batch."""

    name: Literal["adamw", "lamb", "lars", "sgd"] = Field("adamw", description="lamb and lars are for large batches")
    lr: float = Field(  # a rate that is too large ends in a loss that is not finite, which is said with the event
        1e-3,
        gt=0,
        lt=math.inf,
        description="learning rate at its peak; for a global batch of base_batch if scale_lr is set",
    )
    scale_lr: Literal["none", "linear", "sqrt"] = Field(
        "none", description="multiply lr by (events a step / base_batch), or by its square root"
    )
    base_batch: Annotated[float, Unit("events")] = Field(
        8.0, gt=0, description="events per optimizer step that lr was chosen for"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled from the gradient in adamw")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="adamw, lamb: decay of the first and second moment")
    momentum: float = Field(0.9, ge=0, lt=1, description="lars, sgd: of the gradient's running sum")
    warmup_steps: Steps = Field(0, ge=0, description="lr grows linearly from 0 so long")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of lr after the warm-up")
    final_lr_fraction: float = Field(
        0.01, ge=0, le=1, description="share of lr that is left at the last step of the cosine"
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="gradients are scaled down to this global norm; null: no clipping"
    )

    @model_validator(mode="before")
    @classmethod
    def _betas_from_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            values = values | {"betas": tuple(values["betas"])}
        return values


class TrainConfig(Section):
    """Length, precision and bookkeeping of training."""

    steps: Steps = free_field(
        ge=1,
        description="optimizer steps in all; epochs follow from the data. A resumed run may have more or fewer where "
        "the learning rates of the steps that are done stay the same",
    )
    start_from: str | None = Field(
        None, description="run or checkpoint with whose weights a new run begins; its model and features may be a part"
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="bf16, fp16: autocast, with weights in fp32"
    )
    compile: bool = free_field(False, description="torch.compile the model, with sizes of events as variables")
    tf32: bool = Field(False, description="GPUs may round the inputs of fp32 matrix products to TF32")
    checkpoint_every: Steps = free_field(200, ge=1, description="between checkpoints")
    keep_checkpoints: Annotated[int, Unit("checkpoints")] = free_field(
        2, ge=1, description="so many are kept, the newest"
    )
    log_every: Steps = free_field(10, ge=1, description="between lines of metrics.jsonl, TensorBoard and the screen")
    log_to: list[Literal["mlflow", "wandb"]] = free_field([], description="metrics go there, too (extra of that name)")
    valid_every: Steps = free_field(500, ge=1, description="between validations")
    probe_every: Steps = free_field(10, ge=1, description="of so many, one is timed in parts, without overlap")
    threads: Annotated[int, Unit("threads")] | None = free_field(
        1, ge=1, le=THREADS_MAX, description="CPU threads per rank; null: torch's own choice"
    )
    profile: list[Annotated[int, Field(ge=1)]] = free_field(
        [], description="steps of which torch's profiler writes traces; with one, a timeline of all ranks as well"
    )

    @model_validator(mode="after")
    def _profiled_steps_come(self) -> TrainConfig:
        late = [step for step in self.profile if step > self.steps]
        if late:
            raise ValueError(f"profile has step {late[0]}, but the last is steps={self.steps}")
        return self


class ParallelConfig(Section):
    """How ranks work together."""

    strategy: Literal["ddp", "fsdp", "deepspeed"] = free_field(
        "ddp", description="replicas; shards of weights, gradients and optimizer state (torch); or ZeRO (DeepSpeed)"
    )
    ranks_per_event: Literal[1, 2, 4, 8, "auto"] = free_field(
        1,
        description="ddp: consecutive ranks that hold an event together, by sectors of azimuth; auto: the largest "
        "events alone, where a step would wait for one",
    )
    exchange: Literal["boundary", "all"] = free_field("boundary", description="divided events: rows that ranks pass")
    compress: Literal["none", "bf16"] = Field("none", description="number format in which gradients are summed")
    bucket_mb: float = free_field(
        25.0,
        gt=0,
        le=1e6,
        description="ddp, deepspeed: gradients that are summed at once, while the backward pass goes on",
    )
    reshard_after_forward: bool = free_field(True, description="fsdp: gather weights again for the backward pass")
    zero_stage: Literal[1, 2, 3] = free_field(
        2, description="deepspeed: share optimizer state (1), gradients (2), weights (3)"
    )
    offload_optimizer: bool = free_field(False, description="deepspeed: optimizer state in the memory of the host")
    offload_param: bool = free_field(False, description="deepspeed, stage 3: weights in the memory of the host")
    device: Literal["auto", "cpu", "cuda"] = free_field("auto", description="auto: cuda where there is one")
    bind_cores: bool = free_field(
        True, description="on CPUs, ranks of a node that may use the same cores split them, if there are enough"
    )
    timeout_s: float = free_field(
        600.0, gt=0, le=SECONDS_MAX, description="a rank that waits longer for others ends the run"
    )
    rendezvous_timeout_s: float = free_field(
        300.0, gt=0, le=SECONDS_MAX, description="ranks that have not met after so long end"
    )

    @model_validator(mode="after")
    def _options_of_the_strategy(self) -> ParallelConfig:
        if (self.offload_optimizer or self.offload_param) and self.strategy != "deepspeed":
            raise ValueError(f"offload_optimizer and offload_param are for strategy deepspeed, not {self.strategy}")
        if self.ranks_per_event != 1 and self.strategy != "ddp":
            raise ValueError(
                f"ranks_per_event={self.ranks_per_event} is for strategy ddp: {self.strategy} gathers weights in every "
                "pass, and ranks would wait for each other there while they divide events; use ddp, or 1"
            )
        if self.offload_param and self.zero_stage != 3:
            raise ValueError(f"offload_param needs zero_stage 3, not {self.zero_stage}")
        return self


class RunConfig(Section):
    """Everything a training run is defined by."""

    run: str = free_field(description="folder of the run: config, metrics, checkpoints")
    seed: Seed = Field(1, description="of weights, draws of tracks, augmentation and the order of events")
    data: DataConfig
    model: Named = Field(description="the model and its options")
    loss: Named = Field(description="the loss and its options")
    builder: Named = Field(description="what makes track candidates of the model's outputs, and its options")
    plan: PlanConfig = PlanConfig()
    memory: MemoryConfig = MemoryConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _strategy_fits(self) -> RunConfig:
        strategy, optim, precision = self.parallel.strategy, self.optim.name, self.train.precision
        if strategy != "ddp" and optim in ("lamb", "lars"):
            raise ValueError(f"optim.name={optim} needs whole layers: use parallel.strategy=ddp, not {strategy}")
        if strategy == "deepspeed" and precision not in ("fp32", "bf16"):
            raise ValueError(f"deepspeed takes train.precision fp32 or bf16, not {precision}")
        return self


S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, or the recipe of that name, and apply `key.sub=value` overrides (values are YAML).

    Raises InputError naming file (or override) and key: missing file, bad YAML, unknown key, wrong type.
    """
    values = apply_overrides(parse_yaml(read_recipe(find(path)), str(path)), overrides, str(path))
    return parse(RunConfig, values, str(path), overrides=overrides)


def parse(cls: type[S], values: Mapping[str, Any], where: str, prefix: str = "", overrides: Sequence[str] = ()) -> S:
    """`cls(**values)`, with pydantic's complaints turned into one line that names the key, and who set it.

    That is the override of `overrides` that did, else `where`.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        place = [str(part) for part in first["loc"]]
        override = origin(overrides, place)
        what = complaint(cls, first, ".".join(part for part in (prefix, *place) if part), override)
        raise InputError(f"{named(override) if override else where}: {what}{more}") from None


def lookup(table: Mapping[str, T], name: str, section: str) -> T:
    """`table[name]`, or an InputError that lists what there is."""
    if name not in table:
        raise InputError(f"key '{section}.name': unknown '{name}'; one of: {', '.join(sorted(table))}")
    return table[name]


def dump_yaml(config: BaseModel) -> str:
    """The configuration with every default filled in, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)

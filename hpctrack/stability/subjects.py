"""The runs that are looked at: their models as trained, their losses, and the same events for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, RunConfig
from hpctrack.errors import InputError
from hpctrack.losses import Loss, build_loss
from hpctrack.models import Model, build_model
from hpctrack.parallel.precision import WEIGHTS
from hpctrack.process.arguments import named_path
from hpctrack.stability import churn
from hpctrack.stability.tasks import Place
from hpctrack.tracking.builder import Builder, TooManyPairs, to_numpy
from hpctrack.tracking.builders import build_builder
from hpctrack.training import checkpoint, run_settings
from hpctrack.training.build import build_events
from hpctrack.training.checkpoint_metadata import META

SEEN = ("data.selection", "data.hits", "data.graph", "data.emphasis")  # settings by which an event is read
SHAPE = ("model.", "data.features")  # those by which weights mean the same
DEFAULT_EVENTS = 10


@dataclass(frozen=True)
class Named:
    """A run as it was asked for: `[GROUP=]RUN`."""

    group: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> Named:
        """From the command line; a name in front of `=` is a group unless the whole is a folder that exists."""
        return cls(*named_path(text))


class Subject:
    """One run: its newest checkpoint (or the one that was named), settings, model and builder.

    `group`: as given, else the name of its loss. InputError for what cannot be read.
    """

    def __init__(self, named: Named) -> None:
        self.asked = named.path
        self.path = checkpoint.find(named.path)
        self.meta = checkpoint.read_meta(self.path)
        self.config: RunConfig = run_settings.run_config(self.meta, self.path / META)
        self.group = named.group or self.config.loss.name
        self.settings = run_settings.settings(self.config, str(self.path))
        self.loss = ""  # the name of its loss among those of all runs

    @property
    def builder(self) -> Builder:
        """Its builder, tuned; InputError if it is not."""
        builder = build_builder(self.config.builder, **self.meta["tuned"])
        if builder.needs_tuning:
            raise InputError(f"{self.asked}: training has not ended, so the builder is not tuned and decides nothing")
        return builder

    def load(self, device: torch.device, precision: str) -> Model:
        """The model with its weights, in eval mode."""
        model = build_model(self.config.model, self.config.data.features).to(device, WEIGHTS[precision])
        checkpoint.load_model(model, checkpoint.read_state(self.path, mapped=True)["model"], self.path)
        return model.eval()

    def part(self, prefixes: Sequence[str]) -> dict[str, Any]:
        """Its settings under some keys."""
        return {key: value for key, value in self.settings.items() if key.startswith(tuple(prefixes))}


def names_of(subjects: Sequence[Subject]) -> list[str]:
    """What runs are called: their folders' names, with the folder above where that is needed."""
    paths = [subject.asked.absolute() for subject in subjects]
    last = [path.name for path in paths]
    found = [
        name if last.count(name) == 1 else f"{path.parent.name}/{name}" for name, path in zip(last, paths, strict=True)
    ]
    return [name if found.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(found)]


def check_alike(subjects: Sequence[Subject], prefixes: Sequence[str], why: str) -> None:
    """InputError that names the first key in which a run differs from the first one, and `why` that matters."""
    first = subjects[0]
    for other in subjects[1:]:
        if found := run_settings.difference(first.part(prefixes), other.part(prefixes)):
            raise InputError(
                f"{other.asked}: differs from {first.asked} in {found.replace(', now ', ', here ')}; {why}"
            )


def losses_of(subjects: Sequence[Subject]) -> dict[str, Loss]:
    """The losses of all runs, each once, by name; tells each subject the name of its own."""
    found: dict[str, tuple[dict[str, Any], Loss]] = {}
    for subject in subjects:
        own = subject.part(["loss."])
        same = [name for name, (settings, _) in found.items() if settings == own]
        if not same:
            base, taken = subject.config.loss.name, len(found)
            name = base if base not in found else f"{base}-{taken + 1}"
            found[name] = own, build_loss(subject.config.loss).eval()
            same = [name]
        subject.loss = same[0]
    return {name: loss for name, (_, loss) in found.items()}


class Events:
    """The first events of a dataset as a run sees them, each a batch of its own, in memory; all ranks come together.

    Nothing is augmented; what a selection draws depends on the seed and the event alone. `most`: not more than so many.
    """

    def __init__(self, subject: Subject, folder: Path, most: int, place: Place, losses: Sequence[Loss]) -> None:
        config, env = subject.config, place.env
        plain: dict[str, Any] = {"train": str(folder), "valid": None, "augment": AugmentConfig(), "curriculum": []}
        data = config.data.model_copy(update=plain | {"stage_to": None, "in_memory": False})
        config = config.model_copy(update={"data": data, "run": str(place.out), "seed": place.seed})
        of_tracks = tuple(dict.fromkeys(name for loss in losses for name in loss.of_tracks))
        seen, _ = build_events(config, env, place.alive, WEIGHTS[place.precision], of_tracks)
        self.dataset = seen.dataset
        self.batches: list[Batch] = []
        for row in range(min(len(self.dataset), most)):
            place.alive(f"reading event {self.dataset.event_ids[row]}")
            self.batches.append(Batch.from_data_list([seen.loader(row, 0)]).to(env.device))

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def hits(self) -> list[int]:
        """How many hits of each are seen."""
        return [batch.num_nodes for batch in self.batches]

    def decisions(self, number: int, outputs: dict[str, Tensor], builder: Builder) -> churn.Decisions | None:
        """What a builder decides on an event, from a model's outputs; None where these are not finite, or one point."""
        batch = self.batches[number]
        arrays, hit_row_N = to_numpy(outputs, batch), batch.hit_row.cpu().numpy()
        if not all(np.isfinite(values).all() for values in arrays.values()):
            return None
        try:
            found = builder.build(arrays, hit_row_N, int(self.dataset.n_hits[number]), int(batch.event_id))
        except TooManyPairs:
            return None
        truth = batch.edge_truth.cpu().numpy() if batch.edge_index is not None else None
        return churn.decisions(found, hit_row_N, batch.track.cpu().numpy(), arrays.get("edge_index"), truth)

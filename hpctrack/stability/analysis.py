"""The whole of `hpctrack landscape`: its parts one after the other, each gone on with where a kill has left it.

Results stand in OUT/landscape.json, part by part; what is not finished yet in OUT/parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpctrack import __version__
from hpctrack.errors import InputError
from hpctrack.files.atomic import remove, write_json
from hpctrack.losses import Loss
from hpctrack.parallel.collectives import run_on_main
from hpctrack.results.landscapes import FORMAT, NAME, PARTS, VERSION, load_landscape
from hpctrack.stability import churn, similarity
from hpctrack.stability.connections import CurveOptions, Ends, connections
from hpctrack.stability.objective import Objective
from hpctrack.stability.subjects import DEFAULT_EVENTS, SEEN, SHAPE, Events, Subject, check_alike, losses_of, names_of
from hpctrack.stability.surface import SurfaceOptions, surface
from hpctrack.stability.tasks import Place, in_pieces
from hpctrack.tracking.builder import Builder
from hpctrack.training import checkpoint, run_settings

UNFINISHED, SETTINGS = "parts", "settings.json"


@dataclass(frozen=True)
class SimilarityOptions:
    """Rows of a mini-batch, how many of these of an event at most, and which modules (none: linear layers)."""

    rows: int = 1024
    batches: int = 8
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is to be looked at: the data, how many of its events (None: 10), the parts, and their options.

    `fit_data`: what curves are fitted to; None: what the first run was trained on.
    """

    data: Path
    parts: tuple[str, ...]
    events: int | None = None
    fit_data: Path | None = None
    surface: SurfaceOptions = field(default_factory=SurfaceOptions)
    curves: CurveOptions = field(default_factory=CurveOptions)
    similarity: SimilarityOptions = field(default_factory=SimilarityOptions)
    command: tuple[str, ...] = ()

    def options(self, part: str) -> dict[str, Any]:
        """The options of a part, as plain values."""
        of: dict[str, Any] = {"landscape": self.surface, "connections": self.curves, "similarity": self.similarity}
        values = asdict(of[part]) if part in of else {}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


class Analysis:
    """Runs and events, and what is found of them; all ranks make it and come together in its methods."""

    def __init__(self, subjects: Sequence[Subject], request: Request, place: Place) -> None:
        self.subjects, self.request, self.place, self.env = subjects, request, place, place.env
        self.losses: dict[str, Loss] = losses_of(subjects)
        self.models = [subject.load(place.env.device, place.precision) for subject in subjects]
        self.weights = [checkpoint.digest(model) for model in self.models]
        self._events: dict[tuple[str, ...], Events] = {}
        self.check()

    def check(self) -> None:
        """InputError where runs do not go together in what is asked for."""
        check_alike(self.subjects, SEEN, "runs that are compared need the same events")
        if {"landscape", "connections"} & set(self.request.parts):
            check_alike(self.subjects, SHAPE, "these parts need the same model: --parts similarity churn do without")
        for subject, model in zip(self.subjects, self.models, strict=True):
            if self.place.memory not in model.memory_modes:
                there = ", ".join(model.memory_modes)
                raise InputError(f"--memory {self.place.memory}: the model of {subject.asked} has {there}")
        asked = [self.request.surface.hessian_loss, *self.request.curves.curve_loss]
        for name in asked:
            if name is not None and name not in self.losses:
                raise InputError(f"no run has a loss '{name}'; there are: {', '.join(self.losses)}")
        if "connections" in self.request.parts:
            buffers = [dict(model.named_buffers()) for model in self.models]
            for subject, own in zip(self.subjects, buffers, strict=True):
                unlike = [name for name, value in own.items() if not torch.equal(value, buffers[0][name])]
                if unlike:
                    first = self.subjects[0].asked
                    raise InputError(f"{subject.asked}: has another '{unlike[0]}' than {first}, so no path joins them")

    def events(self, subject: Subject) -> Events:
        """The events as a run sees them; those that see the same features share them."""
        features = tuple(subject.config.data.features)
        if features not in self._events:
            asked, folder = self.request.events, self.request.data
            of = Events(subject, folder, asked or DEFAULT_EVENTS, self.place, list(self.losses.values()))
            if len(of) < (asked or 1):
                raise InputError(f"{folder}: has {len(of)} events, but --events {asked or 1} are asked for")
            self._events[features] = of
        return self._events[features]

    def objective(self, number: int, losses: dict[str, Loss] | None = None) -> Objective:
        """The losses of all runs at a run's weights."""
        events = self.events(self.subjects[number])
        self.models[number].set_memory(self.place.memory)
        return Objective(self.models[number], losses or self.losses, events.batches, self.place.seed)

    # ------------------------------------------------------------------------------------- parts

    def landscape(self, folder: Path) -> dict[str, Any]:
        """The losses on a plane through each run."""
        found = []
        for number, subject in enumerate(self.subjects):
            of = self.objective(number)
            own = surface(of, subject.loss, self.request.surface, self.place, folder=folder / f"run-{number}")
            found.append({"run": number, **own})
        return {"surfaces": found}

    def connections(self, folder: Path) -> dict[str, Any]:
        """The losses on paths between runs."""
        builders, events, evaluated = self.builders(), self.events(self.subjects[0]), self.objective(0)
        weights = [self.objective(number).weights_P for number in range(len(self.subjects))]
        losses = [subject.loss for subject in self.subjects]
        ends = Ends(weights, losses, lambda run: Deciding(events, builders[run]))
        options = self.request.curves
        pairs = connections(ends, evaluated, self.fitted(), options, self.place, folder=folder)
        return {"places": options.places, "pairs": pairs}

    def fitted(self) -> Objective:
        """The losses on the events that curves are fitted to."""
        subject, given = self.subjects[0], self.request.fit_data
        folder = given or Path(subject.config.data.train)
        if not folder.is_dir():
            raise InputError(f"{folder}: not here, though {subject.asked} was trained on it; name it by --fit-data")
        of = Events(subject, folder, self.request.curves.fit_events, self.place, list(self.losses.values()))
        if given is None and of.dataset.fingerprint != subject.meta["data"]:
            raise InputError(f"{folder}: not what {subject.asked} was trained on; name the right one by --fit-data")
        return Objective(self.models[0], self.losses, of.batches, self.place.seed)

    def similarity(self, folder: Path) -> dict[str, Any]:
        """CKA between the layers of each run and each other one, and itself."""
        options, seed = self.request.similarity, self.place.seed
        for model in self.models:
            model.set_memory("plain")  # in others a layer may be called chunk by chunk
        layers = [
            similarity.Layers(model, options.layers, str(subject.asked))
            for model, subject in zip(self.models, self.subjects, strict=True)
        ]
        every = [self.events(subject) for subject in self.subjects]

        def compute(key: str) -> dict[str, Any]:
            number = int(key)
            event_id = int(every[0].batches[number].event_id)
            rows = similarity.Rows(options.rows, options.batches, seed, event_id)
            features = [of(events.batches[number], rows) for of, events in zip(layers, every, strict=True)]
            return {"layers": [list(of_run) for of_run in features], "hsic": similarity.of_event(features, rows)}

        keys = [str(k) for k in range(len(every[0]))]
        found = list(in_pieces(folder, keys, compute, self.place, costs=every[0].hits).values())
        return similarity.summary(found)

    def churn(self, folder: Path) -> dict[str, Any]:
        """Decisions on which runs differ."""
        builders, every = self.builders(needed=True), [self.events(subject) for subject in self.subjects]

        def compute(key: str) -> dict[str, Any]:
            number, made = int(key), []
            for model, events, builder, subject in zip(self.models, every, builders, self.subjects, strict=True):
                with torch.no_grad():
                    outputs = model(events.batches[number])
                found = events.decisions(number, outputs, builder) if builder else None
                if found is None:
                    event = int(events.batches[number].event_id)
                    raise InputError(f"{subject.asked}: decides nothing on event {event}: its outputs are of no use")
                if not found:
                    what = f"its builder, '{subject.config.builder.name}', has no edges of a graph to decide on"
                    raise InputError(f"{subject.asked}: {what}; leave out the part churn")
                made.append(found)
            return churn.of_event(made)

        keys = [str(k) for k in range(len(every[0]))]
        found = list(in_pieces(folder, keys, compute, self.place, costs=every[0].hits).values())
        groups = [subject.group for subject in self.subjects]
        return {"kinds": churn.summary(found, groups, self.place.seed)}

    def builders(self, needed: bool = False) -> list[Builder | None]:
        """The runs' builders; None for one that is not tuned, unless they are needed, which is said."""
        found: list[Builder | None] = []
        for subject in self.subjects:
            try:
                found.append(subject.builder)
            except InputError as error:
                if needed:
                    raise
                self.env.say(f"{error}: decisions are left out")
                found.append(None)
        return found

    # ------------------------------------------------------------------------------------- what is written

    def head(self) -> dict[str, Any]:
        """What the results are of."""
        runs = [
            {
                "name": name,
                "group": subject.group,
                "run": str(subject.asked),
                "checkpoint": subject.path.name,
                "step": subject.meta["step"],
                "seed": subject.config.seed,
                "loss": subject.loss,
                "weights": digest,
            }
            for name, subject, digest in zip(names_of(self.subjects), self.subjects, self.weights, strict=True)
        ]
        return {"runs": runs, "losses": {name: dict(loss.weights) for name, loss in self.losses.items()}}

    def settings(self, part: str) -> dict[str, Any]:
        """All that a part's results depend on."""
        runs = {
            f"run {k}": f"{digest} {json.dumps(subject.meta['tuned'], sort_keys=True)}"
            for k, (subject, digest) in enumerate(zip(self.subjects, self.weights, strict=True))
        }
        events = self.events(self.subjects[0])
        groups = {f"group {k}": subject.group for k, subject in enumerate(self.subjects)} if part == "churn" else {}
        of_data = {"data": events.dataset.fingerprint, "events": len(events)}
        of_place = {"seed": self.place.seed, "precision": self.place.precision}
        fit_data = {"fit_data": str(self.request.fit_data)} if part == "connections" else {}
        return runs | groups | of_data | of_place | fit_data | self.request.options(part)


class Deciding:
    """Counts the decisions of a builder along a path, over all events."""

    def __init__(self, events: Events, builder: Builder | None) -> None:
        self.events, self.builder, self.undecided = events, builder, 0
        self.summed: dict[str, dict[str, int]] = {}

    def look(self, number: int, outputs: dict[str, torch.Tensor]) -> None:
        """The outputs of an event."""
        if self.builder is None:
            return
        made = self.events.decisions(number, outputs, self.builder)
        self.undecided += made is None
        for kind, counts in churn.quality(made or {}).items():
            summed = self.summed.setdefault(kind, dict.fromkeys(counts, 0))
            self.summed[kind] = {key: summed[key] + count for key, count in counts.items()}

    def counts(self) -> dict[str, Any]:
        """By kind; nothing where an event was not decided on."""
        return {} if self.undecided else self.summed


def analyse(subjects: Sequence[Subject], request: Request, place: Place) -> Path:
    """Do the parts that are asked for and not done yet; the file with all results. All ranks come together.

    InputError if `place.out` has results of other runs, or of a part with other options.
    """
    analysis = Analysis(subjects, request, place)
    path, env = place.out / NAME, place.env
    settings = {part: analysis.settings(part) for part in request.parts}
    todo = run_on_main(lambda: begin(path, analysis.head(), settings), env)
    for part in PARTS:
        if part not in todo:
            continue
        env.say(f"{part}: {len(subjects)} runs, {settings[part]['events']} events")
        found = getattr(analysis, part)(place.out / UNFINISHED / part)
        own = {"settings": settings[part], "command": list(request.command), **found}
        run_on_main(partial(end, path, analysis.head(), part, own), env)
    env.say(f"written: {path}" if todo else f"{path}: complete, nothing to do")
    return path


def begin(path: Path, head: dict[str, Any], settings: dict[str, dict[str, Any]]) -> list[str]:
    """The parts that are to be done; InputError if one was begun or done with other settings, or of other runs."""
    out, todo = path.parent, []
    done = load_landscape(path) if path.exists() else None
    if done is not None:
        for key in head:
            if done[key] != head[key]:
                raise InputError(f"{path}: is of other {key}; choose another --out")
    for part, now in settings.items():
        kept = out / UNFINISHED / part / SETTINGS
        then = done["parts"][part]["settings"] if done and part in done["parts"] else None
        if then is None:
            todo.append(part)
            then = json.loads(kept.read_text()) if kept.is_file() else now
        if found := run_settings.difference(then, now):
            raise InputError(f"{out}: its part '{part}' has {found}; choose another --out")
        if part in todo:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, now)
    return todo


def end(path: Path, head: dict[str, Any], part: str, found: dict[str, Any]) -> None:
    """Put a part into the results; what was kept of it while it was made goes."""
    parts = load_landscape(path)["parts"] if path.exists() else {}
    parts[part] = found
    ordered = {name: parts[name] for name in PARTS if name in parts}
    write_json(path, {"format": FORMAT, "version": VERSION, "hpctrack": __version__, **head, "parts": ordered})
    remove(path.parent / UNFINISHED / part)
    if not any((path.parent / UNFINISHED).iterdir()):
        (path.parent / UNFINISHED).rmdir()

"""What a checkpoint holds. The only part of `inspect` that needs torch, so it is imported for checkpoints alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hpctrack.config import RunConfig
from hpctrack.errors import InputError
from hpctrack.models import build_model
from hpctrack.requirements import fields
from hpctrack.storage.schema import FIELD_T, parts_of
from hpctrack.storage.verify import Notes, Problem
from hpctrack.training import checkpoint, data_needs, run_settings
from hpctrack.training.checkpoint_metadata import LATEST, META, STATE
from hpctrack.training.optimizers import build_optimizer


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """A checkpoint: step, what it was trained on, the model's digest, parameters by module."""
    meta, state = checkpoint.read_meta(folder), checkpoint.read_state(folder)
    weights = _weights(state, folder)
    out: dict[str, Any] = {key: meta[key] for key in ("hpctrack", "step", "epoch") if key in meta}
    out |= {"trained_on_fingerprint": meta.get("data"), "plan": meta.get("plan")}
    trained_t = fields.trained_field(meta)
    out["trained_in_field_t"] = f"not said, {FIELD_T} assumed" if trained_t is None else trained_t
    out["needs"] = _needs(run_settings.run_config(meta, folder / META))
    out["parameters"] = sum(tensor.numel() for tensor in weights.values())
    out["dtype"] = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}))
    out["digest"] = checkpoint.weights_digest(weights)  # as candidates name their model
    out["checksums"] = "of meta data and state" if "state" in meta else "of state alone, as 0.1.0 wrote it"
    if checkpoint.is_exported(meta, state):
        out["use"] = "exported: for inference and train.start_from; no run goes on from it"
    out["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    if meta.get("tuned"):
        out["tuned"] = ", ".join(f"builder.{key}={value}" for key, value in meta["tuned"].items())
    out["state"] = {key: {"what": _what(value)} for key, value in state.items()}
    out["modules"] = _modules(weights)
    return out


def describe_checkpoints(folder: Path) -> dict[str, Any]:
    """A folder of checkpoints: their names, and the newest one's facts."""
    newest = checkpoint.latest(folder)
    names = [path.name for path in checkpoint.whole(folder)]
    facts = {"latest": newest.name if newest else "none"}
    return facts | (describe_checkpoint(newest) if newest else {}) | {"checkpoints": names}


def _needs(config: RunConfig) -> str:
    """What inference needs of a dataset beside its hits, that some have not."""
    columns = {
        name for need in data_needs.of_inference(config) for name in need.columns if not name.startswith("hits.")
    }
    kept = [f"hits that a filter has kept ({config.data.hits.stored})"] if config.data.hits else []
    return ", ".join([*parts_of(columns), *kept]) or "hits alone"


def _weights(state: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not all(isinstance(value, torch.Tensor) for value in model.values()):
        raise InputError(f"{folder / STATE}: holds no 'model' of tensors; not a checkpoint of hpctrack")
    return model


def _what(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, (dict, list)) else str(value)[:60]


def _modules(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, object]]:
    """Parameters of each module, to the second level of names."""
    out: dict[str, dict[str, Any]] = {}
    for name, tensor in weights.items():
        owner = ".".join(name.split(".")[:-1][:2]) or name
        entry = out.setdefault(owner, {"parameters": 0, "tensors": 0})
        entry["parameters"] += tensor.numel()
        entry["tensors"] += 1
    return {owner: {"parameters": e["parameters"], "in": f"in {e['tensors']} tensors"} for owner, e in out.items()}


def check_checkpoint(folder: Path) -> list[Problem]:
    """Problems of one checkpoint: checksums, meta data, weights that are not finite or of another model.

    One without a problem serves inference and `train.start_from`, and a run can go on from it unless it was exported.
    """
    notes = Notes(folder / META)
    known: tuple[dict[str, Any], RunConfig] | None = None
    try:
        meta = checkpoint.read_meta(folder)
        config = run_settings.run_config(meta, notes.path)
        known = meta, config
        run_settings.settings(config, str(notes.path))  # the options of what it names
        if checkpoint.NAME.fullmatch(folder.name) and checkpoint.order(folder)[0] != meta["step"]:
            notes.add(f"step is {meta['step']}, but the folder is {folder.name}")
    except (KeyError, TypeError, ValueError) as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    problems, notes = notes.problems, Notes(folder / STATE)
    try:
        state = checkpoint.read_state(folder)
        _check_finite(state, folder, notes)
        if known is not None:
            _check_use(*known, state, folder)
    except (InputError, OSError) as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    return problems + notes.problems


def _check_use(meta: dict[str, Any], config: RunConfig, state: dict[str, Any], folder: Path) -> None:
    """InputError unless the model takes the weights and, where the checkpoint has an optimizer, a run can go on."""
    model = build_model(config.model, config.data.features)
    checkpoint.load_into(model, state["model"], folder)
    if checkpoint.is_exported(meta, state):
        return
    checkpoint.check_goes_on(meta, state, folder)
    parameters = [p for group in build_optimizer(model, config.optim).param_groups for p in group["params"]]
    if problem := checkpoint.optimizer_problem(state["optimizer"], parameters, config.optim):
        raise InputError(f"{folder / STATE}: {problem}; no run can go on from here")


def _check_finite(state: dict[str, Any], folder: Path, notes: Notes) -> None:
    for name, tensor in _weights(state, folder).items():
        if not torch.isfinite(tensor).all():
            notes.add(f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} weights are not finite", column=name)


def check_checkpoints(folder: Path) -> list[Problem]:
    """Problems of all checkpoints of a run, and of `latest`."""
    notes = Notes(folder / LATEST)
    try:
        checkpoint.latest(folder)
    except InputError as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    return notes.problems + [problem for path in checkpoint.whole(folder) for problem in check_checkpoint(path)]

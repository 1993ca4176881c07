"""What a run folder or a results.json holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpctrack.config import load_config
from hpctrack.data.verify import Notes, Problem
from hpctrack.errors import InputError
from hpctrack.reporting.sources import Run, load_results
from hpctrack.reporting.text import table
from hpctrack.runtime import ledger

SHOWN = ("step", "epoch", "loss", "lr", "grad_norm", "hits_per_s", "peak_gib")


def describe_run(folder: Path) -> dict[str, Any]:
    """A training run: configuration, progress, checkpoints, what it was trained on."""
    config, run = load_config(folder / "config.yaml", []), Run(folder)
    last = run.train[-1] if run.train else {}
    out: dict[str, Any] = {
        "model": config.model.name,
        "loss": config.loss.name,
        "builder": config.builder.name,
        "strategy": f"{config.parallel.strategy}, {config.train.precision}",
        "trained_on": config.data.train,
        "validated_on": config.data.valid or "nothing",
        "steps": f"{last.get('step', 0)} of {config.train.steps} logged",
    }
    out |= {f"last_{key}": _short(last[key]) for key in SHOWN if key in last and key != "step"}
    if run.valid:
        out["last_validation"] = f"loss {run.valid[-1]['loss']:.6g} at step {run.valid[-1]['step']}"
    meta = _newest_meta(folder / "checkpoints")
    out |= {"trained_on_fingerprint": meta["data"]} if "data" in meta else {}
    if meta.get("tuned"):
        out["tuned"] = ", ".join(f"builder.{key}={value}" for key, value in meta["tuned"].items())
    steps = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    out |= {"checkpoints": steps, "ledger": ledger_lines(folder), "config": config.model_dump(mode="json")}
    return out


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _newest_meta(folder: Path) -> dict[str, Any]:
    name = (folder / "latest").read_text().strip() if (folder / "latest").is_file() else ""
    path = folder / name / "meta.json"
    if not name or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint's meta data ({error})") from None


def ledger_lines(folder: Path) -> list[str]:
    """What the run's ledger says of the events it consumed; empty if it has none."""
    try:
        return ledger.summary(folder) or []
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / ledger.NAME}: not a run's ledger ({error})") from None


def check_ledger(folder: Path) -> list[Problem]:
    """Events that the run did not consume exactly once; nothing if it keeps no ledger."""
    notes = Notes(folder / ledger.NAME)
    if not notes.path.is_file():
        return []
    try:
        for what in ledger.problems(folder):
            notes.add(what)
    except (KeyError, TypeError, ValueError) as error:
        notes.add(f"not a run's ledger ({error})")
    return notes.problems


def describe_results(path: Path) -> dict[str, Any]:
    """A results.json: what was evaluated, and its table."""
    results = load_results(path)
    try:
        out = {key: results[key] for key in ("format", "version", "events", "hits", "noise_hits", "target_particles")}
        source = {key: results["source"][key] for key in ("candidates", "dataset", "dataset_fingerprint")}
        return out | source | {"metrics": table(results).splitlines()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: lacks {error}; evaluate again") from None


def check_run(folder: Path) -> list[Problem]:
    """Problems of a run's own files (its checkpoints apart)."""
    notes = Notes(folder / "config.yaml")
    try:
        steps = load_config(folder / "config.yaml", []).train.steps
    except InputError as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
        steps = None
    problems, notes = notes.problems, Notes(folder / "metrics.jsonl")
    if notes.path.is_file():
        for number, line in enumerate(notes.path.read_bytes().splitlines(), 1):
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, KeyError, TypeError):
                notes.add(f"line {number} is not a metrics line; it may have been cut short by a kill")
                continue
            if steps is not None and not 0 <= step <= steps:
                notes.add(f"line {number}: step is {step}, but the run has {steps}")
    return problems + notes.problems + check_ledger(folder)


def check_results(path: Path) -> list[Problem]:
    """Problems of a results.json: keys, and values that do not follow from their numerators and denominators."""
    notes = Notes(path)
    try:
        results = load_results(path)
        describe_results(path)
        for reading in ("candidates", "exclusive"):
            for name, number in results[reading]["metrics"].items():
                parts = (number.get("value"), number.get("numerator"), number.get("denominator"))
                if None not in parts and parts[2] and abs(parts[0] - parts[1] / parts[2]) > 1e-9:
                    notes.add(f"is {parts[0]}, but {parts[1]} / {parts[2]} is not", column=f"{reading}.{name}")
    except (InputError, KeyError, TypeError, AttributeError) as error:
        notes.add(str(error).removeprefix(f"{path}: "))
    return notes.problems

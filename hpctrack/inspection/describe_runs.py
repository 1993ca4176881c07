"""What a run folder or a results.json holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpctrack.config import load_config
from hpctrack.errors import InputError
from hpctrack.files.atomic import checksum_is_wrong
from hpctrack.files.jsonlines import METRICS, mismatch, read_metrics
from hpctrack.results.content import load_results, table
from hpctrack.storage.verify import Notes, Problem
from hpctrack.training import ledger
from hpctrack.training.checkpoint_metadata import LATEST, META, read_meta
from hpctrack.training.run_folder import CONFIG, VERSIONS, Run, read_versions

SHOWN = ("step", "epoch", "loss", "lr", "grad_norm", "hits_per_s", "peak_gib")


def describe_run(folder: Path) -> dict[str, Any]:
    """A training run: configuration, progress, checkpoints, what it was trained on."""
    run, config = Run(folder), load_config(folder / CONFIG, [])
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
    if meta:
        out["checksums"] = (
            "of all files" if "journals" in meta else "of the checkpoints' state alone, as 0.1.0 wrote it"
        )
    if meta.get("tuned"):
        out["tuned"] = ", ".join(f"builder.{key}={value}" for key, value in meta["tuned"].items())
    steps = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    out |= {"checkpoints": steps, "ledger": ledger_lines(folder), "config": config.model_dump(mode="json")}
    return out


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _newest_meta(folder: Path) -> dict[str, Any]:
    name = (folder / LATEST).read_text(errors="replace").strip() if (folder / LATEST).is_file() else ""
    path = folder / name / META
    if not name or not path.is_file():
        return {}
    return read_meta(path)


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
    notes = Notes(folder / CONFIG)
    steps = None
    try:
        if checksum_is_wrong(notes.path):
            notes.add("fails its checksum; it was changed or is damaged")
        steps = load_config(notes.path, []).train.steps
    except (InputError, UnicodeDecodeError) as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    problems = notes.problems + _check_versions(folder) + _check_metrics(folder, steps) + check_ledger(folder)
    named = {Path(problem.path).name for problem in problems}
    for name, wrong in _misfits(folder).items():
        if name not in named:
            notes = Notes(folder / name)
            notes.add(wrong)
            problems += notes.problems
    return problems


def _check_versions(folder: Path) -> list[Problem]:
    notes = Notes(folder / VERSIONS)
    try:
        read_versions(folder)
    except InputError as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    return notes.problems


def _check_metrics(folder: Path, steps: int | None) -> list[Problem]:
    notes = Notes(folder / METRICS)
    try:
        for number, row in enumerate(read_metrics(folder) if notes.path.is_file() else (), 1):
            if steps is not None and not 0 <= row["step"] <= steps:
                notes.add(f"line {number}: step is {row['step']}, but the run has {steps}")
    except InputError as error:
        notes.add(str(error).removeprefix(f"{notes.path}: "))
    return notes.problems


def _misfits(folder: Path) -> dict[str, str]:
    """Journals that do not begin with what they held when the checkpoint was written that the run goes on from."""
    try:
        marks = _newest_meta(folder / "checkpoints").get("journals", {})
        return {name: wrong for name, mark in marks.items() if (wrong := mismatch(folder / name, mark))}
    except InputError:  # the checkpoint's own problem
        return {}


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

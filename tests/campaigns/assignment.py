"""Protons by assignment: the tables and figures of T. Kortus et al. (arXiv:2407.13420) on frames of the toy telescope.

    python -m tests.campaigns.assignment tables --out FOLDER [--settings ptt pat refined …] [--seeds 3] [--frames 20]
    python -m tests.campaigns.assignment churn --out FOLDER [--settings ptt pat-0.01 pat pat-1 …] [--seeds 3]
    python -m tests.campaigns.assignment landscape --out FOLDER [--settings ptt pat] [--seeds 2]

Each makes the frames and trains the runs that are missing; what is there is not made again, and a training or a look
that was cut short goes on. `tables`: purity and efficiency (rule proton_ct) of each setting on fresh frames of 50, 100
and 150 protons behind 100, 150 and 200 mm of water, mean and standard deviation over runs, FOLDER/tables.md. `churn`:
normalised churn within and between settings. `landscape`: loss planes, straight lines and Bezier curves, and CKA. Both
take options of `hpctrack landscape`, such as --events.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctrack import convert, evaluate, infer, landscape, simulate
from hpctrack.files.atomic import write_text
from hpctrack.training import checkpoint
from tests.campaigns import seeds

WATER, PROTONS = (100, 150, 200), (50, 100, 150)
SEEDS = {"train": 41_000, "valid": 42_000, 50: 43_000, 100: 44_000, 150: 45_000}  # + mm of water
TRAINING, VALIDATION = 120, 2  # frames behind each phantom
SHOWN = ("purity", "efficiency")
FOLLOW = "follow"  # the baseline without learning
COMMON = ("memory.policy=plain", "plan.events_per_step=1", "train.checkpoint_every=40", "optim.warmup_steps=10")


@dataclass(frozen=True)
class Setting:
    """A recipe of configs/assignment, what is set in it, and the setting whose run of the same seed it begins from."""

    recipe: str
    overrides: tuple[str, ...]
    begins: str | None = None
    draws: int = 0  # added to the seed: another order of frames than that of the run it begins from


def through(strength: float, margin: float = 0.0, recipe: str = "line_graph", begins: str = "ptt") -> Setting:
    """Predict and track: through the assignment, from a run of predict then track."""
    loss = ("loss.name=assignment", f"loss.strength={strength}", f"loss.margin={margin}")
    return Setting(recipe, (*SECOND, *loss), begins, draws=10)


SECOND = ("train.steps=60", "plan.events_per_step=2", "optim.lr=3.0e-4")
SETTINGS: Mapping[str, Setting] = {
    "ptt": Setting("line_graph", ("train.steps=240", "optim.lr=5.0e-3")),
    "ptt-more": Setting("line_graph", SECOND, "ptt", draws=10),
    "pat-0.01": through(0.01),
    "pat-0.1": through(0.1),
    "pat-margin": through(0.2, 0.1),
    "refined": Setting("line_graph_refined", ("train.steps=160", "optim.lr=3.0e-3"), "ptt"),
    "refined-margin": through(0.2, 0.1, "line_graph_refined", "refined"),
    "hit-graph": Setting("hit_graph", ("train.steps=240", "optim.lr=3.0e-3")),
}


@dataclass(frozen=True)
class Study:
    """A folder of data, runs and results; trained and looked at on frames of so many protons."""

    out: Path
    protons: int = 100

    def frames(self, name: str, csv: Sequence[tuple[int, int, int, int]]) -> Path:
        """The dataset `name`; `csv`: water, protons, frames, and seed of each of its parts."""
        data = self.out / "data" / name
        if not (data / "index.h5").exists():
            for water, protons, events, seed in csv:
                folder = self.out / "csv" / name / str(water)
                words = ["--preset", f"proton-ct-{water}", "--protons", protons, "--events", events, "--seed", seed]
                done(simulate.main([str(folder), *map(str, words), "--first-event", str(1000 * water)]))
            done(convert.main([str(self.out / "csv" / name), str(data), "--jobs", "1"]))
        return data

    def training(self) -> tuple[Path, Path]:
        """Frames to train on, and others."""
        parts = (("train", TRAINING), ("valid", VALIDATION))
        train, valid = (self.frames(p, [(mm, self.protons, n, SEEDS[p] + mm) for mm in WATER]) for p, n in parts)
        return train, valid

    def run(self, name: str, seed: int) -> Path:
        """The trained run of a setting and a seed, of which the runs it begins from are made first."""
        setting, run = SETTINGS[name], self.out / "runs" / f"{name}-{seed}"
        if not is_trained(run):
            begins = [f"train.start_from={self.run(setting.begins, seed)}"] if setting.begins else []
            train, valid = self.training()
            words = [
                f"run={run}",
                f"seed={seed + setting.draws}",
                f"data.train={train}",
                f"data.valid={valid}",
            ]
            run_training(run, f"assignment/{setting.recipe}", [*words, *COMMON, *setting.overrides, *begins])
        return run

    def results(self, run: str, protons: int, water: int, frames: int) -> dict[str, Any]:
        """Numbers of the rule for a run (`name-seed`, or the baseline) in a cell of the table."""
        cell = f"{protons}-{water}-{frames}"
        data = self.frames(f"test-{cell}", [(water, protons, frames, SEEDS[protons] + water)])
        path, found = self.out / "results" / run / f"{cell}.json", self.out / "candidates" / run / cell
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            how = ["--method", FOLLOW, "method.min_hits=1"]
            if run != FOLLOW:
                how = ["--checkpoint", str(self.run(*parted(run)))]
            done(infer.main([*how[:2], "--data", str(data), "--out", str(found), *how[2:]]))
            words = ["--rules", "proton_ct", "--pt-min-gev", "0", "--min-hits", "1"]
            done(evaluate.main([str(found), "--data", str(data), "--out", str(path), *words]))
        rule: dict[str, Any] = json.loads(path.read_text())["rules"]["proton_ct"]["candidates"]
        return rule

    def look(self, part: str, names: Sequence[str], n: int, words: Sequence[str]) -> None:
        """`hpctrack landscape` of the runs of some settings, on frames that they were not trained on."""
        runs = [f"{name}={self.run(name, seed)}" for name in names for seed in range(1, n + 1)]
        out, data = self.out / "looks" / part, self.training()[1]
        done(landscape.main([*runs, "--data", str(data), "--out", str(out), *words]))


def is_trained(run: Path) -> bool:
    """Whether `run_training` has ended there."""
    return (run / "finished").exists()


def run_training(run: Path, recipe: str, words: Sequence[str]) -> None:
    """Train the recipe in a process of its own, or go on with that; `words`: overrides, `run` among them."""
    subprocess.run([sys.executable, "-m", "hpctrack.train", recipe, *words], check=True)
    write_text(run / "finished", f"{checkpoint.latest(run / 'checkpoints')}\n")


def done(code: int | None) -> None:
    """SystemExit if a verb has failed."""
    if code:
        raise SystemExit(code)


def parted(run: str) -> tuple[str, int]:
    """`pat-0.1-2` is the setting pat-0.1 with seed 2."""
    name, seed = run.rsplit("-", 1)
    return name, int(seed)


def tables(study: Study, names: Sequence[str], n: int, frames: int, cells: Sequence[tuple[int, int]]) -> str:
    """Markdown: a row a cell, a column a setting."""
    rows = [f"| water, protons | {' | '.join([FOLLOW, *names])} |", "|---" * (len(names) + 2) + "|"]
    for water, protons in cells:
        texts = [cell([study.results(FOLLOW, protons, water, frames)])]
        for name in names:
            texts.append(cell([study.results(f"{name}-{s}", protons, water, frames) for s in range(1, n + 1)]))
        rows.append(f"| {water} mm, {protons} | {' | '.join(texts)} |")
    return "\n".join(rows)


def cell(found: Sequence[Mapping[str, Any]]) -> str:
    """Purity / efficiency in %: of several runs mean ± standard deviation, of one ± its binomial error."""
    texts = []
    for number in SHOWN:
        mean, spread = seeds.mean_and_spread([100 * one[number]["value"] for one in found])
        if len(found) == 1:
            spread = 100 * found[0][number]["error"]
        texts.append(f"{mean:.1f} ± {spread:.1f}")
    return " / ".join(texts)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the study."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("tables", "churn", "landscape"))
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--settings", nargs="+", choices=SETTINGS, help="default: all, for landscape ptt alone")
    p.add_argument("--seeds", type=int, default=3, help="runs a setting, of seeds 1, 2, …")
    p.add_argument("--protons", type=int, default=100, help="a frame, of training and of looks; one FOLDER for each")
    p.add_argument("--frames", type=int, default=20, help="test frames a cell, for tables")
    p.add_argument(
        "--cells", nargs="+", default=[f"{mm}-{n}" for n in PROTONS for mm in WATER], metavar="WATER-PROTONS"
    )
    args, more = p.parse_known_args(argv)
    if more and args.what == "tables":
        p.error(f"unknown: {' '.join(more)}")
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.settings or (["ptt"] if args.what == "landscape" else list(SETTINGS))
    study = Study(args.out, args.protons)
    if args.what == "tables":
        cells = [(int(mm), int(n)) for mm, n in (text.split("-") for text in args.cells)]
        text = tables(study, names, args.seeds, args.frames, cells)
        write_text(args.out / "tables.md", text + "\n")
        print(text)
        return
    parts = ["churn"] if args.what == "churn" else ["landscape", "connections", "similarity"]
    losses = ["--hessian-loss", "segments", "--curve-loss", "segments"] if args.what == "landscape" else []
    study.look(args.what, names, args.seeds, ["--parts", *parts, *losses, *more])


if __name__ == "__main__":
    main()

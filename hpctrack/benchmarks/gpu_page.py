"""The page docs/benchmarks/gpu.md: goals and what was measured on a GPU, from what launch/gpu_check.sh writes.

    python -m hpctrack.benchmarks.gpu_page FOLDER [--markdown FILE] [--json FILE]

`FOLDER` holds `bench-PART.json` (as `hpctrack bench gpu --json` writes them), `tests-*.xml` (pytest's), `device` and
`status.jsonl` ({name, rc, seconds} of each piece of work; the last counts); where a model was trained, its run
`influencer-500` and the results of its test events, `influencer-500.json`. What is not there has not been run, and the
page says so.
"""

from __future__ import annotations

import argparse
import json
import operator
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctrack.benchmarks.gpu import PARTS
from hpctrack.errors import InputError
from hpctrack.files.jsonlines import read_metrics
from hpctrack.files.outputs import write_json_output, write_output

HEAD = """# On one GPU

For whoever wants to know how fast hpctrack is on a GPU, and whether that has been measured.
The page is made by `bash launch/gpu_check.sh OUT [MINUTES]` on a machine with PyTorch and a GPU, in one call or more.
A figure that says *not run* has not been measured: nothing on this page is an estimate.
"""
NOT_RUN = "*not run*"


@dataclass(frozen=True)
class Goal:
    """A figure of `hpctrack bench gpu` that has a goal: `limit` bounds it from above, or if `least`, from below."""

    figure: str
    meaning: str
    limit: float
    unit: str
    least: bool = False

    def row(self, figures: dict[str, dict[str, Any]]) -> str:
        """The table's row."""
        found = figures.get(self.figure)
        goal = f"{'>=' if self.least else '<='} {self.limit:g} {self.unit}".strip()
        if found is None:
            return f"| `{self.figure}` | {self.meaning} | {goal} | {NOT_RUN} | |"
        reached: Callable[[float, float], bool] = operator.ge if self.least else operator.le
        value = f"{found['median']:.3g} ({found['min']:.3g} – {found['max']:.3g})"
        said = "reached" if reached(found["median"], self.limit) else "**not reached**"
        return f"| `{self.figure}` | {self.meaning} | {goal} | {value} | {said} |"


GOALS = (
    Goal("gpu_full_event_gib", "interaction network 128 x 8, full event, forward + backward: peak", 40, "GiB"),
    Goal("gpu_full_event_edges", "edges of that event", 1e6, "edges", least=True),
    Goal("gpu_slope", "default backbone's seconds against 1k to 340k hits", 1.1, "power of hits"),
    Goal("gpu_step_over_baseline", "influencer step over the baseline's, 500 tracks", 1.2, "x"),
    Goal("gpu_build_over_greedy", "the baseline's loop over building, 500 tracks", 10, "x", least=True),
    Goal("gpu_infer_full_s", "influencer-full, pT > 1 GeV targets and noise: inference", 0.030, "s"),
    Goal("gpu_chain_s", "chain with all hits: inference", 0.150, "s"),
    Goal("gpu_infer_pixel_s", "pixel event (HEPTv2 on an A100: 15.1 ms): inference", 0.015, "s"),
)


def figures_of(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All figures that were measured on a GPU, by name; a rehearsal's are not."""
    return {name: f for result in results if result["machine"].get("gpu") for name, f in result["figures"].items()}


def tests_of(folder: Path) -> str:
    """How many of tests/gpu passed, failed and were skipped."""
    files = sorted(folder.glob("tests-*.xml"))
    if not files:
        return f"tests/gpu: {NOT_RUN}."
    suites = [suite for file in files for suite in xml.parse(file).getroot().iter("testsuite")]
    count = {k: sum(int(s.get(k, 0)) for s in suites) for k in ("tests", "failures", "errors", "skipped")}
    bad = count["failures"] + count["errors"]
    return f"tests/gpu: {count['tests'] - bad - count['skipped']} passed, {bad} failed, {count['skipped']} skipped."


TRAINED = "influencer-500"  # run, and with .json results
GOAL = 0.995


def training_of(folder: Path, on_gpu: bool) -> str:
    """Minutes of the training on a GPU, and the double majority on test events that it came to."""
    if not on_gpu or not (folder / f"{TRAINED}.json").exists():
        return f"Training {TRAINED} until {GOAL} double majority has not been run on a GPU."
    steps, seconds = 0, 0.0
    for row in read_metrics(folder / TRAINED):
        if row["kind"] == "train":
            steps, seconds = row["step"], seconds + row["step_s"] * (row["step"] - steps)
    metrics = json.loads((folder / f"{TRAINED}.json").read_text())["candidates"]["metrics"]
    found = metrics["double_majority_efficiency"]
    said = f"{found['value']:.4f} ({found['numerator']:,} / {found['denominator']:,}), goal >= {GOAL}"
    took = f"{steps:,} steps in {seconds / 60:.1f} minutes, without validation and checkpoints"
    return f"Training {TRAINED} from new weights: {took}; double majority of candidate lists {said}."


def results_of(folder: Path) -> list[dict[str, Any]]:
    """What was measured, part by part."""
    files = [folder / f"bench-{part}.json" for part in PARTS]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def devices_of(folder: Path, results: Sequence[dict[str, Any]]) -> list[str]:
    """The GPUs that something ran on: of the results or, where only tests have run, of the file `device`."""
    found = {result["machine"].get("gpu", "") for result in results} - {""}
    if not results and (said := folder / "device").exists():
        gpu = said.read_text().strip().partition(", ")[2]
        found |= {gpu} if gpu and not gpu.startswith("no GPU") else set()
    return sorted(found)


def page(folder: Path) -> str:
    """The page as Markdown."""
    results = results_of(folder)
    figures, devices = figures_of(results), devices_of(folder, results)
    rehearsed = bool(results) and not devices
    lines = [HEAD]
    if devices:
        commits = ", ".join(sorted({str(result["commit"]) for result in results})) or "not said"
        of_each = sorted({f"{name} {version}" for result in results for name, version in result["versions"].items()})
        lines += [f"GPU: {', '.join(devices)}. Commits: {commits}. Versions: {', '.join(of_each) or 'not said'}.", ""]
    elif rehearsed:
        lines += ["This is a **rehearsal on the CPU**: no figure of it is a GPU's.", ""]
    else:
        lines += ["**No GPU has been at hand yet: nothing below has been run on one.**", ""]
    lines += [tests_of(folder), "", training_of(folder, bool(devices)), "", "## Goals", ""]
    lines += ["| figure | of what | goal | median (range) | |", "|---|---|---|---|---|"]
    lines += [goal.row(figures) for goal in GOALS]
    lines += ["", "## All figures", ""]
    rows = [
        f"| `{name}` | {f['median']:.3g} | {f['min']:.3g} – {f['max']:.3g} | {f['unit']} | {f['meaning']} |"
        for result in results
        for name, f in result["figures"].items()
    ]
    lines += (
        ["| figure | median | range | unit | meaning |", "|---|---|---|---|---|", *rows] if rows else [NOT_RUN + "."]
    )
    lines += ["", "## What ran", "", *ran(folder / "status.jsonl"), "", HOW]
    return "\n".join(lines)


def ran(path: Path) -> list[str]:
    """The pieces of work, their exit codes and seconds."""
    if not path.exists():
        return [NOT_RUN + "."]
    entries = list({e["name"]: e for e in map(json.loads, path.read_text().splitlines())}.values())
    said = {0: "done", 124: "stopped: time was up", 137: "killed: time was up", 125: "left out: no time left"}
    ends = [said.get(entry["rc"], f"exit code {entry['rc']}") for entry in entries]
    rows = [f"| {e['name']} | {end} | {e['seconds']} |" for e, end in zip(entries, ends, strict=True)]
    return ["| work | end | s |", "|---|---|---|", *rows]


HOW = """## How it is measured

- Events are straight tracks through twelve layers; weights are as initialised. Where a loss or a builder depends on
  what a model has learned, its outputs take the geometry of a trained model's (`hpctrack/benchmarks/measure.py`).
- Seconds are wall-clock, the device synchronised before and after; one repetition is left out as a warm-up.
- GiB are the peak of torch's allocator.
- The share of the roofline is the least time for the FLOP and bytes of a pass over the time that it took. FLOP and
  bytes are counted, operator by operator; what the device reaches is measured (`hpctrack/benchmarks/roofline.py`).
- Seconds of inference are of the model and the candidates, without reading the event.

## Building candidates

Inference builds on the GPU where a builder has a device form (`Builder.has_device_form`), and on the host where not.
Both forms give the same candidates. `tests/unit/test_device_forms.py` compares them on tensors of the CPU: equal bit
for bit, but for scores, whose sums have another order. Edges stay on the GPU from stage to stage.

On the GPU:

- `radius`: search by sorted cells; duplicates are removed in rounds.
- `greedy`, `condensation`: by definition one hit after the other takes the free hits around it. A free hit whose turn
  is before those of all free hits within the radius takes them whatever happens elsewhere, so all such hits act at a
  time. Hits get their turns in batches that double, which bounds the memory.
- `components`: the lowest hit of each component, by hooking roots and shortening paths.
- `walk`: the best sums by scattered maxima, then all undisputed paths at a time. Sums are of whole numbers, so their
  order does not matter.
- `edges`, `radius_graph`, `radius_edges`: the same torch operations as on the host.

On the host:

- `hits`: what it hands on are rows, by which the next stage reads its columns on the host.
- `dbscan`, `hdbscan`: they are scikit-learn's. HDBSCAN condenses a spanning tree, edge by edge. DBSCAN gives a hit
  between two clusters to the one that its own order finds first.
- `assignment`: an exact assignment goes along augmenting paths, one after the other.
- `hopfield`: its network cools in steps of few operations each, on sparse matrices of the host.
- `seeded`, `lines`, `slots`: they are for small events, on planes and images.

The last bit of a sigmoid may differ between numpy and torch. An edge within 1e-16 of a cut may fall on its other side.

## Compiled models and CUDA graphs

A CUDA graph plays again what was recorded, so all shapes must be the same. `hpctrack infer --compile` pads each event
with hits and edges of an event of its own (`hpctrack/events/padding.py`): to the next of eight sizes an octave, at most
an eighth more. Shapes then recur, for models whose shapes follow from the numbers of hits and edges: `interaction`,
`attention`, `convolution`, `filter`, and all models with the backbone `mlp`. On the CPU outputs are equal to rounding
(fp64: 1e-12). These figures are `gpu_compiled_…`.

Models with the backbones `neighbours` and `transformer`, as the influencer models have them, cannot be padded in any
one place:

- The nearest neighbours of `neighbours` are looked for within each event, by cells whose number and contents follow
  from where the hits lie. How many pairs are looked at, and in how many pieces, is read back from the GPU each time.
- In `transformer` each event's hits attend to that event's alone, in pieces as large as the event. Padding hits within
  the event itself would be seen by true ones, and change what these are computed from.
- Around the search all shapes are [hits, neighbours]. There CUDA graphs would hold, with the search between them. That
  is not built.

With backbone `neighbours` `--compile` compiles what is between the searches: message steps, which are attention over
neighbours, and features of pairs. It does so once for all sizes. Searches, encoder and heads stay as they are.
Rounding may change which of two hits is the nearer, so outputs are equal but for those few hits, and to rounding for
the others. On the CPU it gains nothing that a machine with other work shows: `hpctrack bench gpu --parts
compiled-influencer` (influencer-full, weights of seed 0, 19,800 hits, one of two cores, Python 3.11.7, torch 2.13.0)
gives 1.11 x the seconds without (0.82 – 1.30, 7 repeats). On a GPU it has not been run.

The edge update and the filter are plain torch operations, which `--compile` fuses; own kernels are not built.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--markdown", type=Path, help="write the page here, not to the screen")
    p.add_argument(
        "--json", type=Path, help="write all figures of a GPU here, if there are any (gpu.json in docs/benchmarks)"
    )
    args = p.parse_args(argv)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: no such folder")
    text, results = page(args.folder), results_of(args.folder)
    if args.json and (figures := figures_of(results)):
        first = next(result for result in results if result["machine"].get("gpu"))
        write_json_output(args.json, first | {"figures": figures, "command": "bash launch/gpu_check.sh"})
    if args.markdown:
        write_output(args.markdown, text)
    else:
        print(text)


if __name__ == "__main__":
    main()

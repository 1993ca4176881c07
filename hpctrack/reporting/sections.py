"""The sections of the report, each a piece of HTML made from results, run folder and display.

What was not given is said where it would stand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np

from hpctrack import __version__
from hpctrack.evaluation.tally import READINGS
from hpctrack.process.versions import versions
from hpctrack.reporting import page, plots
from hpctrack.reporting.display import CROWDED_TARGETS, Display, display_svgs, sector
from hpctrack.reporting.plots import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    RED,
    SIZE,
    TRACK_COLOURS,
    VARIABLES,
    bin_edges,
    grid,
    new_figure,
    scale_axis,
    styled,
    svg,
    symbol,
)
from hpctrack.results.content import HEADINGS, counts_text, hidden_hits
from hpctrack.training.run_folder import Run

OF_GPUS = (  # rows of what training/sensors.py reads
    ("GPUs busy, median", "gpu_busy", "{:.0%}", "of the time, mean of the GPUs"),
    ("Power of a GPU, median", "gpu_power_w", "{:.0f} W", "mean of the GPUs"),
    ("Energy of an event, median", "energy_j_per_event", "{:.3g} J", "of all GPUs, forward and backward"),
)
NAMES = {"q_over_pt": "q / p_T", "phi": "φ", "theta": "θ", "d0": "d0", "z0": "z0"}


def section(results: dict) -> list[str]:
    """The section, if the candidates have track parameters."""
    summed = results.get("resolutions")
    if not summed:
        return []
    head = ["Parameter", "Matched", "Median deviation", "Width", "Pull mean", "Pull width", "Pulls beyond 5 widths"]
    rows = [[_name(name), *_cells(number)] for name, number in summed["parameters"].items()]
    pictures = [
        (figure(number[variable], variable, NAMES[name].replace("p_T", "$p_T$"), number["unit"]), f"{name}, {variable}")
        for variable in ("pt", "eta")
        for name, number in summed["parameters"].items()
    ]
    caption = (
        "Width of the deviations (blue, left axis) and of the pulls (orange, right axis; 1: the estimated covariance "
        "is right). Width: half of the central 68 %. Vertical bars: one standard deviation. The outermost bins take in "
        "everything beyond; bins with few entries are left out."
    )
    note = f"{summed['selection']}. {summed['error_is']}.".replace("pT >=", "p_T ≥").replace(">=", "≥")
    parts = (page.table(head, rows), page.figures("three", pictures, caption), page.paragraph(note, "note"))
    return [page.section("How well track parameters are estimated", *parts)]


def _name(name: str) -> str:
    return page.prose(NAMES[name])


def _cells(number: dict) -> list[str]:
    if number["width"] is None:
        return [f"{number['n']:,}", *["–"] * 5]
    unit = escape(number["unit"])
    pulls = [f"{number[key]:.3f} ± {number[key + '_error']:.3f}" for key in ("pull_mean", "pull_width")]
    width = f"{number['width']:.3g} ± {number['width_error']:.1g} {unit}"
    return [f"{number['n']:,}", f"{number['bias']:.2g} {unit}", width, *pulls, f"{number['pull_outliers']:,}"]


@styled
def figure(rows: Sequence[dict], variable: str, name: str, unit: str) -> str:
    """Widths of residuals and pulls of one parameter in bins."""
    canvas, axes = new_figure(*SIZE)
    low, high = bin_edges(rows, variable)
    filled = [k for k, row in enumerate(rows) if row["width"] is not None]
    middle = np.sqrt(low * high) if variable == "pt" else (low + high) / 2
    beside = axes.twinx()
    for on, key, colour, marker in ((axes, "width", BLUE, "o"), (beside, "pull_width", ORANGE, "s")):
        value, error = (np.array([rows[k][of] for k in filled], dtype=float) for of in (key, f"{key}_error"))
        face = colour if on is axes else "white"
        on.errorbar(middle[filled], value, error, fmt=marker, color=colour, ms=4, lw=1.2, markerfacecolor=face)
        on.set_ylim(bottom=0)
    beside.axhline(1, color=FAINT, lw=0.8, zorder=0)
    scale_axis(axes, variable, low, high)
    axes.set(xlabel=VARIABLES[variable][0], ylabel=f"width ({unit})", title=name)
    grid(axes)
    return svg(canvas)


# ------------------------------------------------------------------------------------------------ sections


CENSUS = {
    "first_of_target": ("first match of a target", "#2f8f6b"),
    "duplicates_of_target": ("duplicate of a target", "#e0b23c"),
    "of_other_particles": ("match of another particle", "#9fb3c8"),
    "fakes": ("fake", "#c1272d"),
}


def lead(results: dict) -> str:
    """The line under the title: what was looked at."""
    return (
        f"{results['events']:,} events with {results['hits']:,} hits ({results['noise_hits']:,} noise) and "
        f"{results['target_particles']:,} target particles ({_pretty(results['selection']['text'])})."
    )


def _pretty(text: str) -> str:
    return text.replace(">=", "≥").replace("<=", "≤").replace("pT", "p_T").replace("|eta|", "|η|")


def headline(results: dict, references: Sequence[tuple[str, dict]]) -> str:
    """Cards, the table of all metrics, and where the candidates went."""
    lists, exclusive = (results[reading]["metrics"] for reading in READINGS)
    chosen = [
        (lists["efficiency"], "efficiency"),
        (lists["fake_rate"], "fake rate"),
        (lists["duplicate_rate"], "duplicate rate"),
        (exclusive["trackml_score"], "TrackML score, exclusive tracks"),
    ]
    cards = "".join(
        page.card(*page.rounded(number["value"], number["error"]), what, counts_text(number) + _unit(number))
        for number, what in chosen
    )
    rows = []
    for name, number in exclusive.items():
        what = _pretty(f"{number['numerator_is']} / {number['denominator_is']}")
        cells = [f"{escape(number['title'])}<small>{escape(what)}</small>"]
        cells += [_cell(results[reading]["metrics"].get(name)) for reading in READINGS]
        cells += [_cell(reference["candidates"]["metrics"].get(name, reference["exclusive"]["metrics"].get(name)))
                  for _, reference in references]  # fmt: skip
        rows.append(cells)
    head = [
        "Metric",
        *(HEADINGS[r].capitalize() for r in READINGS),
        *(f"Reference: {escape(n)}" for n, _ in references),
    ]
    where = []
    for reading in READINGS:
        census = results[reading]["census"]
        parts = [(f"{text}: {census[kind]:,}", census[kind], colour) for kind, (text, colour) in CENSUS.items()]
        if census["counted"]:
            short = f"; {census['short']:,} more have fewer than 3 hits and are not counted" if census["short"] else ""
            where.append(page.paragraph(f"{HEADINGS[reading].capitalize()}: {census['counted']:,}{short}", "note"))
            where.append(page.bar(parts))
    note = (
        "Errors are one standard deviation: half of the 68 % Wilson interval for fractions (candidates that share hits "
        "are not independent, so for them it is a lower bound), the spread between events for the score. Counts are "
        f"added over all events before they are divided. Targets: {_pretty(results['selection']['text'])}. A candidate "
        "matched to a particle that is no target is neither a fake nor a match to a target."
    )
    note += "".join(f" {_pretty(text[0].upper() + text[1:])}." for text in hidden_hits(results))
    if results["source"]["events_in_dataset"] > results["events"]:
        left_out = results["source"]["events_in_dataset"] - results["events"]
        note += f" {left_out:,} events of the dataset have no candidates and are not counted."
    return "\n".join(
        [
            f'<div class="cards">{cards}</div>',
            page.section("How good the candidates are", page.table(head, rows), page.paragraph(note, "note")),
            page.section(
                "Where every candidate goes", *(where or [page.missing("There are no candidates of 3 hits.")])
            ),
        ]
    )


def _unit(number: dict) -> str:
    return " events" if "score" in number["title"] else ""


def _cell(number: dict | None) -> str:
    if number is None:
        return "<small>one track a hit only</small>"
    value, error = page.rounded(number["value"], number["error"])
    return f"{value} {escape(error)}<small>{counts_text(number)}{_unit(number)}</small>"


def rates(results: dict, references: Sequence[tuple[str, dict]]) -> str:
    """Efficiency and fake rate against transverse momentum, pseudorapidity and number of tracks."""
    captions = {
        "efficiency": "Efficiency: share of the target particles that have a candidate of at least 3 hits of which "
        "they own more than half.",
        "fake_rate": "Fake rate: share of the candidates of at least 3 hits of which no particle owns more than half. "
        "A fake has no true momentum, so candidates are binned by what their own hits say: a circle through the beam "
        "line in the dataset's field, and the mean direction.",
    }
    common = (
        " Vertical bars: 68 % intervals; horizontal bars: bins. Grey columns, without a scale: what the rate of the "
        "first series is a fraction of. The outermost bins take in everything beyond. The vertical axis is cut to "
        f"where the points are; bars of bins with fewer than {plots.FEW} entries may run out of it."
    )
    names = ["candidate lists", "exclusive tracks", *(f"{name}, candidate lists" for name, _ in references)]
    entries = [(symbol(number), name) for number, name in enumerate(names)]
    parts = []
    for metric, caption in captions.items():
        title = results["candidates"]["metrics"][metric]["title"]
        pictures = []
        for variable, labels in plots.VARIABLES.items():
            series = [results[reading]["binned"][metric].get(variable, []) for reading in READINGS]
            series += [reference["candidates"]["binned"][metric].get(variable, []) for _, reference in references]
            if any(series):  # or a dataset does not tell it
                uri = plots.rate_figure(metric, variable, series, title)
                pictures.append((uri, f"{title} against {labels[metric == 'fake_rate']}"))
        parts += [page.key(entries), page.figures("three", pictures, caption + common)]
        common = ""
    return page.section("Where they are found and where they are lost", *parts)


def losses(run: Run | None) -> str:
    """Loss, learning rate and gradient norm of the training run."""
    title = "Training"
    if run is None:
        return page.section(title, page.missing("No run folder was given (--run), so there are no loss curves."))
    if not run.train and not run.valid:
        return page.section(title, page.missing(f"{run.folder} has no logged steps in metrics.jsonl."))
    pictures = [
        (plots.loss_figure(run.train, run.valid), "Loss against optimizer step"),
        (plots.learning_rate_figure(run.train), "Learning rate against optimizer step"),
        (plots.gradient_figure(run.train), "Gradient norm against optimizer step"),
    ]
    caption = (
        f"{len(run.train):,} logged training steps and {len(run.valid):,} validations. Each point of the curves is the "
        "mean over the steps since the point before; terms are before their weights. The gradient norm is before "
        "clipping."
    )
    if run.unreadable:
        caption += f" {run.unreadable} lines of metrics.jsonl could not be read and are left out."
    entries = [(_line(BLUE, 2.4), "total loss, training"), (_ring(INK), "total loss, validation")]
    names = [(key.removeprefix("loss/").replace("_", " "), colour) for key, colour in plots.loss_terms(run.train)]
    entries += [(_line(colour, 1.6), f"{name}, training") for name, colour in names]
    return page.section(title, page.key(entries), page.figures("three", pictures, caption))


def _line(colour: str, width: float) -> str:
    return f'<path d="M3 7H27" stroke="{colour}" stroke-width="{width}"/>'


def _ring(colour: str) -> str:
    return f'<circle cx="15" cy="7" r="3.6" fill="#fff" stroke="{colour}" stroke-width="1.4"/>'


def event_display(display: Display | None, results: dict) -> str:
    """An event in x-y and r-z."""
    title = "One event"
    if display is None:
        return page.section(
            title, page.missing("No candidates were given (--candidates, --data), so no event is drawn.")
        )
    rows = {row["event_id"]: row for row in results["per_event"]}
    row = rows.get(display.event_id)
    found = f" {row['exclusive']['efficiency'][0]:,} of them found." if row else ""
    caption = (
        f"Event {display.event_id}: {len(display.x):,} hits, {display.n_targets:,} target particles "
        f"({_pretty(results['selection']['text'])}).{found} First view: along the beam. Second: distance from the beam "
        "against position along it, not to scale. Shown are the exclusive tracks (each hit in at most one) of at least "
        "3 hits, a colour a track; lines join a track's right hits from the inside outwards and are no fits. "
    )
    if display.targets_only:
        caption += "Of the tracks only those of targets and the fakes are drawn; "
        caption += "all other hits are grey." if len(display.others) else "all other hits are left out."
    else:
        caption += "All hits of the event are drawn."
    blue = TRACK_COLOURS[0]
    entries = [
        (f'<path d="M1 7H29" stroke="{blue}" stroke-width="1.4"/><circle cx="15" cy="7" r="4" fill="{blue}"/>',
         f"matched track ({len(display.tracks):,})"),
        (f'<path d="M11 3l8 8m0-8l-8 8" stroke="{RED}" stroke-width="2"/>',
         f"wrong hit in it ({sum(map(len, display.wrong)):,})"),
        (f'<path d="M1 7H29" stroke="{RED}" stroke-width="1.4" stroke-dasharray="2 2"/><rect x="11" y="3" width="8" '
         f'height="8" fill="#fff" stroke="{RED}" stroke-width="1.4"/>', f"fake track ({len(display.fakes):,})"),
        (f'<path d="M1 7H29" stroke="{INK}" stroke-width="1.4" stroke-dasharray="5 2"/><circle cx="15" cy="7" r="4" '
         f'fill="#fff" stroke="{INK}" stroke-width="1.4"/>', f"missed target ({len(display.missed):,})"),
    ]  # fmt: skip
    if len(display.others):
        entries.append(('<circle cx="15" cy="7" r="3" fill="#b9c0c9"/>', display.others_text()))
    xy, rz = display_svgs(display)
    pictures = [(xy, f"Event {display.event_id} in x and y"), (rz, f"Event {display.event_id} in z and r")]
    parts = [page.key(entries), page.figures("display", pictures, caption)]
    if display.n_targets > CROWDED_TARGETS:
        part, width = sector(display)
        pictures = [(uri, f"A sector of event {display.event_id}") for uri in display_svgs(part)]
        text = (
            f"The same event, only what lies within {width / 2:.1f}° of the x axis: {len(part.tracks):,} matched "
            f"tracks, {len(part.fakes):,} fakes, {len(part.missed):,} missed targets. The first view is stretched "
            "across the sector; wrong hits far outside it are seen in the second view only."
        )
        parts.append(page.figures("display", pictures, text))
    return page.section(title, *parts)


def timings(run: Run | None, results: dict, references: Sequence[tuple[str, dict]] = ()) -> str:
    """Speed of training and of inference, with that of the references."""
    pictures, rows, notes, split = [], [], [], []
    if run is not None and run.train:
        pictures.append((plots.throughput_figure(run.train), "Training speed against optimizer step"))
        step, data, speed = (_median(run.train, key) for key in ("step_s", "data_s", "hits_per_s"))
        if step is not None and data is not None:
            split.append(_training_split(run, step, data))
            rows.append(["Training step, median", f"{_seconds(step)}", f"of which waiting for data {data / step:.1%}"])
        if speed is not None:
            rows.append(["Training speed, median", f"{speed:,.0f} hits/s", "all ranks together"])
        of_gpus = [(text, _median(run.train, key), form, note) for text, key, form, note in OF_GPUS]
        rows += [[text, form.format(value), note] for text, value, form, note in of_gpus if value is not None]
        memory = [row["peak_gib"] for row in run.train if row.get("peak_gib") is not None]
        if memory:
            rows.append(["Training memory, peak", f"{max(memory):.2f} GiB", "of one process"])
    else:
        notes.append(page.missing("No training speed: no run folder with logged steps was given (--run)."))
    clock = results.get("timings")
    if clock and clock["events"]:
        pictures.append((plots.inference_figure(clock), "Inference seconds against hits"))
        steps = (("reading", "read_s"), ("model", "model_s"), ("building candidates", "build_s"))
        mean = [(text, clock["steps"][name]["sum"] / clock["events"]) for text, name in steps]
        split.append(_split("Inference of an event, mean", mean))
        rows.append(["Inference of an event", *_inference(clock)])
    else:
        notes.append(page.missing("No inference timings: the candidates folder has no timings.jsonl."))
    for name, reference in references:
        if (clock := reference.get("timings")) and clock["events"]:
            rows.append([f"Reference: {name}", *_inference(clock)])
    parts = [*split, *notes]
    if rows:
        parts.insert(0, page.table(["Step", "Time or speed", ""], [[escape(cell) for cell in row] for row in rows]))
    if pictures:
        caption = "Wall-clock time. Training: mean since the last logged step. Inference: hits that the model saw."
        parts.insert(1 if rows else 0, page.figures("three", pictures, caption))
    return page.section("How long it takes", *parts)


def _inference(clock: dict) -> tuple[str, str]:
    """Median seconds of an event, and how they were measured."""
    speed = f"{clock['hits_per_s']:,.0f} hits/s a rank; " if clock["hits_per_s"] else ""
    ranks = f"{clock['events']:,} events on {clock['ranks']} rank{'s' if clock['ranks'] > 1 else ''}"
    return f"{_seconds(clock['steps']['total_s']['median'])} an event, median", speed + ranks


def _training_split(run: Run, step: float, data: float) -> str:
    """A training step in parts: from the run's own report at its end, else only what it waited for data."""
    if not run.waste:
        return _split("A training step, median", [("compute", step - data), ("waiting for data", data)])
    names = {
        "compute": "computing",
        "data": "waiting for data",
        "wait": "waiting for the slowest rank",
        "communicate": "summing gradients",
        "checkpoint": "checkpoints",
    }
    if "share/exchange" in run.waste:
        names["exchange"] = "exchanging rows of events that ranks share"
    shares = [(text, run.waste["step_s"] * run.waste.get(f"share/{name}", 0.0)) for name, text in names.items()]
    return _split("A training step, mean", shares)


def _split(what: str, steps: Sequence[tuple[str, float]]) -> str:
    """Seconds of the steps of some work, as a bar of their shares."""
    total = sum(seconds for _, seconds in steps)
    colours = (BLUE, "#86b1de", ORANGE, "#6b7280", "#c9ced6", "#3b4a5a")
    if not total:
        return ""
    bar = [(f"{t}: {_seconds(x)} ({x / total:.0%})", x, c) for (t, x), c in zip(steps, colours, strict=False)]
    return page.paragraph(f"{what}: {_seconds(total)}", "note") + page.bar(bar)


def _median(rows: Sequence[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.median(values)) if values else None


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def provenance(run: Run | None, results: dict) -> str:
    """Commands, configuration, versions."""
    source = results["source"]
    rows = [
        ["Evaluated with", f"<code>{escape(' '.join(results['command']))}</code>"],
        ["Candidates", f"<code>{escape(source['candidates'])}</code>"],
        [
            "Dataset",
            f"<code>{escape(source['dataset'])}</code>"
            f"<small>fingerprint {escape(source['dataset_fingerprint'])}</small>",
        ],
        ["hpctrack", f"{escape(results['hpctrack'])} evaluated, {escape(__version__)} wrote this page"],
    ]
    trained = run.versions if run else None
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in (trained or versions()).items())
    rows.append(["Trained with" if trained else "Written with", listed])
    body = "".join(
        f'<tr><th scope="row">{name}</th><td style="white-space:normal">{value}</td></tr>\n' for name, value in rows
    )
    parts = [f'<div class="scroll"><table>\n<tbody>\n{body}</tbody>\n</table></div>']
    parts.append(page.folded("Settings of the inference", json.dumps(source["attributes"], indent=1, sort_keys=True)))
    if run:
        parts.append(page.folded("Configuration of the run (config.yaml)", run.config))
    else:
        parts.append(page.missing("No configuration: no run folder was given (--run)."))
    return page.section("Configuration and versions", *parts)

"""Results as text for the terminal."""

from __future__ import annotations

from hpctrack.reporting.tally import READINGS

HEADINGS = {"candidates": "candidate lists (may overlap)", "exclusive": "exclusive tracks (one per hit)"}


def table(results: dict) -> str:
    """The metrics as text: name, value ± error, numerator / denominator."""
    lines = [
        f"{results['events']:,} events, {results['hits']:,} hits, {results['target_particles']:,} target particles "
        f"({results['selection']['text']})"
    ]
    left_out = results["source"]["events_in_dataset"] - results["events"]
    if left_out:
        lines.append(f"note: {left_out:,} of the dataset's events have no candidates and are not counted")
    lines += [f"note: {note}" for note in hidden_hits(results)]
    for reading in READINGS:
        lines += ["", f"{HEADINGS[reading]:<31s}{'value ± error':<20s}numerator / denominator"]
        for number in results[reading]["metrics"].values():
            lines.append(f"  {number['title']:<29s}{value_text(number):<20s}{counts_text(number)}")
    return "\n".join(lines)


def hidden_hits(results: dict) -> list[str]:
    """What inference did not see of the events, in words; the metrics count all hits and particles nevertheless."""
    seen = results["source"]["attributes"].get("selection", {})
    notes = []
    if seen.get("noise") is False:
        notes.append("inference saw no noise hits")
    if seen.get("other_hits") is False:
        cuts = f"pT >= {seen.get('pt_min_gev', 0):g} GeV, >= {seen.get('min_hits', 3)} hits"
        notes.append(f"inference saw only hits of particles with {cuts}; the TrackML score counts all hits")
    return notes


def value_text(number: dict) -> str:
    """`0.9812 ± 0.0031`; a dash where nothing was counted."""
    if number["value"] is None:
        return "–"
    return f"{number['value']:.4f}" + (f" ± {number['error']:.4f}" if number["error"] is not None else "")


def counts_text(number: dict) -> str:
    """`393 / 400`; the score's numerator has decimals."""
    top = number["numerator"]
    return f"{f'{top:,}' if isinstance(top, int) else f'{top:,.3f}'} / {number['denominator']:,}"

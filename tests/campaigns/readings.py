"""The two readings of candidates as the studies show them."""

from __future__ import annotations

from hpctrack.evaluation.matching import match_candidates, match_exclusive

READINGS = {"candidates": match_candidates, "exclusive": match_exclusive}
TITLES = {"candidates": "by radius or seeds alone, as in the paper", "exclusive": "after duplicate removal"}


def heading(reading: str) -> list[str]:
    """Markdown lines before a reading's table."""
    title = TITLES[reading]
    return ["", f"{title[0].upper()}{title[1:]}:", ""]

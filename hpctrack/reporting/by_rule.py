"""The section of the report that counts by other groups' definitions, if `hpctrack evaluate --rules` did."""

from __future__ import annotations

from html import escape

from hpctrack.reporting import page
from hpctrack.results.content import counts_text, rules_table

TITLE = "By other groups' definitions"
NOTE = (
    "Exclusive tracks. Each rule has its own targets and its own hits, and what it calls efficiency and fakes is its "
    "own: numbers of two rules are not alike, and none takes the place of those above. A dash: the rule has no such "
    "number. Errors are one standard deviation, half of the 68 % Wilson interval. Each definition: "
    "docs/reference/metrics.md."
)


def by_rule(results: dict) -> list[str]:
    """The section, if the results have rules."""
    rules = results.get("rules")
    if not rules:
        return []
    titles = {key: number["title"] for rule in rules.values() for key, number in rule["exclusive"].items()}
    rows = []
    for name, rule in rules.items():
        about = f"{rule['who']}. {rule['target_particles']:,} targets: {rule['selection']}."
        label = f"{escape(name)}<small>{page.prose(about)}</small>"
        rows.append([label, *(_cell(rule["exclusive"].get(key)) for key in titles)])
    table = page.table(["Rule", *map(escape, titles.values())], rows)
    text = page.folded("The same with candidate lists, as a table", rules_table(results))
    sources = page.folded("Sources", "\n".join(f"{name}: {rule['source']}" for name, rule in rules.items()))
    return [page.section(TITLE, table, page.paragraph(NOTE, "note"), text, sources)]


def _cell(number: dict | None) -> str:
    if number is None:
        return "–"
    value, error = page.rounded(number["value"], number["error"])
    what = escape(f"{number['numerator_is']} / {number['denominator_is']}", quote=True)
    return f'<span title="{what}">{value} {escape(error)}</span><small>{counts_text(number)}</small>'

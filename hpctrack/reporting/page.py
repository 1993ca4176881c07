"""Layout of the report: one HTML page with its style and its pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CSS = """
:root { --ink: #1d2733; --muted: #5f6b7a; --line: #e1e5ea; --soft: #f5f7f9; --blue: #2563a8; --red: #c1272d; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0 1rem; max-width: 76ch; }
.lead { color: var(--muted); margin-bottom: 1.6rem; }
.cards { display: grid; gap: .9rem; margin: 1.4rem 0 1.8rem;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
.card { background: var(--soft); border-radius: 8px; padding: .9rem 1.1rem; }
.card b { display: block; font-size: 1.75rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.card b small { font-size: .95rem; font-weight: 450; color: var(--muted); }
.card span { color: var(--muted); font-size: .88rem; display: block; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .55rem 1rem .55rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-weight: 550; font-size: .86rem; border-bottom-color: #b6bfc9; }
tbody th { font-weight: 600; min-width: 11rem; max-width: 26rem; }
td { white-space: nowrap; }
th small, td small { display: block; font-weight: 400; color: var(--muted); font-size: .82rem; line-height: 1.4; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; max-width: none; height: auto; display: block; }
figcaption, .note { color: var(--muted); font-size: .88rem; margin: .35rem 0 1rem; max-width: 92ch; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.2rem; }
sub { line-height: 0; }
.display { display: grid; grid-template-columns: minmax(0, 5.6fr) minmax(0, 9.2fr); gap: .6rem; align-items: start; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; margin: .6rem 0;
  font-size: .9rem; }
.key svg { width: 30px; height: 14px; vertical-align: -2px; margin-right: .45rem; }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden; margin: .3rem 0 .5rem;
  background: var(--soft); }
.bar i { display: block; min-width: 2px; }
.missing { background: var(--soft); border-left: 3px solid #b6bfc9; padding: .7rem 1rem; border-radius: 0 6px 6px 0;
  color: var(--muted); max-width: none; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--blue); }
pre { background: var(--soft); border-radius: 8px; padding: 1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.45; }
code { font-size: .92em; overflow-wrap: anywhere; }
@media (max-width: 860px) { .three, .display { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 620px) { .display > div { overflow-x: auto; } .display > div:last-child img { width: 700px; }
  main { padding: 1.4rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  h2 { margin-top: 2.2rem; } .card b { font-size: 1.45rem; } tbody th { min-width: 9rem; } }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The whole document; `title` and `lead` are plain text, `sections` HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{prose(lead)}</p>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it (HTML)."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph of the given class."""
    return f'<p class="{kind}">{prose(text)}</p>' if kind else f"<p>{prose(text)}</p>"


def prose(text: str) -> str:
    """Plain text as HTML; `p_T` becomes a symbol with its index."""
    return escape(text).replace("p_T", "<i>p</i><sub>T</sub>")


def missing(text: str) -> str:
    """Says what is not on the page, and why."""
    return paragraph(text, "missing")


def image(uri: str, alt: str) -> str:
    """A picture that is part of the page."""
    return f'<img src="{uri}" alt="{escape(alt, quote=True)}">'


def figures(kind: str, pictures: Sequence[tuple[str, str]], caption: str) -> str:
    """Pictures (data URI, text for those who cannot see it) in a row of class `kind`, with one caption."""
    images = "".join(f"<div>{image(uri, alt)}</div>" for uri, alt in pictures)
    return f'<figure>\n<div class="{kind}">{images}</div>\n<figcaption>{prose(caption)}</figcaption>\n</figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML, the first of each row is its heading. Wide ones scroll on their own."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def card(value: str, error: str, what: str, counts: str) -> str:
    """A headline number with its error, its name and its counts (plain text)."""
    plus_minus = f" <small>{escape(error)}</small>" if error else ""
    text = f"<span>{escape(what)}</span><span>{escape(counts)}</span>"
    return f'<div class="card"><b>{escape(value)}{plus_minus}</b>{text}</div>'


def bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """Shares of a whole as one bar with a key: (text of the key, amount, colour)."""
    total = sum(amount for _, amount, _ in parts)
    pieces = "".join(
        f'<i style="width:{100 * amount / total:.3f}%;background:{colour}"></i>'
        for _, amount, colour in parts
        if amount
    )
    entries = "".join(f"<li>{dot(colour)}{escape(text)}</li>" for text, _, colour in parts)
    return f'<div class="bar">{pieces}</div>\n<ul class="key">{entries}</ul>'


def dot(colour: str) -> str:
    """A small square of a colour, for keys."""
    square = f'<rect x="8" y="1" width="14" height="12" rx="3" fill="{colour}"/>'
    return f'<svg viewBox="0 0 30 14" aria-hidden="true">{square}</svg>'


def key(entries: Sequence[tuple[str, str]]) -> str:
    """A key of symbols (content of a 30 x 14 SVG) and plain text."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 14" aria-hidden="true">{symbol}</svg>{escape(text)}</li>' for symbol, text in entries
    )
    return f'<ul class="key">{items}</ul>'


def folded(summary: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def rounded(value: float | None, error: float | None) -> tuple[str, str]:
    """Value and error with as many decimals as the error has meaning (two figures, 2 to 4 decimals)."""
    if value is None:
        return "–", ""
    decimals = 4
    if error:
        decimals = next((d for d in (2, 3) if error >= 10 ** (1 - d)), 4)
    return f"{value:.{decimals}f}", f"± {error:.{decimals}f}" if error is not None else ""

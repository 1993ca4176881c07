"""Studies (tests/campaigns) in the report: their Markdown and the pictures it names, as sections of the page.

Of Markdown what the studies write: pictures on lines of their own, tables, headings, paragraphs, `code`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.reporting import page

PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<name>[^)]*)\)")
RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")  # between the head of a table and its rows
PNG = b"\x89PNG\r\n\x1a\n"


def sections(folder: Path) -> list[str]:
    """A section (HTML) for each Markdown file of a study's folder; InputError if there is none, or one is not whole."""
    if not folder.is_dir():
        raise InputError(f"--study {folder}: no such folder")
    files = sorted(folder.glob("*.md"))
    if not files:
        raise InputError(f"--study {folder}: no table (*.md) in it; the study writes it at its end, so run it (again)")
    return [section(path) for path in files]


def section(path: Path) -> str:
    """One Markdown file; its title is its first heading, else the text of its first picture, else its name."""
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text ({error}); run the study again") from None
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: empty; run the study again")
    picture = PICTURE.match(next((line for line in lines if PICTURE.match(line)), ""))
    title = picture["alt"] if picture and picture["alt"] else path.stem.replace("_", " ")
    if first.startswith("# "):
        title = first.removeprefix("# ")
        lines.remove(first)
    return page.section(title[0].upper() + title[1:], *blocks(lines, path))


def blocks(lines: Sequence[str], path: Path) -> Iterator[str]:
    """HTML of the pieces that blank lines part; a picture is one by itself."""
    piece: list[str] = []
    for line in [*lines, ""]:
        picture = PICTURE.fullmatch(line.strip())
        if piece and (picture or not line.strip() or line.startswith("|") != piece[0].startswith("|")):
            yield block(piece, path)
            piece = []
        if picture:
            yield f"<figure>{page.image(embed(path, picture['name']), picture['alt'] or path.stem)}</figure>"
        elif line.strip():
            piece.append(line.strip())


def block(lines: Sequence[str], path: Path) -> str:
    """A table, a heading or a paragraph."""
    if lines[0].startswith("|"):
        return table(lines, path)
    if lines[0].startswith("#") and len(lines) == 1:
        return f"<h3>{inline(lines[0].lstrip('# '))}</h3>"
    return f"<p>{inline(' '.join(lines))}</p>"


def table(lines: Sequence[str], path: Path) -> str:
    """A Markdown table; InputError if it is none."""
    if len(lines) < 2 or not RULE.fullmatch(lines[1]):
        raise InputError(f"{path}: expected a line |---|… below '{lines[0]}'")
    head, *rows = ([inline(cell.strip()) for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:]))
    for line, row in zip(lines[2:], rows, strict=True):
        if len(row) != len(head):
            raise InputError(f"{path}: {len(row)} cells instead of {len(head)} in the row '{line}'")
    return page.table(head, rows)


def inline(text: str) -> str:
    """Plain text with `code` as HTML."""
    parts = text.split("`")
    return "".join(f"<code>{escape(part)}</code>" if k % 2 else page.prose(part) for k, part in enumerate(parts))


def embed(path: Path, name: str) -> str:
    """A picture beside the Markdown file, as a data URI; InputError if it is not there or no PNG."""
    if Path(name).name != name:
        raise InputError(f"{path}: picture '{name}': only a PNG in the same folder can be part of the page")
    picture = path.with_name(name)
    if not picture.is_file():
        raise InputError(f"{picture}: missing, but {path.name} shows it; run the study again")
    content = picture.read_bytes()
    if not content.startswith(PNG):
        raise InputError(f"{picture}: not a PNG; run the study again")
    return "data:image/png;base64," + base64.b64encode(content).decode()

"""The documentation leads somewhere: each link, each heading that a link names, each page that code names."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_NAMED = re.compile(r"(?<![\w/.-])docs/(?![\w./-]*NAME\.md)[\w./-]*\w")  # NAME.md stands for any


def tracked(*patterns: str) -> list[Path]:
    """Files of the project, those that git does not know yet included."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    found = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({ROOT / name for name in found if (ROOT / name).exists()})


def texts(page: Path) -> str:
    """The page's Markdown; of a notebook its cells of text."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in _HEADING.findall(_FENCED.sub("", texts(page))))
    names = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain]
    return set(names) | {f"{name}-{n}" for name in names for n in range(1, names.count(name))}


def links(page: Path) -> Iterator[str]:
    """The relative links of a page."""
    for target in _LINK.findall(_CODE.sub("", _FENCED.sub("", texts(page)))):
        if not re.match(r"[a-z]+:", target):
            yield unquote(target)


def broken(page: Path) -> Iterator[str]:
    """What is wrong with a page's links, one line each."""
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: ({link}): there is no {name}"
        elif anchor and target.suffix in (".md", ".ipynb") and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: ({link}): {target.relative_to(ROOT)} has no such heading"


def test_every_link_of_every_page_leads_somewhere():
    pages = tracked("*.md", "*.ipynb")
    assert len(pages) > 20 and sum(len(list(links(page))) for page in pages) > 50
    found = [line for page in pages for line in broken(page)]
    assert not found, "\n".join(found)


def test_pages_that_code_and_pages_name_are_there():
    files = (path for path in tracked("*.py", "*.sh", "*.yaml", "*.md") if path.name != "CHANGELOG.md")
    named = {(path.relative_to(ROOT).as_posix(), name) for path in files for name in _NAMED.findall(path.read_text())}
    found = [f"{path} names {name}" for path, name in sorted(named) if not (ROOT / name).exists()]
    assert not found, "\n".join(found)

"""The code blocks of documentation pages, and what comments before them say about running them.

A block is run as it stands, unless an HTML comment on the lines right before it says otherwise:

    <!-- runs: never, REASON -->        it is not run
    <!-- runs: slurm -->                it is run on a Slurm cluster, by tests/campaigns/docs_path.py
    <!-- runs: in FILE -->              FILE runs these commands
    <!-- with: events=2 seed=3 -->      smaller values of --events, events= or --seed: each must stand in the block

A ```python, ```yaml or ```diff block is a file to save, under the name in its first line (`# NAME`), or a patch.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "docs/how-to/README.md"  # makes the data and the run of the other how-to pages
PAGES = [README, *sorted((ROOT / "docs/how-to").glob("*.md"))]
COPIED = ("hpctrack", "configs", "launch", "slurm")
_BLOCK = re.compile(r"((?:^<!-- .* -->\n)*)^```(\w+)(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
_COMMENT = re.compile(r"<!-- (runs|with): (.*) -->")
_VALUE = r"""('[^']*'|"[^"]*"|[^\s'"]+)"""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and text, and what its comments say."""

    where: str
    language: str
    text: str
    runs: str
    values: dict[str, str]

    @property
    def reason(self) -> str:
        """Why it is not run: after `never,`; empty otherwise."""
        return self.runs.partition("never,")[2].strip()

    @property
    def elsewhere(self) -> str:
        """The file that runs it; empty otherwise."""
        return self.runs.removeprefix("in ").strip() if self.runs.startswith("in ") else ""

    def script(self) -> str:
        """What bash is to do: the commands with the smaller values, or saving the file. ValueError names the place."""
        if self.language == "bash":
            return self._with_values()
        if self.language == "diff":
            return _here("git apply -p0", self.text)
        name = re.match(r"# (\S+)\n", self.text)
        return _here(f"cat > {shlex.quote(name[1])}", self.text) if name else ""

    def _with_values(self) -> str:
        text = self.text
        for name, value in self.values.items():
            pattern = rf"((?<![\w.-])(?:--{re.escape(name)} |{re.escape(name)}=)){_VALUE}"
            text, count = re.subn(pattern, lambda found, value=value: found[1] + shlex.quote(value), text)
            if not count:
                raise ValueError(f"{self.where}: has no {name} that could be {value}")
        return text


def _here(command: str, text: str) -> str:
    return f"{command} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, found = page.read_text(), []
    for match in _BLOCK.finditer(text):
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(2)) + 1}"
        said = dict(_COMMENT.findall(match[1]))
        values = dict(word.partition("=")[::2] for word in shlex.split(said.get("with", "")))
        found.append(Block(where, match[2], match[4], said.get("runs", ""), values))
    return found


def script(page: Path, runs: str = "") -> str:
    """All that a page runs, for one shell: its files, its blocks without a `runs`, and those that run by `runs`.

    Each block is told before it runs, so that a failure can be found.
    """
    parts = ["set -euo pipefail"]
    for block in blocks(page):
        if block.runs in ("", runs) and (commands := block.script()):
            parts += [f"echo '== {block.where}'", commands]
    return "\n".join(parts)


def clone(folder: Path) -> Path:
    """What a user has in `folder` after `git clone` and an installation, without documentation and tests."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment(folder: Path, *commands: Path) -> dict[str, str]:
    """Variables with which commands use the clone in `folder`, those in the folders `commands` first."""
    path = os.pathsep.join([*map(str, commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def changes_the_package(page: Path) -> bool:
    """Whether the page saves or patches files of the package."""
    return any(re.match(r"(# |--- )hpctrack/", block.text) for block in blocks(page) if block.language != "bash")

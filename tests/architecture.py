"""The rooms of the package and what they import; writes docs/explanation/architecture.md.

python tests/architecture.py --write
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/explanation/architecture.md"
ORDER = [  # each may import what stands before it
    *(
        "errors",
        "process",
        "registry",
        "numerics",
        "recipes",
        "named_recipes",
        "config_complaints",
        "config",
        "files",
        "storage",
        "planning",
        "simulation",
        "division",
        "events",
        "requirements",
    ),
    *(
        "formats",
        "graphs",
        "evaluation",
        "results",
        "models",
        "losses",
        "tracking",
        "parallel",
        "resources",
        "training",
    ),
    *("testing", "inference", "deployment", "stability", "inspection", "reporting", "benchmarks", "reference", "verbs"),
]
FILES = sorted((ROOT / "hpctrack").rglob("*.py"))
HEAD = """# Architecture

For whoever looks for a thing in the code, or a place for a new one. Written by `python tests/architecture.py --write`;
a test holds it current.

A room is a package, or a module, below `hpctrack/`. Each may import what stands above it in the table and nothing
below, so no two rooms import each other. The verbs at the end (`hpctrack train`, …) read a command line, build what it
asks for, and call it.

"""
PICTURE = """
## Who imports whom

An arrow goes from a room to one that it imports. Arrows that follow from others are left out: if A imports B, and B
imports C, then A may import C as well. `errors` and `process`, which nearly all use, are left out, too.

"""


def name_of(path: Path) -> str:
    """A file's dotted module, without the package's name."""
    return ".".join(path.relative_to(ROOT / "hpctrack").with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module, named without the package's name."""
    first = module.split(".")[0]
    return first if first in ORDER else "verbs"


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of the package."""
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("hpctrack") and (path.with_suffix(".py").exists() or path.is_dir())


def imports(path: Path) -> set[str]:
    """Absolute names of all modules imported anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative import"
            of_names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in of_names if is_module(name)}
            if not all(is_module(name) for name in of_names):
                found.add(node.module)
    return found


def rooms() -> dict[str, set[str]]:
    """What each room imports of the others."""
    found: dict[str, set[str]] = {room: set() for room in ORDER}
    for path in FILES:
        own = room_of(name_of(path))
        for name in imports(path):
            if name.startswith("hpctrack."):
                found[own].add(room_of(name.removeprefix("hpctrack.")))
    return {room: others - {room} for room, others in found.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of rooms that import each other, however far around."""
    reach = {room: reached(graph, room) for room in graph}
    of_room = {room: sorted(other for other in reach[room] if room in reach[other]) for room in graph}
    return sorted({tuple(group) for group in of_room.values() if group}, key=str)


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that `start` imports, directly or through others."""
    found, ahead = set(), list(graph[start])
    while ahead:
        room = ahead.pop()
        if room not in found:
            found.add(room)
            ahead += graph[room]
    return found


def page() -> str:
    """The page as Markdown."""
    graph = rooms()
    lines = ["| room | what is in it |", "|---|---|"]
    for room in ORDER:
        name = room if room == "verbs" else f"{room}/" if (ROOT / "hpctrack" / room).is_dir() else f"{room}.py"
        lines.append(f"| `{name}` | {purpose(room)} |")
    drawn = {a: graph[a] - {"errors", "process"} for a in ORDER if a not in ("errors", "process")}
    arrows = ["```mermaid", "flowchart BT"]
    for room, others in drawn.items():
        through = set().union(*(reached(drawn, other) for other in others)) if others else set()
        arrows += [f"  {room} --> {other}" for other in sorted(others - through, key=ORDER.index)]
    return HEAD + "\n".join(lines) + "\n" + PICTURE + "\n".join([*arrows, "```"]) + "\n"


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    if room == "verbs":
        return "The verbs and the command that finds them: parse, build, call."
    path = ROOT / "hpctrack" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (
        (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="The rooms of the package and what they import.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}; else print it")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

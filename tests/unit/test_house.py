"""The house: imports run one way, heavy packages stay in their rooms, files stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "hpctrack").rglob("*.py"))
ROOMS = [  # each may import from its own and from what stands before it
    {
        "errors",
        "arguments",
        "signals",
        "streams",
        "pools",
        "config",
        "recipes",
        "named_recipes",
        "versions",
        "data.schema",
        "__init__",
    },
    {"data", "graphs", "parallel", "simulation"},
    {"models", "losses", "tracking"},
    {"runtime"},
    {"entries"},
]
ONLY_IN = {
    "h5py": {"data.hdf5", "data.store", "data.candidates"},
    "deepspeed": {"parallel.zero"},
    "mpi4py": {"parallel.mpi"},
}
ENTRIES_WITHOUT_TORCH = ("report", "reporting", "evaluate")


def module(path: Path) -> str:
    parts = path.relative_to(ROOT / "hpctrack").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def level(name: str) -> int:
    for number, room in enumerate(ROOMS):
        if name in room or (name.split(".")[0] in room and name != "data.schema"):
            return number
    return len(ROOMS) - 1  # verbs, cli, bench, reporting


def imports(path: Path) -> set[str]:
    """Absolute names of all modules imported anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("hpctrack") and (path.with_suffix(".py").exists() or path.is_dir())


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_one_way(path):
    own = module(path)
    for name in imports(path):
        if name.startswith("hpctrack."):
            other = name.removeprefix("hpctrack.")
            assert level(other) <= level(own), f"{own} imports {other}"
        top = name.split(".")[0]
        assert own in ONLY_IN.get(top, {own}), f"{own} imports {top}"
    if own.split(".")[0] in ("models", "losses", "tracking"):
        assert not any(name.startswith("hpctrack.parallel") for name in imports(path)), f"{own} imports parallel"


def test_report_and_evaluate_never_import_torch():
    def reach(name: str, seen: set[str]) -> set[str]:
        path = ROOT.joinpath(*name.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if name in seen or not file.exists():
            return seen
        seen.add(name)
        for other in imports(file):
            seen.add(other.split(".")[0])
            if other.startswith("hpctrack"):
                reach(other, seen)
        return seen

    for entry in ENTRIES_WITHOUT_TORCH:
        assert "torch" not in reach(f"hpctrack.{entry}", set()), entry


def test_files_are_readable():
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] < 150
    assert sum(length > 400 for length in lengths) <= 3

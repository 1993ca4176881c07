"""The house: imports run one way, heavy packages stay in their rooms, files stay readable."""

from __future__ import annotations

import ast

import pytest

from tests.architecture import FILES, ORDER, PAGE, ROOT, circles, imports, name_of, page, room_of, rooms

ONLY_IN = {"h5py": "storage", "deepspeed": "parallel", "mpi4py": "parallel"}
ENTRIES_WITHOUT_TORCH = ("report", "reporting", "evaluate", "evaluation")
FILES_A_ROOM, LINES_A_FILE, LINES_OF_MOST = 9, 450, 150


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    own = room_of(name_of(path))
    for name in imports(path):
        if name.startswith("hpctrack."):
            other = room_of(name.removeprefix("hpctrack."))
            assert ORDER.index(other) <= ORDER.index(own), f"{name_of(path)} imports {name}"
        top = name.split(".")[0]
        assert own == ONLY_IN.get(top, own), f"{name_of(path)} imports {top}"


def test_no_rooms_import_each_other():
    assert not circles(rooms())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


def test_architecture_page_is_current():
    assert page() == PAGE.read_text(), "python tests/architecture.py --write"


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
    assert lengths[len(lengths) // 2] < LINES_OF_MOST
    assert lengths[-1] <= LINES_A_FILE
    with_code = [path.parent for path in FILES if len(ast.parse(path.read_text()).body) > 1]  # not a docstring alone
    assert len(with_code) / len(set(with_code)) <= FILES_A_ROOM

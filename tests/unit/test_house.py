"""The house: imports run one way, heavy packages stay in their rooms, files stay readable."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import FILES, ORDER, PAGE, ROOT, circles, imports, is_module, name_of, page, room_of, rooms

ONLY_IN = {"h5py": "storage", "deepspeed": "parallel", "mpi4py": "parallel", "pytest": "testing"}
ENTRIES_WITHOUT_TORCH = ("report", "reporting", "evaluate", "evaluation")
OUTSIDE = sorted(path for room in ("tests", "launch") for path in (ROOT / room).rglob("*.py"))
BY_POSITION = 5
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


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# ------------------------------------------------------------------------------------------------ where names stand


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


@cache
def names_of(path: Path, kind: type[ast.AST]) -> frozenset[str]:
    """Names that a module defines at its top level (kind Store), in `if` and `try` too, or imports from others."""
    found, ahead = set(), list(parsed(path).body)
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names if kind is ast.ImportFrom}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found |= {node.name} if kind is ast.Store else set()
        elif isinstance(node, ast.Name) and isinstance(node.ctx, kind):
            found.add(node.id)
        else:
            ahead += ast.iter_child_nodes(node)
    return frozenset(found)


def offered(path: Path) -> frozenset[str]:
    """What a module says in `__all__` that it has, from wherever."""
    values = (node.value for node in parsed(path).body if isinstance(node, ast.Assign) and "__all__" in targets(node))
    return frozenset(name for value in values for name in ast.literal_eval(value))


def targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def borrowed(path: Path) -> list[str]:
    """Where a file takes a name of the package from a module that has it from another one."""
    found, modules = [], {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hpctrack":
            for alias in node.names:
                if is_module(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    continue
                file = file_of(node.module)
                if alias.name not in names_of(file, ast.Store) | offered(file) or alias.asname == alias.name:
                    found.append(f"{path}:{node.lineno} {node.module}.{alias.name}")
    for node in ast.walk(parsed(path)) if path in FILES else ():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            file = file_of(modules[node.value.id])
            if node.attr in names_of(file, ast.ImportFrom) - offered(file):
                found.append(f"{path}:{node.lineno} {modules[node.value.id]}.{node.attr}")
    return found


def test_names_are_imported_from_the_module_that_defines_them():
    assert not [line for path in (*FILES, *OUTSIDE) for line in borrowed(path)]


# ------------------------------------------------------------------------------------------------ by position


def functions(path: Path) -> list[tuple[str, int]]:
    """Names of functions and methods, and how many arguments they take by position, without `self` and `cls`.

    Not those that torch calls: of an autograd function, which takes no names.
    """
    found = []
    for node in ast.walk(parsed(path)):
        methods = node.body if isinstance(node, ast.ClassDef) else []
        bound = {one for one in methods if isinstance(one, ast.FunctionDef) and "staticmethod" not in decorators(one)}
        found += [(one, len(by_position(one)) - 1) for one in bound]
        rest = [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.FunctionDef) and one not in bound]
        found += [(one, len(by_position(one))) for one in rest if [arg.arg for arg in by_position(one)][:1] != ["ctx"]]
    return [(f"{path}:{one.lineno} {one.name}", n) for one, n in found]


def by_position(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def decorators(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    calls = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    return [one.id for one in calls if isinstance(one, ast.Name)]


def records() -> set[str]:
    """The package's classes whose constructors are generated from their fields."""
    classes = (node for path in FILES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef))
    return {
        node.name
        for node in classes
        if "dataclass" in decorators(node)
        or any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)
    }


def test_few_arguments_are_passed_by_position():
    assert not [name for path in FILES for name, n in functions(path) if n > BY_POSITION]
    made, long = records(), []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and len(node.args) > BY_POSITION:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                long += [f"{path}:{node.lineno} {name}"] if name in made else []
    assert not long

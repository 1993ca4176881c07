"""results.json without a key, or with another kind of value: report and inspect say so in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import synthetic_run as make

from hpctrack import evaluate, inspect, report
from hpctrack.errors import InputError
from hpctrack.inspection.describe_runs import check_results
from hpctrack.results.content import load_results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results")
    events = [make.make_event(k, 12) for k in range(2)]
    dataset = make.write_dataset(path / "data", events)
    found = [make.imperfect_candidates(event) for event in events]
    folder = make.write_candidates(path / "candidates", dataset, found)
    out = path / "results.json"
    assert evaluate.main([str(folder), "--data", str(path / "data"), "--out", str(out)]) == 0
    make.with_few_tables(out)
    return out


def keys(values: object, prefix: tuple = ()) -> list[tuple]:
    """Paths of all keys; of lists those of the first entry."""
    if isinstance(values, list):
        return keys(values[0], (*prefix, 0)) if values else []
    if not isinstance(values, dict):
        return []
    return [path for key, value in values.items() for path in ((*prefix, key), *keys(value, (*prefix, key)))]


def without(values: dict, path: tuple, *instead: object) -> dict:
    out = copy.deepcopy(values)
    section = out
    for key in path[:-1]:
        section = section[key]
    if instead:
        section[path[-1]] = instead[0]
    else:
        del section[path[-1]]
    return out


def ends(call, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = call()
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and len(error) < 600, error
    return code, error


def test_a_key_that_is_missing_is_one_line(results, tmp_path, capsys):
    good = json.loads(results.read_text())
    path, refused = tmp_path / "results.json", []
    for key in keys(good):
        path.write_text(json.dumps(without(good, key)))
        if problems := check_results(path):
            refused.append(key)
            line = str(problems[0])
            assert len(problems) == 1 and "\n" not in line and key[0] in line, (key, line)
    assert len(refused) > 100
    for key in [("events",), ("selection", "text"), ("source", "dataset"), refused[len(refused) // 2], refused[-1]]:
        path.write_text(json.dumps(without(good, key)))
        for call in (
            lambda: report.main(["--results", str(path), "--out", str(tmp_path / "page.html")]),
            lambda: inspect.main(["--verify", str(path)]),
        ):
            code, error = ends(call, capsys)
            assert code == 2 and str(path) in error, (key, error)


WRONG = [None, "x", -1, [], {}, True, float("nan"), 1e400, 2**70]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_value_of_another_kind_is_one_line_or_makes_a_page(results, tmp_path, capsys, wrong):
    good = json.loads(results.read_text())
    path, passed = tmp_path / "results.json", []
    for key in keys(good)[[id(value) for value in WRONG].index(id(wrong)) % 3 :: 3]:  # three kinds a key
        path.write_text(json.dumps(without(good, key, wrong)))
        try:
            load_results(path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            passed.append(key)
    for key in passed[len(passed) // 2 :][:1]:  # a page takes a second
        path.write_text(json.dumps(without(good, key, wrong)))
        code, error = ends(lambda: report.main(["--results", str(path), "--out", str(tmp_path / "page.html")]), capsys)
        assert code == 0, (key, wrong, error)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000, '{"format": ' + "9" * 5000 + "}", "\udcff"])
def test_what_is_no_json_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for call in (
        lambda: report.main(["--results", str(path), "--out", str(tmp_path / "page.html")]),
        lambda: inspect.main([str(path)]),
    ):
        code, error = ends(call, capsys)
        assert code == 2 and "results.json" in error

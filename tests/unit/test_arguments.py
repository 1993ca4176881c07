"""Numbers on command lines and in the environment: one line and exit code 2 for what is none, in every verb."""

from __future__ import annotations

import importlib

import pytest

from hpctrack.process import arguments

NONE = ["0", "-1", "nan", "inf", "1.5", "two", "", "9" * 5000, "1e400"]
OPTIONS = {  # every numeric option; what else the call needs
    "simulate": (["out"], ["--events", "--first-event", "--jobs", "--mu", "--noise", "--field", "--particles"]),
    "convert": (
        ["source", "out"],
        ["--events-per-shard", "--jobs", "--limit", "--tracks", "--draws", "--pt-min-gev", "--min-hits"],
    ),
    "infer": (["--method", "dbscan", "--data", "data", "--out", "out"], ["--threads", "--timeout-s"]),
    "evaluate": (
        ["candidates", "--data", "data", "--out", "out"],
        ["--pt-min-gev", "--min-hits", "--eta-max", "--jobs"],
    ),
    "report": (["--results", "results.json", "--out", "out"], ["--event"]),
    "inspect": (["."], ["--jobs"]),
    "bench": (["loss", "--quick"], ["--threads"]),
}
GOOD = {  # what is right for some
    ("simulate", "--first-event"): ["0"],
    ("simulate", "--mu"): ["0", "1.5"],
    ("simulate", "--noise"): ["0"],
    ("simulate", "--field"): ["-1", "1.5"],
    ("simulate", "--particles"): ["1.5"],
    ("convert", "--pt-min-gev"): ["0", "1.5"],
    ("evaluate", "--pt-min-gev"): ["0", "1.5"],
    ("evaluate", "--eta-max"): ["0", "1.5"],
    ("infer", "--timeout-s"): ["1.5"],
    ("report", "--event"): ["0"],
}


def ended(capsys, verb: str, *args: str) -> tuple[int, list[str]]:
    """Exit code, however the verb ends, and the lines on stderr."""
    try:
        code = importlib.import_module(f"hpctrack.{verb}").main(list(args))
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, (_, all_) in OPTIONS.items() for option in all_])
def test_a_number_that_is_none_is_one_line(verb, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in NONE:
        if text in GOOD.get((verb, option), []):
            continue
        code, lines = ended(capsys, verb, *OPTIONS[verb][0], f"{option}={text}")
        assert code == 2 and len(lines) == 1, (text, lines)
        assert lines[0].startswith(f"hpctrack {verb}: error: ") and option in lines[0] and len(lines[0]) < 400
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["simulate", "convert"])
@pytest.mark.parametrize("seed", [str(2**64), "-1", "9" * 5000, "x", "1.0"])
def test_seeds_have_64_bits(verb, seed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, lines = ended(capsys, verb, *OPTIONS[verb][0], f"--seed={seed}")
    assert code == 2 and len(lines) == 1 and "--seed" in lines[0] and "whole number" in lines[0]
    assert arguments.seed(str(2**64 - 1)) == 2**64 - 1


def test_the_largest_seed_is_taken(tmp_path, capsys):
    largest = str(2**64 - 1)
    csv, data, out = (str(tmp_path / name) for name in ("csv", "data", "out"))
    assert ended(capsys, "simulate", csv, "--source=helix", "--events=2", "--particles=9", f"--seed={largest}")[0] == 0
    assert ended(capsys, "convert", csv, data, "--jobs=1")[0] == 0
    assert ended(capsys, "convert", data, out, "--jobs=1", "--tracks=2", f"--seed={largest}")[0] == 0


@pytest.mark.parametrize("verb", ["train", "export", "inspect", "report"])
@pytest.mark.parametrize("world", ["two", "", "-1", "9" * 5000, "²", "1.0"])
def test_an_error_is_said_whatever_the_environment_holds(verb, world, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", world)
    missing = str(tmp_path / "missing")
    code, lines = ended(capsys, verb, *(["--results", missing, "--out"] if verb == "report" else []), missing, *(
        [missing] if verb == "export" else []
    ))  # fmt: skip
    assert code == 2 and len(lines) == 1 and missing in lines[0]


@pytest.mark.parametrize("world", ["two", "", "9" * 5000, "²"])
def test_a_world_size_that_is_none_is_named(world, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", world)
    code, lines = ended(capsys, "infer", "--method=dbscan", f"--data={tmp_path}", f"--out={tmp_path / 'out'}")
    assert code == 2 and len(lines) == 1 and "WORLD_SIZE" in lines[0] and "whole number" in lines[0]

"""What stands under the name of an output: regular files are replaced when their successors are whole, links are
followed, pipes and devices written into, and anything else is refused in one line, before the work."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import make_trackml
from synthetic_run import with_few_tables

from hpctrack import bench, convert, evaluate, export, infer, inspect, report, simulate
from hpctrack.formats.trackml import write_submission
from hpctrack.testing.toys import toy_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset, candidates of it and their results."""
    folder = tmp_path_factory.mktemp("made")
    toy_dataset(folder / "data", sizes=(5, 3), n_noise=2)
    words = ["--method", "dbscan", "--data", str(folder / "data"), "--out", str(folder / "c")]
    assert infer.main(words) == 0
    assert evaluate.main([str(folder / "c"), "--data", str(folder / "data"), "--out", str(folder / "r.json")]) == 0
    with_few_tables(folder / "r.json")
    return folder


def verbs(made, out) -> dict:
    """Verbs that write a file of the user's choice."""
    data = ["--data", str(made / "data")]
    return {
        "evaluate": lambda: evaluate.main([str(made / "c"), *data, "--out", str(out)]),
        "report": lambda: report.main(["--results", str(made / "r.json"), "--out", str(out)]),
        "inspect": lambda: inspect.main([str(made / "data"), "--json", str(out)]),
        "infer": lambda: infer.main(
            ["--method", "dbscan", *data, "--out", str(made / "c"), "--submission", str(out)]
        ),
    }  # fmt: skip


VERBS = ["evaluate", "report", "inspect", "infer"]


@pytest.mark.parametrize("verb", VERBS)
def test_devices_links_and_pipes_stay_what_they_are(made, tmp_path, verb, capsys):
    assert verbs(made, "/dev/null")[verb]() == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    target, link = tmp_path / "real" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for _ in ("made", "replaced"):
        assert verbs(made, link)[verb]() == 0
        assert link.is_symlink() and target.stat().st_size > 10

    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert verbs(made, pipe)[verb]() == 0
    reader.join(20)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and len(read[0]) == target.stat().st_size
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_file_is_refused_in_one_line(made, tmp_path, verb, capsys):
    (tmp_path / "folder").mkdir()
    capsys.readouterr()
    for name, what in {"folder": "is a folder; name a file", "none/file": "its folder does not exist"}.items():
        assert verbs(made, tmp_path / name)[verb]() == 2
        err = capsys.readouterr().err
        assert f"{name}: {what}" in err and err.count("\n") == 1


def test_bench_refuses_before_it_measures(tmp_path, capsys):
    assert bench.main(["loss", "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_standard_output_is_written_into(tmp_path):
    """Redirected to a file, /dev/stdout is that file, not a name to be replaced."""
    code = "from hpctrack.files.outputs import write_output as write; print('before', flush=True)"
    code += "; write('/dev/stdout', 'text\\n')"
    with open(tmp_path / "said", "w") as file:
        subprocess.run([sys.executable, "-c", f"{code}; print('after')"], stdout=file, check=True, cwd=ROOT)
    assert (tmp_path / "said").read_text() == "before\ntext\nafter\n"


def test_an_output_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("old")

    def blocks():
        raise ValueError("amid the work")
        yield

    with pytest.raises(ValueError, match="amid"):
        write_submission(path, blocks())
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_an_out_that_is_a_file_or_link_to_nothing_is_refused(made, tmp_path, capsys):
    """By every verb that writes a folder; also where a file stands amid the folders above."""
    source = make_trackml(tmp_path / "csv", [1])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    folders = {
        "convert": lambda out: convert.main([str(source), out, "--jobs", "1"]),
        "simulate": lambda out: simulate.main([out, "--source", "helix", "--events", "1"]),
        "infer": lambda out: infer.main(["--method", "dbscan", "--data", str(made / "data"), "--out", out]),
        "export": lambda out: export.main(["influencer-500", out]),
    }
    for verb, run in folders.items():
        for out in ("file", "file/below/it", "link"):
            capsys.readouterr()
            assert run(str(tmp_path / out)) == 2, (verb, out)
            err = capsys.readouterr().err.strip().splitlines()
            assert len([line for line in err if "error" in line]) == 1 and "Traceback" not in " ".join(err), err
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


# ------------------------------------------------------------------------------------------------ what looks finished


def test_simulate_looks_whether_its_files_are_whole(tmp_path, capsys):
    out, options = tmp_path / "out", ["--source", "helix", "--events", "2", "--particles", "5", "--gzip"]
    assert simulate.main([str(out), *options]) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    path = out / "event000000001-truth.csv.gz"
    path.write_bytes(whole[path.name][:-20])
    (out / "event000000000-hits.csv.gz").write_bytes(b"")
    (out / f".{path.name}.1-00000000.tmp").write_text("of a killed run")
    assert simulate.main([str(out), *options]) == 0
    assert "2 events, 2 of them made now" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def test_simulate_leaves_the_events_of_others_alone(tmp_path, capsys):
    source = make_trackml(tmp_path / "csv", [0])
    (source / "event000000000-cells.csv").unlink()  # not a whole event, so it would be removed and made again
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert simulate.main([str(source), "--source", "helix", "--events", "1"]) == 2
    assert "but no simulation.json" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.parametrize("change", ["missing", "cut", "of another inference"])
def test_infer_looks_whether_candidates_are_whole(made, tmp_path, change, capsys):
    words = ["--method", "dbscan", "--data", str(made / "data"), "--out", str(tmp_path / "c")]
    assert infer.main(words) == 0
    assert infer.main(words) == 0
    path = tmp_path / "c" / "candidates-00000.h5"
    if change == "missing":
        path.unlink()
    elif change == "cut":
        os.truncate(path, path.stat().st_size - 100)
    else:
        other = ["--method", "dbscan", "--data", str(made / "data"), "--out", str(tmp_path / "o"), "method.min_hits=50"]
        assert infer.main(other) == 0
        path.write_bytes((tmp_path / "o" / path.name).read_bytes())
    capsys.readouterr()
    assert infer.main(words) == 2
    err = capsys.readouterr().err
    assert "candidates-00000.h5: " in err and "write the candidates again" in err
    assert json.loads((made / "r.json").read_text())["events"] == 2

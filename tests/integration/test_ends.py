"""Every verb ends in one line and with the right exit code, whatever ends it, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import ends
from campaigns.ranks_killed import children

from hpctrack.config import dump_yaml
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint

ROOT = Path(__file__).parents[2]
OF_ALL = "Ctrl-C"  # tried on every verb, the others on two: `python tests/campaigns/ends.py` tries all on all
SOME = ("train", "evaluate")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    ends.prepare(folder)
    return folder


def documented() -> dict[tuple[str, str], str]:
    """Exit codes on the page, by verb and condition."""
    rows = [line.strip("| ").split(" | ") for line in ends.on_page().splitlines() if line.startswith("|")]
    conditions = rows[0]
    return {
        (name.strip("`"), condition): code
        for name, *codes in rows[2:]
        for condition, code in zip(conditions, codes, strict=True)
    }


CASES = [
    (name, condition) for condition in ends.CONDITIONS for name in ends.VERBS if condition == OF_ALL or name in SOME
]


@pytest.mark.parametrize(("name", "condition"), CASES)
def test_a_verb_ends_as_the_page_says(root, name, condition):
    endings = ends.end(name, condition, root)
    assert [ending.fault() for ending in endings] == [""] * len(endings), endings[0].said
    assert ends.code(endings) == documented()[name, condition], endings[0].said
    if endings[0].code and condition != "no file left":  # which file it was to open may change
        assert endings[0].line() in ends.on_page()


def test_the_page_has_every_verb_under_every_condition():
    assert set(documented()) == {(name, condition) for name in ends.VERBS for condition in ends.CONDITIONS}


# ------------------------------------------------------------------------------------------------ real processes


@contextlib.contextmanager
def started(*words: object, **environment: str) -> Iterator[subprocess.Popen]:
    """A command in a group of its own; both its streams are one."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def python(verb: str, *words: object, **environment: str):
    return started(sys.executable, "-m", f"hpctrack.{verb}", *words, **environment)


def answers(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> number - 1 & 1)


@pytest.mark.parametrize(
    ("called", "number"), [("module", signal.SIGINT), ("command", signal.SIGTERM), ("module", signal.SIGHUP)]
)
def test_while_its_libraries_are_imported_a_signal_is_one_line(called, number):
    command = [sys.executable, "-m", "hpctrack.train"]
    if called == "command":
        command = [sys.executable, "-c", "import sys; from hpctrack.cli import main; sys.exit(main())", "train"]
    with started(*command, "no-such-recipe.yaml") as process:
        ends.wait_for(lambda: answers(process.pid, signal.SIGHUP))
        time.sleep(0.1)
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=60)
    how = "preempted (SIGTERM)" if number == signal.SIGTERM else f"interrupted ({number.name})"
    assert said == f"hpctrack train: {how}; the same command goes on\n"
    assert process.returncode == (85 if number == signal.SIGTERM else 128 + number)


@pytest.mark.parametrize("kib", [500_000, 700_000])
def test_too_little_memory_to_begin_with_is_one_line(kib):
    command = f"ulimit -v {kib}; exec {sys.executable} -m hpctrack.train no-such-recipe.yaml"
    with started("bash", "-c", command) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        said.startswith("hpctrack train: error: its libraries do not load within `ulimit -v ") and said.count("\n") == 1
    )


def test_help_into_a_closed_pipe_is_quiet():
    for verb in ("inspect", "convert"):
        with started(
            "bash", "-c", f"{sys.executable} -m hpctrack.{verb} --help | true; exit ${{PIPESTATUS[0]}}"
        ) as process:
            said, _ = process.communicate(timeout=60)
        assert said == "" and process.returncode in (0, 141)  # 0 if `true` was the slower one


def slowly(folder: Path, seconds: float) -> dict[str, str]:
    """An environment in which reading an event takes so long."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('SLOW') and ('RANK' in os.environ or 'SLOW_ALONE' in os.environ):\n"
        "    from hpctrack.events.loader import EventLoader\n"
        "    read = EventLoader.__call__\n"
        "    def slow(*words):\n"
        "        time.sleep(float(os.environ['SLOW']))\n"
        "        return read(*words)\n"
        "    EventLoader.__call__ = slow\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}", "SLOW": str(seconds)}


def recipe(tmp_path: Path, **sections: dict) -> Path:
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7))
    config = toy_config(tmp_path / "run", data, **sections)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    return tmp_path / "recipe.yaml"


def until_said(process: subprocess.Popen, text: str) -> str:
    """What a process says until it says something that fits `text`."""
    said, limit = "", threading.Timer(ends.SECONDS, process.kill)
    limit.start()
    for line in process.stdout:
        said += line
        if re.search(text, line):
            limit.cancel()
            return said
    raise AssertionError(f"never said {text}:\n{said}")


LONG = {"steps": 100_000, "checkpoint_every": 100_000, "valid_every": 100_000, "log_every": 1}


def test_ctrl_c_under_the_launcher_saves_on_all_ranks(tmp_path):
    path = recipe(tmp_path, train=LONG, plan={"events_per_step": 2})
    command = (sys.executable, "launch/node.py", "--standalone", "--nproc-per-node", "2", "-m", "hpctrack.train", path)
    with started(*command, **slowly(tmp_path / "site", 0.05)) as process:
        until_said(process, "step +2/")
        os.killpg(process.pid, signal.SIGINT)  # the terminal's; the ranks have sessions of their own
        said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said and process.returncode == 130
    step = int(re.search(r"^interrupted: step (\d+) is saved, the same command goes on$", said, re.M)[1])
    assert checkpoint.read_meta(checkpoint.find(tmp_path / "run"))["step"] == step


def test_a_second_ctrl_c_ends_training_at_once_and_nohup_is_kept(tmp_path):
    path = recipe(tmp_path, train=LONG, plan={"events_per_step": 2})
    ignoring = f"trap '' HUP; exec {sys.executable} -m hpctrack.train {path}"
    with started("bash", "-c", ignoring, SLOW_ALONE="1", **slowly(tmp_path / "site", 3.0)) as process:
        until_said(process, "new run")
        time.sleep(1.0)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # an echo of the first
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=2.0)
    assert process.returncode == 130 and said.splitlines()[-1].startswith("hpctrack train: interrupted (SIGINT)")


WORK = {  # a verb's words, and what its worker processes do
    "evaluate": ("{root}/candidates --data {root}/data --out {out}/r.json --jobs 2", "evaluation.tally", "tally_event"),
    "inspect": ("{root}/data --verify --jobs 2", "storage.verify", "check_shard"),
    "convert": ("{root}/csv {out}/out --jobs 2 --events-per-shard 1", "formats.conversion", "read_event"),
    "simulate": ("{out}/out --source helix --events 4 --jobs 2", "simulation.writer", "write_event"),
    "train": ("{root}/recipe.yaml run={out}/run data.workers=2", "events.loader", "EventLoader.__call__"),
}
STAY = """
import functools, importlib, multiprocessing, os, time
holder, (*outer, name) = importlib.import_module("hpctrack.{module}"), "{function}".split(".")
for part in outer:
    holder = getattr(holder, part)
work = getattr(holder, name)
@functools.wraps(work)
def stay(*words, **keywords):
    if multiprocessing.parent_process() is not None:
        open(f"{out}/worker-{{os.getpid()}}", "w").close()
        time.sleep(1000)
    return work(*words, **keywords)
setattr(holder, name, stay)
"""


@contextlib.contextmanager
def with_workers(verb: str, root: Path, out: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A verb whose two worker processes are at work, and will be for a long time."""
    words, module, function = WORK[verb]
    site = out / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(STAY.format(module=module, function=function, out=out))
    with python(verb, *words.format(root=root, out=out).split(), PYTHONPATH=f"{site}:{ROOT}") as process:
        ends.wait_for(lambda: len(list(out.glob("worker-*"))) == 2)
        workers = [int(path.name.removeprefix("worker-")) for path in out.glob("worker-*")]
        assert set(workers) <= set(children(process.pid))
        yield process, workers


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "train"])
def test_worker_processes_end_with_a_parent_that_is_killed(root, tmp_path, verb):
    with with_workers(verb, root, tmp_path) as (process, workers):
        process.kill()
        ends.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said and "leaked" not in said


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "simulate"])
def test_a_worker_process_that_is_killed_is_named_in_one_line(root, tmp_path, verb):
    with with_workers(verb, root, tmp_path) as (process, workers):
        os.kill(workers[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    line = said.splitlines()[-1]
    assert (
        line.startswith(f"hpctrack {verb}: error: worker process {workers[0]} was killed (SIGKILL") and " at " in line
    )
    assert process.returncode == 1 and "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("verb", ["convert", "train"])
def test_ctrl_c_to_the_whole_group_is_one_line_of_the_parent(root, tmp_path, verb):
    with with_workers(verb, root, tmp_path) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        if verb == "train":  # it waits for its readers; by hand again
            time.sleep(1.2)
            os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said and said.splitlines()[-1].startswith(f"hpctrack {verb}: interrupted (SIGINT)")
    assert process.returncode == 130
    ends.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))

"""How every verb ends when something ends it: the table of docs/explanation/errors.md.

    python tests/campaigns/ends.py [--write] [--verbs inspect train] [--conditions Ctrl-C]

Each verb runs for real in a process of its own, forked from one that has imported them all, and is stopped, cut off or
starved amid its work. `--write` puts what was found into the page; otherwise the page is compared with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from hpctrack import bench, convert, evaluate, export, infer, inspect, report, simulate, train
from hpctrack.benchmarks.measure import Figure
from hpctrack.config import dump_yaml
from hpctrack.parallel.launchers import INIT_METHOD
from hpctrack.process import ends
from hpctrack.testing.toys import toy_config, toy_dataset

PAGE = Path(__file__).parents[2] / "docs/explanation/errors.md"
BEGIN, END = "<!-- made by tests/campaigns/ends.py -->", "<!-- end -->"
SECONDS = 60.0
MEMORY = 512 << 20  # bytes that a verb may have on top of what its process has
FILES = 60
STARVING = 1 << 28  # numbers of 8 bytes: 2 GiB


# ------------------------------------------------------------------------------------------------ verbs


@dataclass(frozen=True)
class Verb:
    """A verb as it is called: words may name `{root}`, `{out}`, a new name in the folder that may be read-only.

    `point` is the function (module, name) amid its work, and which call of it is interfered with.
    """

    main: Callable
    words: str
    point: tuple[str, str, int]
    ranks: int = 1


VERBS = {
    "simulate": Verb(
        simulate.main,
        "{out} --source helix --events 3 --particles 20",
        ("hpctrack.simulation.writer", "write_event", 2),
    ),
    "convert": Verb(
        convert.main, "{root}/csv {out} --jobs 1 --events-per-shard 2", ("hpctrack.formats.conversion", "read_event", 2)
    ),
    "train": Verb(train.main, "{root}/recipe.yaml run={out}", ("hpctrack.events.loader", "EventLoader.__call__", 6)),
    "train on 2 ranks": Verb(
        train.main, "{root}/recipe.yaml run={out}", ("hpctrack.events.loader", "EventLoader.__call__", 2), ranks=2
    ),
    "infer": Verb(
        infer.main,
        "--checkpoint {root}/run --data {root}/data --out {out}",
        ("hpctrack.events.loader", "EventLoader.__call__", 2),
    ),
    "evaluate": Verb(
        evaluate.main,
        "{root}/candidates --data {root}/data --out {out}.json",
        ("hpctrack.evaluate", "tally_event", 2),
    ),
    "evaluate --jobs 2": Verb(
        evaluate.main,
        "{root}/candidates --data {root}/data --out {out}.json --jobs 2",
        ("hpctrack.process.pools", "Worker.receive", 2),
    ),
    "report": Verb(
        report.main, "--results {root}/results.json --out {out}.html", ("hpctrack.reporting.page", "page", 1)
    ),
    "inspect": Verb(
        inspect.main, "{root}/data --json {out}.json", ("hpctrack.inspection.describe_datasets", "describe_dataset", 1)
    ),
    "inspect --verify": Verb(
        inspect.main, "{root}/data --verify --json {out}.json", ("hpctrack.process.pools", "Worker.receive", 1)
    ),
    "export": Verb(export.main, "{root}/run {out}", ("hpctrack.training.checkpoint", "write", 1)),
    "bench": Verb(bench.main, "io --quick --json {out}.json", ("hpctrack.bench", "commit", 1)),
}


def prepare(root: Path) -> None:
    """Everything that the verbs read: events, a recipe, a run, candidates, results."""
    data = toy_dataset(root / "data", sizes=(4, 6, 5, 7), per_shard=2)
    config = toy_config(root / "run", data, plan={"events_per_step": 2}, train={"steps": 4})
    (root / "recipe.yaml").write_text(dump_yaml(config))
    recipe = str(root / "recipe.yaml")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for main, words in (
            (simulate.main, [f"{root}/csv", "--source", "helix", "--events", "4", "--particles", "20"]),
            (train.main, [recipe]),
            (infer.main, ["--checkpoint", f"{root}/run", "--data", f"{data}", "--out", f"{root}/candidates"]),
            (evaluate.main, [f"{root}/candidates", "--data", f"{data}", "--out", f"{root}/results.json"]),
        ):
            assert main(words) == 0


# ------------------------------------------------------------------------------------------------ conditions


@dataclass
class Process:
    """What a condition may change in the process of a verb, before it begins or amid its work (`at_point`)."""

    stdout: int
    encoding: str = "utf-8"
    at_point: Callable[[], None] | None = None

    def close_pipe(self) -> None:
        """Standard output is a pipe that nobody reads."""
        reader, self.stdout = os.pipe()
        os.close(reader)

    def fill_disk(self) -> None:
        """Standard output lies on a full disk."""
        self.stdout = os.open("/dev/full", os.O_WRONLY)

    def close_stdout(self) -> None:
        """There is no standard output."""
        self.stdout = -1

    def speak_ascii(self) -> None:
        """The terminal knows ASCII only."""
        self.encoding = "ascii"

    def limit_memory(self) -> None:
        """`ulimit -v`, of which the verb wants more."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        self.at_point = lambda: np.ones(STARVING) and None

    def limit_files(self) -> None:
        """`ulimit -n 60`, in a process that has no more files open than a new one."""
        gc.collect()  # what would close its file later, would close another's of the same number
        for number in map(int, os.listdir("/proc/self/fd")):
            if number not in (0, 1, 2, self.stdout):
                with contextlib.suppress(OSError):  # that of the listing
                    os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES,) * 2)

    def use_up_files(self) -> None:
        """`ulimit -n 60`, of which the verb wants more."""
        self.limit_files()
        self.at_point = functools.partial(use_up, [])

    def read_only(self) -> None:
        """Without root's right to write everywhere, for a folder that does not allow it."""
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if os.geteuid() == 0 and ctypes.CDLL(None).capset(header, data):
            raise OSError("root keeps its rights here")


def use_up(files: list[int]) -> None:
    """Open files until there are no numbers left."""
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open("/dev/null", os.O_RDONLY))


CONDITIONS: dict[str, Callable[[Process], None] | signal.Signals] = {
    "Ctrl-C": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "SIGHUP": signal.SIGHUP,
    "closed pipe": Process.close_pipe,
    "full disk": Process.fill_disk,
    "closed stdout": Process.close_stdout,
    "ASCII": Process.speak_ascii,
    "`ulimit -v`": Process.limit_memory,
    f"`ulimit -n {FILES}`": Process.limit_files,
    "no file left": Process.use_up_files,
    "read-only": Process.read_only,
}


# ------------------------------------------------------------------------------------------------ a verb, ended


@dataclass(frozen=True)
class Ending:
    """Exit code and words of a verb: all of standard error, the last line of standard output."""

    code: int
    said: str
    last: str
    left: list[int]  # processes that are still there

    def line(self) -> str:
        """What it says of its end."""
        lines = [self.last, *self.said.splitlines()]
        own = [line for line in lines if line.startswith("hpctrack") or "the same command goes on" in line]
        return own[-1] if own else ""

    def fault(self) -> str:
        """What must not be: a traceback, a dead or silent process, more than one line of an error, processes left."""
        own = [line for line in self.said.splitlines() if ": error: " in line or ": interrupted (" in line]
        if "Traceback" in self.said or "Exception ignored" in self.said:
            return "a traceback"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if self.left:
            return "processes are left"
        return "more than one line" if len(own) > 1 else ""


def end(name: str, condition: str, root: Path) -> list[Ending]:
    """Run a verb under a condition; how each of its ranks ends."""
    verb, what = VERBS[name], CONDITIONS[condition]
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "out").mkdir(mode=0o555 if what is Process.read_only else 0o755)
    words = verb.words.format(root=root, out=folder / "out" / "new").split()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_begin, args=(verb, name, what, words, folder, rank)) for rank in range(verb.ranks)
    ]
    for process in processes:
        process.start()
    if isinstance(what, signal.Signals):
        wait_for(lambda: all((folder / f"at-{rank}").exists() for rank in range(verb.ranks)))
        for process in processes:
            os.kill(process.pid, what)
        (folder / "go").touch()
    endings = []
    for rank, process in enumerate(processes):
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
        endings.append(_ending(process, folder, rank, str(root), str(folder)))
    shutil.rmtree(folder)
    return endings


def _ending(process: Any, folder: Path, rank: int, *secret: str) -> Ending:
    said, out = ((folder / f"{stream}-{rank}").read_text(errors="replace") for stream in ("err", "out"))
    for text in sorted(secret, key=len, reverse=True):
        said, out = said.replace(text, "…"), out.replace(text, "…")
    said, out = (re.sub(r"process \d+", "process P", re.sub(r"\.\d+-\w+\.tmp", ".N.tmp", text)) for text in (said, out))
    said = re.sub(r" in hpctrack\.[\w.<>]+", " in …", said)  # functions that ran out of memory
    lines = [line for line in out.splitlines() if line.strip()]
    return Ending(process.exitcode, said, lines[-1] if lines else "", descendants(process.pid))


def wait_for(ready: Callable[[], bool]) -> None:
    """Until it is so."""
    until = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < until, "the verb did not come to its work"
        time.sleep(0.005)


def descendants(group: int) -> list[int]:
    """Processes of the group that are there 2 s from now, if there are any now."""
    until = time.monotonic() + 2
    while (left := list(_of_group(group))) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def _of_group(group: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z" and not _is_tracker(path.parent):
                yield int(path.parent.name)


def _is_tracker(process: Path) -> bool:
    """Whether it is the process in which Python counts semaphores, which ends by itself when the others have."""
    return b"resource_tracker" in (process / "cmdline").read_bytes()


def _begin(verb: Verb, name: str, what: Any, words: list[str], folder: Path, rank: int) -> None:
    """The process of a verb, or of one of its ranks."""
    os.setpgid(0, 0)
    stdout = os.open(folder / f"out-{rank}", os.O_WRONLY | os.O_CREAT)
    process = Process(stdout)
    if isinstance(what, signal.Signals):
        process.at_point = functools.partial(_wait, folder, rank)
    else:
        what(process)
    if verb.ranks > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{verb.ranks}"}
        os.environ[INIT_METHOD] = f"file://{folder / 'meeting'}"
    os.dup2(os.open(folder / f"err-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = text_file(2, process.encoding)
    sys.stdout = None
    os.close(1)
    if process.stdout >= 0:
        os.dup2(process.stdout, 1)
        sys.stdout = text_file(1, process.encoding)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    bench.benchmark = lambda _: lambda quick: [Figure("speed", [1.0, 2.0], "x", "of nothing, ± as it is")]
    if process.at_point:
        _interfere(*verb.point, process.at_point)
    ends.begin(name.split()[0])
    raise SystemExit(verb.main(words))


def text_file(number: int, encoding: str) -> io.TextIOWrapper:
    """Standard output or error, as Python makes it."""
    buffer = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, line_buffering=number == 2)


def _wait(folder: Path, rank: int) -> None:
    """Say that the work is on, and stay in it until the signal has been sent."""
    (folder / f"at-{rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    time.sleep(0.02)


def _interfere(module: str, path: str, number: int, action: Callable[[], None]) -> None:
    """Let call `number` of a function do something before its own work."""
    holder, calls = importlib.import_module(module), 0
    *outer, attribute = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    function = getattr(holder, attribute)

    @functools.wraps(function)
    def instead(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*args, **keywords)

    setattr(holder, attribute, instead)


# ------------------------------------------------------------------------------------------------ the page


Table = dict[tuple[str, str], list[Ending]]


def run(root: Path, verbs: list[str], conditions: list[str]) -> Table:
    """All verbs under all conditions."""
    prepare(root)
    table = {}
    for condition in conditions:
        print(f"{condition} …", file=sys.stderr, flush=True)
        table |= {(name, condition): end(name, condition, root) for name in verbs}
    return table


def code(endings: list[Ending]) -> str:
    """The exit code, of all ranks."""
    return " ".join(sorted({str(ending.code) for ending in endings}))


def markdown(table: Table) -> str:
    """The table of exit codes, and below it what the verbs say."""
    verbs, conditions = (list(dict.fromkeys(key[k] for key in table)) for k in (0, 1))
    lines = [f"| | {' | '.join(conditions)} |", "|---|" + "---|" * len(conditions)]
    for name in verbs:
        lines.append(f"| `{name}` | {' | '.join(code(table[name, condition]) for condition in conditions)} |")
    for condition in conditions:
        said = said_under(condition, table, verbs)
        if said:
            lines += ["", f"{condition}:", "", "```", *said, "```"]
    return "\n".join(lines)


def said_under(condition: str, table: Table, verbs: list[str]) -> list[str]:
    """The lines with which verbs end that have not done their work, each once."""
    ended = (table[name, condition][0] for name in verbs)
    return list(dict.fromkeys(ending.line() for ending in ended if ending.code and ending.line()))


def faults(table: Table) -> list[str]:
    """What must not be."""
    return [
        f"{name}, {condition}: {ending.fault()}\n{ending.said}"
        for (name, condition), endings in table.items()
        for ending in endings
        if ending.fault()
    ]


def on_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def main() -> int:
    """Make the table; compare it with the page, or write it there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into the page")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS), choices=list(CONDITIONS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        table = run(Path(root), args.verbs, args.conditions)
    text, wrong = markdown(table), faults(table)
    print(text, *wrong, sep="\n")
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())

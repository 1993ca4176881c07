"""Every file operation of every verb fails once, or its process is killed there; then the verb runs again.

    python tests/campaigns/injected.py [--what train,convert,…] [--jobs 2] [--json F]

For each operation of an undisturbed run (tests/faults.py counts them) the run is made again with a fault there: kill -9
before the operation (which is after the one before it), or amid a write; the disk is full from there on; the operation,
or the reading of a file, fails with an I/O error. Where the run has stopped, everything under a final name must be
whole, and nothing that was saved may be lost. Then the same command runs undisturbed, and must end with what an
undisturbed run leaves: equal stores, candidates, weights and tables, an exact ledger, whole lines, and nothing besides.
A fault of the machine is one line and exit code 1. At the end a table; exit code 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import FAIL, HALF, KILL, Fault, Outcome, faults, operations, strike

from campaigns.works import WORKS, Inputs, Work
from hpctrack import inspect
from hpctrack.errors import EXIT_MACHINE
from hpctrack.inspection import kinds
from hpctrack.process.versions import versions
from hpctrack.training import checkpoint, checkpoint_metadata

IGNORED = ("tensorboard",)  # written by a thread of its own at its own times
CLOCK = ("_s", "_per_s", "_gib")  # ends of the names of values that a clock or the machine decides
HANG_S = 60.0
SHOWN = 5  # failures of a verb that are printed in full


# ------------------------------------------------------------------------------------------------ what is compared


def entries(out: Path) -> Iterator[tuple[str, Path]]:
    """(name in `out`, path) of each file."""
    for path in sorted(out.rglob("*")):
        if path.is_file() or path.is_symlink():
            yield str(path.relative_to(out)), path


def content(out: Path) -> dict[str, Any]:
    """Each file's content without what a clock decides; what another thread logs counts as one file."""
    found: dict[str, Any] = {}
    for name, path in entries(out):
        board = next((part for part in IGNORED if part in Path(name).parts), None)
        found[board or name] = "some" if board else meaning(path)
    return found


def meaning(path: Path) -> Any:
    """A file's bytes, or what they say but for the clock."""
    raw = path.read_bytes()
    if path.name.endswith(".jsonl"):
        lines = [json.loads(line) for line in raw.decode().splitlines()]
        return [timeless(line) for line in lines if line.get("kind") not in ("waste", "memory")]
    if path.name == checkpoint_metadata.META:
        return timeless({key: value for key, value in json.loads(raw).items() if key not in ("cost", "memory")})
    return timeless(json.loads(raw)) if path.suffix == ".json" else raw


def timeless(value: Any) -> Any:
    """JSON without the entries that a clock or the machine decides."""
    if isinstance(value, dict):
        kept = {key: timeless(entry) for key, entry in value.items() if not key.endswith(CLOCK)}
        return {key: entry for key, entry in kept.items() if key not in ("timings", "rank")}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def standing(out: Path, allowed: dict[str, list[Any]]) -> list[str]:
    """Problems of what has a final name in `out`; `allowed`: what files may say, of those that are always the same."""
    problems: list[str] = []
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if any(part.startswith(".") for part in name.parts) or any(part in name.parts for part in IGNORED):
            continue
        in_checkpoint = any(part.startswith("step-") or part == "given" for part in name.parts[:-1])
        try:
            if in_checkpoint:
                continue
            if path.is_dir():
                if path.name.startswith("step-") or path.name == "given":
                    problems += map(str, inspect.verify(path, kinds.CHECKPOINT))
                elif (path / "index.h5").exists():
                    problems += map(str, inspect.verify(path, kinds.kind_of(path), jobs=0))
            elif path.suffix == ".h5":
                if not (path.parent / "index.h5").exists():
                    problems += one_file(path)
            elif path.name == checkpoint_metadata.LATEST:
                checkpoint.latest(path.parent)
            elif path.suffix == ".jsonl":
                for line in path.read_bytes().split(b"\n")[:-1]:
                    json.loads(line)
            elif str(name) in allowed and meaning(path) not in allowed[str(name)]:
                problems.append(f"{path}: neither what was there before nor what an undisturbed run writes")
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    return problems


def one_file(path: Path) -> list[str]:
    """Problems of a shard, or of a file of candidates or edges."""
    if path.name.startswith("edges-"):
        return []  # only its index says what it holds
    return list(map(str, inspect.verify(path, kinds.kind_of(path), jobs=0)))


# ------------------------------------------------------------------------------------------------ the campaign


WRITES = ("write", "pwrite", "sendfile")


def points(made: list[str], thin: int) -> list[Fault]:
    """For each operation: kill -9 before it, a full disk from there on, and an I/O error of this one alone.

    A write is one operation of many: of each two, one is killed before and one amid it, one meets a full disk amid it
    and one an I/O error. `thin`: of writes to a file in a row only every so-many-th, the first and the last.
    """
    place, kept = {}, []
    for at, operation in enumerate(made):
        place[at] = place[at - 1] + 1 if at and operation == made[at - 1] else 0
    for fault in faults(made, (errno.ENOSPC, errno.EIO)):
        operation, number = made[fault.at], place[fault.at]
        last = fault.at + 1 == len(made) or made[fault.at + 1] != operation
        is_write = operation.split()[0] in WRITES
        if is_write and number % thin and not last:
            continue
        if fault.how == KILL:
            kept += [fault] if not is_write or (fault.when == HALF) == (number // thin % 2 == 1) else []
        elif is_write:
            full, amid = fault.error == errno.ENOSPC, fault.when == HALF
            kept += [fault] if fault.lasting == full == amid == (number // thin % 2 == 0) else []
        else:
            kept += [fault] if fault.lasting == (fault.error == errno.ENOSPC) else []
    return kept


def label(fault: Fault) -> str:
    """What happens, for tables."""
    if fault.how == KILL:
        return "killed amid" if fault.when == HALF else "killed"
    return "full disk" if fault.error == errno.ENOSPC else "I/O error"


class Struck:
    """One verb under every fault."""

    def __init__(self, name: str, room: Path) -> None:
        self.name, self.room, self.out = name, room, room / "out"
        self.work: Work = WORKS[name](Inputs(room))
        self.failures: list[dict[str, Any]] = []
        self.counts: collections.Counter = collections.Counter()

    def fresh(self) -> None:
        """The folder as it is before the command."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.work.begin(self.out)

    def prepare(self) -> list[str]:
        """Undisturbed runs: what they leave and what they do."""
        left = []
        for _ in range(2):
            self.fresh()
            before = content(self.out)
            self.least = self.work.progress(self.out)
            run = self.expect_end if self.work.ends else (lambda: self.work.run(self.out))
            made = operations(run, [self.out], IGNORED, reads=True)
            if self.work.ends:
                self.finish()
            left.append(content(self.out))
        assert left[0].keys() == left[1].keys(), left[0].keys() ^ left[1].keys()
        self.expected = {name: value for name, value in left[0].items() if value == left[1][name]}
        self.names = left[0].keys()
        self.allowed = {name: [value, before.get(name)] for name, value in self.expected.items()}
        return made

    def expect_end(self) -> int:
        """0 if the command ends as it should."""
        return abs(self.work.run(self.out) - self.work.ends)

    def finish(self) -> Outcome:
        """The same command again, undisturbed."""
        return strike(lambda: self.work.again(self.out), [self.room / "nothing"], None, timeout=HANG_S)

    def campaign(self, stride: int = 1, say: Callable[[str], None] = print) -> dict[str, Any]:
        """Every fault in turn; what came of it."""
        begin = time.monotonic()
        made, done_before = self.prepare(), self.least
        chosen = points(made, self.work.thin)[::stride]
        for number, fault in enumerate(chosen, 1):
            problems, progress = self.point(fault, done_before)
            self.counts[label(fault)] += 1
            if fault.how == KILL:
                done_before = max(done_before, progress)
            if problems:
                self.failures.append({"fault": vars(fault), "operation": made[fault.at], "problems": problems})
                if len(self.failures) <= SHOWN:
                    say(f"{self.name}: {label(fault)} at {fault.at} ({made[fault.at]}, {fault.when}): {problems[0]}")
            if number % 500 == 0:
                say(f"{self.name}: {number}/{len(chosen)}, {len(self.failures)} failures")
        by_name = sorted(set(self.names) - set(self.expected))
        kinds_made = collections.Counter(operation.split()[0] for operation in made)
        return {
            "operations": len(made),
            "kinds": dict(kinds_made.most_common()),
            "points": len(chosen),
            "faults": dict(self.counts),
            "failures": self.failures,
            "compared_by_name_only": by_name,
            "seconds": round(time.monotonic() - begin, 1),
        }

    def point(self, fault: Fault, least: int) -> tuple[list[str], int]:
        """Problems of one fault, and what was done for good when the run stopped."""
        self.fresh()
        try:
            struck = strike(lambda: self.work.run(self.out), [self.out], fault, IGNORED, HANG_S, reads=True)
        except AssertionError as hang:
            return [f"hangs: {last_line(str(hang))}"], least
        problems = self.ended(fault, struck)
        found = standing(self.out, self.allowed) + self.work.standing(self.out)
        problems += [f"when it stopped: {one}" for one in found]
        try:
            progress = self.work.progress(self.out)
            if progress < least:
                problems.append(f"when it stopped: {progress} done, but {least} had been")
        except (ValueError, OSError) as error:
            progress = least
            problems.append(f"when it stopped: {error}")
        try:
            last = self.finish()
        except AssertionError as hang:
            return [*problems, f"again: hangs: {last_line(str(hang))}"], progress
        if last.code:
            return [*problems, f"again: exit code {last.code}: {last_line(last.said)}"], progress
        try:
            now = content(self.out)
        except (ValueError, OSError) as error:
            return [*problems, f"again: {error}"], progress
        problems += [f"again: {name} is there, too" for name in sorted(now.keys() - self.names)]
        problems += [f"again: {name} is missing" for name in sorted(self.names - now.keys())]
        different = [name for name, value in self.expected.items() if name in now and now[name] != value]
        problems += [f"again: {name} differs from an undisturbed run's" for name in different]
        return problems + [f"again: {one}" for one in standing(self.out, self.allowed)], progress

    def ended(self, fault: Fault, struck: Outcome) -> list[str]:
        """What is wrong with the end of the run that was struck."""
        if not struck.struck:
            return ["the fault's operation did not come"]
        if fault.how != FAIL:
            return [] if struck.code == -signal.SIGKILL else [f"exit code {struck.code} after a kill"]
        if struck.code not in (EXIT_MACHINE, self.work.ends):
            return [f"exit code {struck.code}: {last_line(struck.said)}"]
        if "Traceback" in struck.said:
            return [f"a traceback: {last_line(struck.said)}"]
        if struck.code == EXIT_MACHINE and ": error: " not in struck.said:
            return [f"no line of what failed, but: {last_line(struck.said)}"]
        return []


def last_line(said: str) -> str:
    """The last one that says something."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "nothing said")


def all_of(names: list[str], stride: int) -> dict[str, dict[str, Any]]:
    """The campaign of these verbs, one after another."""
    found = {}
    for name in names:
        room = Path(tempfile.mkdtemp(prefix="hpctrack-faults-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, room, ignore_errors=True)
            found[name] = Struck(name, room).campaign(stride, lambda text: print(text, flush=True))
        print(row(name, found[name]), flush=True)
    return found


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [name, found["operations"], *(found["faults"].get(kind, 0) for kind in LABELS), len(found["failures"])]
    return "| " + " | ".join(map(str, cells)) + f" | {found['seconds']:.0f} s |"


LABELS = ("killed", "killed amid", "full disk", "I/O error")


def shared_out(names: list[str], jobs: int, stride: int) -> dict[str, dict[str, Any]]:
    """The campaign by so many processes forked from this one; each takes every so-many-th verb."""
    if jobs == 1:
        return all_of(names, stride)
    files, children, found = [], [], {}
    for job in range(jobs):
        handle, path = tempfile.mkstemp(suffix=".json")
        os.close(handle)
        files.append(Path(path))
        child = os.fork()
        if not child:
            code = 1
            try:
                files[-1].write_text(json.dumps(all_of(names[job::jobs], stride)))
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for path in files:
        found |= json.loads(path.read_text() or "{}")
        path.unlink()
    if any(codes):
        raise SystemExit("a part of the campaign has failed; see above")
    return {name: found[name] for name in names}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--what", help=f"comma-separated beginnings of: {'; '.join(WORKS)}")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="every N-th point only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write counts and failures")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = args.what.split(",") if args.what else [""]
    names = [name for name in WORKS if any(name.startswith(start) for start in wanted)]
    begin = time.monotonic()
    found = shared_out(names, args.jobs, args.stride)
    print("\n| verb | operations | " + " | ".join(LABELS) + " | failures | |\n|---|" + "---:|" * (len(LABELS) + 3))
    print("\n".join(row(name, found[name]) for name in names))
    total, failures = (sum(f) for f in zip(*((f["points"], len(f["failures"])) for f in found.values()), strict=True))
    print(f"{total} points, {failures} failures, {time.monotonic() - begin:.0f} s")
    if args.json:
        about = {"command": " ".join(sys.argv), "versions": versions(), "points": total, "failures": failures}
        args.json.write_text(json.dumps(about | {"verbs": found}, indent=1))
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())

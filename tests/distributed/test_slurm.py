"""The batch scripts, unchanged, on a two-node Slurm cluster of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import make_trackml

from hpctrack import infer
from hpctrack.config import RunConfig, dump_yaml
from hpctrack.parallel.env import distributed
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.store import open_dataset
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint
from hpctrack.training.ledger import problems
from hpctrack.training.loop import train

ROOT = Path(__file__).parents[2]
needs_slurm = pytest.mark.skipif(
    not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("sbatch", "slurmctld", "munged")),
    reason="needs Slurm's programs (Debian: apt-get install slurm-wlm munge)",
)
pytestmark = needs_slurm
PACED = """
import os, time
if "RANK" in os.environ and "PACE" in os.environ:
    from hpctrack.events.loader import EventLoader
    read = EventLoader.__call__
    def slowly(*args):
        time.sleep(float(open(os.environ["PACE"]).read()))
        return read(*args)
    EventLoader.__call__ = slowly
"""  # of reading, in the ranks of a job: so that jobs last as long as a test needs, on any machine


class Cluster:
    """Commands of a running cluster."""

    def __init__(self, configuration: str, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(PACED)
        self.pace = folder / "pace"
        self.pace.write_text("0")
        self.environment = os.environ | {
            "SLURM_CONF": configuration,
            "HPCTRACK_ENV": f"{Path(sys.executable).parent}/activate",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PACE": str(self.pace),
        }

    def __call__(self, *words: object, **variables: str) -> str:
        environment = self.environment | variables
        done = subprocess.run(
            [str(word) for word in words], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, log: Path, *words: object, **variables: str) -> str:
        """The job's number; `variables` are in the environment from which it is submitted."""
        return self("sbatch", "--parsable", "--output", log, *words, **variables)

    def state(self, job: str) -> str:
        """Of a job in the queue, or not long out of it; of a job array, of its first task."""
        return re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))[1]

    def until(self, job: str, *states: str, seconds: float = 120) -> None:
        wait(lambda: self.state(job) in states, f"job {job} is not {states}: {self('squeue')}", seconds)

    def start_again(self, job: str, minutes: int = 10) -> None:
        """Let a requeued job, which Slurm makes wait for two minutes, start now."""
        self.until(job, "PENDING")
        time.sleep(3)  # its credential is revoked; a new one begins with another second
        self("scontrol", "update", f"jobid={job}", f"timelimit={minutes}", "starttime=now")
        self.until(job, "RUNNING")


def wait(condition: Callable[[], bool], otherwise: str | Path, seconds: float = 120) -> None:
    """Until it holds; `otherwise`: what a failure says, or the log whose end it shows."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise.read_text()[-3000:])
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hps-", dir="/tmp")) / "c"  # short, for the sockets
    environment = os.environ | {"HPCTRACK_SLURM_DIR": str(folder), "HPCTRACK_SLURM_NODES": "2"}
    environment["HPCTRACK_SLURM_GPUS"] = "2"  # by name only
    script = ["bash", str(ROOT / "launch/slurm_local.sh")]
    started = subprocess.run([*script, "start"], env=environment, check=False, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    try:
        yield Cluster(str(folder / "slurm.conf"), tmp_path_factory.mktemp("site"))
    finally:
        subprocess.run([*script, "stop"], env=environment, check=True)
        folder.parent.rmdir()


def written(folder: Path, **sections: dict) -> tuple[RunConfig, Path]:
    """A toy run and its file."""
    data = folder / "data"
    if not data.exists():
        toy_dataset(data, sizes=(4, 6, 5, 7, 3))
    config = toy_config(folder / "run", data, **({"train": {"steps": 60, "checkpoint_every": 1000}} | sections))
    (folder / "config.yaml").write_text(dump_yaml(config))
    return config, folder / "config.yaml"


def steps(config: RunConfig) -> int:
    path = Path(config.run) / "ledger.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def saved(config: RunConfig) -> int:
    found = checkpoint.latest(Path(config.run) / "checkpoints")
    return checkpoint.read_meta(found)["step"] if found else 0


def test_training_is_preempted_in_every_way_requeued_and_ends_exact(cluster, tmp_path):
    config, path = written(tmp_path, train={"steps": 120, "checkpoint_every": 1000})
    log = tmp_path / "log"
    cluster.pace.write_text("1")  # all steps together take longer than any signal may
    job = cluster.submit(
        log, "--nodes=2", "--time=10", "--signal=B:USR1@100", "slurm/train_influencer.sh", path
    )  # fmt: skip

    def preempted(times: int) -> None:
        wait(lambda: log.read_text().count("slurm: preempted; requeued") == times, log)
        cluster.until(job, "PENDING")
        assert saved(config) == steps(config)

    wait(lambda: steps(config) >= 3, log)
    cluster("scancel", "--signal=USR1", job)
    preempted(1)
    assert saved(config) >= 3 and "preempted (SIGUSR1): step" in log.read_text()

    cluster.start_again(job, minutes=2)  # the signal comes 20 to 50 s after the start, with time left to save
    preempted(2)

    cluster.start_again(job)
    before = saved(config)
    wait(lambda: steps(config) >= before + 2, log)
    urgent = cluster.submit(
        tmp_path / "urgent", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1"
    )  # fmt: skip
    wait(lambda: log.read_text().count("preempted (SIG") >= 2, log)
    cluster.until(urgent, "COMPLETED")
    assert saved(config) == steps(config) > before

    cluster.pace.write_text("0")
    cluster.start_again(job)
    cluster.until(job, "COMPLETED")
    text = log.read_text()
    assert "ranks: 2 from torchrun" in text and "step 120/120" in text and "slurm: done" in text
    assert text.count("resumed at step") >= 2 and "restart 3" in text
    assert problems(Path(config.run)) == [] and steps(config) == saved(config) == 120


def test_a_job_that_is_cancelled_saves_and_stays_away(cluster, tmp_path):
    config, path = written(tmp_path)
    cluster.pace.write_text("0.2")
    job = cluster.submit(tmp_path / "log", "--nodes=1", "--time=10", "slurm/train_influencer.sh", path)
    wait(lambda: steps(config) >= 2, "no steps")
    cluster("scancel", job)
    cluster.until(job, "CANCELLED")
    wait(lambda: "so it is not requeued" in (tmp_path / "log").read_text(), (tmp_path / "log").read_text())
    assert saved(config) == steps(config) >= 2 and cluster.state(job) == "CANCELLED"


def test_bad_input_ends_a_job_at_once_and_a_pipeline_runs_stage_by_stage(cluster, tmp_path):
    cluster.pace.write_text("0")
    first, _ = written(tmp_path, train={"steps": 3})
    second = toy_config(tmp_path / "run2", tmp_path / "data", train={"steps": 2})
    (tmp_path / "second.yaml").write_text(dump_yaml(second))
    stages = [tmp_path / "config.yaml", tmp_path / "second.yaml"]
    job = cluster.submit(tmp_path / "log", "slurm/train_pipeline.sh", *stages, "seed=2")
    bad = cluster.submit(tmp_path / "bad", "slurm/train_influencer.sh", stages[0], "optim.lrr=1")
    cluster.until(job, "COMPLETED")
    cluster.until(bad, "FAILED")
    assert saved(first) == 3 and saved(second) == 2
    text = (tmp_path / "bad").read_text()
    assert "unknown key 'optim.lrr'" in text and "attempt" not in text
    assert "ExitCode=2:0" in cluster("scontrol", "show", "job", bad)


def test_inference_by_a_job_array_and_conversion(cluster, tmp_path):
    cluster.pace.write_text("0")
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 9, 5, 1, 2, 6), n_noise=2, per_shard=2)
    config = toy_config(tmp_path / "run", data, train={"precision": "fp32", "steps": 3})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    words = ["--checkpoint", str(tmp_path / "run"), "--data", str(data), "--out"]
    array = cluster.submit(tmp_path / "log-%a", "--array=2-4", "slurm/infer.sh", *words, tmp_path / "array")
    source = make_trackml(tmp_path / "csv", range(100, 104))
    convert = cluster.submit(tmp_path / "convert", "--cpus-per-task=2", "slurm/convert.sh", source, tmp_path / "d")
    assert infer.main([*words, str(tmp_path / "alone")]) == 0
    cluster.until(convert, "COMPLETED")
    for task in (2, 3, 4):
        cluster.until(f"{array}_{task}", "COMPLETED")
    assert CandidateStore(tmp_path / "array").digest == CandidateStore(tmp_path / "alone").digest
    logs = [(tmp_path / f"log-{task}").read_text() for task in (2, 3, 4)]
    assert sum("candidates of 7 events, digest" in text for text in logs) == 1
    assert all(f"part {part} of 3" in text for part, text in enumerate(logs))
    assert open_dataset(tmp_path / "d").event_ids.tolist() == [100, 101, 102, 103]


ANOTHER_JOBS = {  # what sbatch hands on, called in a task of an array with GPUs, requeued, and in a rank of it
    "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "1", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_NODE": "4",
    "SLURM_GPUS": "4", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "32",
    "SLURM_RESTART_COUNT": "7", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4", "SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "1000",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[str]:
    """The beginning of an inference's arguments."""
    folder = tmp_path_factory.mktemp("trained")
    data = toy_dataset(folder / "data", sizes=(4, 3, 9, 5, 1, 2, 6, 7, 3, 4, 2, 5), n_noise=2, per_shard=5)
    config = toy_config(folder / "run", data, train={"precision": "fp32", "steps": 3})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    assert infer.main(["--checkpoint", str(folder / "run"), "--data", str(data), "--out", str(folder / "alone")]) == 0
    return ["--checkpoint", str(folder / "run"), "--data", str(data), "--out"]


def alone(trained: list[str]) -> str:
    return CandidateStore(Path(trained[3]).parent / "alone").digest


def test_a_job_is_itself_whatever_job_submitted_it(cluster, trained, tmp_path):
    cluster.pace.write_text("0")
    logs = [tmp_path / "log", tmp_path / "gpus", tmp_path / "convert"]
    jobs = [cluster.submit(logs[0], "slurm/infer.sh", *trained, tmp_path / "a", **ANOTHER_JOBS)]
    words = ["--gpus-per-node=2", "slurm/infer.sh", *trained, tmp_path / "b"]
    jobs.append(cluster.submit(logs[1], *words, **ANOTHER_JOBS))
    source = make_trackml(tmp_path / "csv", range(100, 104))
    words = ["--cpus-per-task=2", "slurm/convert.sh", source, tmp_path / "d"]
    jobs.append(cluster.submit(logs[2], *words, **ANOTHER_JOBS))
    for job in jobs:
        cluster.until(job, "COMPLETED")
    texts = [log.read_text() for log in logs]
    assert CandidateStore(tmp_path / "a").digest == CandidateStore(tmp_path / "b").digest == alone(trained)
    assert "ranks: 1 (torchrun)" in texts[0] and "ranks: 2 from torchrun on 1 node" in texts[1]
    assert all("restart 0" in text for text in texts)
    assert open_dataset(tmp_path / "d").event_ids.tolist() == [100, 101, 102, 103]


def test_parts_of_an_array_are_submitted_again_and_a_task_requeues_itself_alone(cluster, trained, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log-%a"
    cluster.pace.write_text("1.5")
    array = cluster.submit(log, "--array=0,2", "slurm/infer.sh", *trained, out, HPCTRACK_PARTS="4")
    others = cluster.submit(log, "--array=1,3", "slurm/infer.sh", *trained, out, HPCTRACK_PARTS="4")
    gaps = cluster.submit(tmp_path / "gaps", "--array=0,3,4", "slurm/infer.sh", *trained, out)
    logs = [tmp_path / "log-0", tmp_path / "log-2"]
    for path in logs:
        wait(lambda path=path: path.exists() and "of 4, 3 events to do" in path.read_text(), f"no {path}")
    time.sleep(1)
    cluster("scancel", "--signal=USR1", f"{array}_2")  # the last to begin, whose number is the array's
    wait(lambda: "slurm: preempted" in logs[1].read_text(), logs[1])
    for task in (f"{array}_0", f"{others}_1", f"{others}_3"):
        cluster.until(task, "COMPLETED")
    assert "slurm: preempted; requeued" in logs[1].read_text() and not (out / "index.h5").exists()
    assert cluster.state(f"{gaps}_0") == "FAILED" and "HPCTRACK_PARTS" in (tmp_path / "gaps").read_text()
    assert "REQUEUE" not in logs[0].read_text() and "restart 1" not in logs[0].read_text()
    cluster.pace.write_text("0")
    cluster.start_again(f"{array}_2")
    cluster.until(f"{array}_2", "COMPLETED")
    assert CandidateStore(out).digest == alone(trained)

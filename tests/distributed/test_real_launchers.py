"""Training started by the real launchers: torchrun, srun, and DeepSpeed's own, which adds an argument."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from strategies import needs_deepspeed
from toys import losses

from hpctrack.config import dump_yaml
from hpctrack.testing.toys import toy_config, toy_dataset

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def start(tmp_path: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a command that takes the place of `python`, for a run in `tmp_path / "run"`."""
    data = toy_dataset(tmp_path / "data")
    (tmp_path / "config.yaml").write_text(dump_yaml(toy_config(tmp_path / "run", data)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment.get('PATH', '')}"
    full = [*command, str(tmp_path / "config.yaml")]
    return subprocess.run(full, env=environment, check=False, capture_output=True, text=True, timeout=300)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_torchrun(tmp_path):
    done = start(tmp_path, str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "hpctrack.train")
    assert done.returncode == 0, done.stderr
    assert "ranks: 2 from torchrun on 1 node, gloo; " in done.stdout
    assert len(losses(tmp_path / "run")) == 6


SLURM = [shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") for name in ("slurmctld", "munged")]


@pytest.mark.skipif(not all(SLURM), reason="needs Slurm: apt-get install slurm-wlm munge")
def test_srun_alone(tmp_path, monkeypatch):
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")  # paths of sockets must be short
    monkeypatch.setenv("HPCTRACK_SLURM_DIR", f"{folder}/c")
    srun = ["srun", "-N", "2", "-n", "2", "--ntasks-per-node", "1", sys.executable, "-m", "hpctrack.train"]
    done = start(tmp_path, "bash", str(ROOT / "launch/slurm_local.sh"), "run", *srun)
    assert done.returncode == 0, done.stderr
    assert "ranks: 2 from Slurm on " in done.stdout
    assert len(losses(tmp_path / "run")) == 6


@needs_deepspeed
@pytest.mark.skipif(not shutil.which("deepspeed", path=str(BIN)), reason="no deepspeed command")
def test_the_deepspeed_launcher(tmp_path):
    command = ["--num_gpus", "2", "--master_port", free_port(), "--module", "hpctrack.train"]
    done = start(tmp_path, str(BIN / "deepspeed"), *command)
    assert done.returncode == 0, done.stderr
    assert "ranks: 2 from deepspeed on 1 node, gloo; " in done.stdout
    assert len(losses(tmp_path / "run")) == 6

"""Conversion under a real MPI launcher: the same bytes on any number of ranks, one line and no hang for every error."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_trackml

from hpctrack import convert
from hpctrack.data import store

ROOT = Path(__file__).parents[2]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and mpirun: pip install 'hpctrack[mpi]' mpich",
)


def mpi(n: int, *args: object, **environment: str) -> subprocess.CompletedProcess:
    """The verb on n ranks."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    command = [MPIRUN, "-n", str(n), sys.executable, "-m", "hpctrack.convert", *map(str, args)]
    return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=120)


def said(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that are errors of ours; no tracebacks, please."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if "error: " in line]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_trackml(tmp_path_factory.mktemp("csv"), range(100, 107))


@needs_mpi
def test_ranks_make_the_same_bytes_and_a_rerun_finishes(source, tmp_path, capsys):
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    assert convert.main([str(source), str(alone), "--jobs", "1", "--events-per-shard", "2"]) == 0
    expected = {path.name: path.read_bytes() for path in alone.iterdir()}
    for n in (2, 3):
        done = mpi(n, source, ranks, "--events-per-shard", 2)
        assert done.returncode == 0, done.stderr
        assert {path.name: path.read_bytes() for path in ranks.iterdir()} == expected
        assert done.stdout.replace("/ranks:", "/alone:") == capsys.readouterr().out or n == 3
        for name in ("index.h5", "events-00001.h5"):
            (ranks / name).unlink()
    again = mpi(2, source, ranks, "--events-per-shard", 2)
    assert again.returncode == 0 and (ranks / "events-00001.h5").exists()
    assert "complete already" in mpi(2, source, ranks, "--events-per-shard", 2).stderr


@needs_mpi
def test_a_bad_event_ends_all_ranks_or_is_left_out(tmp_path):
    source = make_trackml(tmp_path / "csv", range(6))
    (source / "event000000004-hits.csv").write_text("hit_id\n")
    done = mpi(3, source, tmp_path / "out", "--events-per-shard", 1)
    assert done.returncode == 2 and not (tmp_path / "out/index.h5").exists()
    assert len(said(done)) == 1 and "event000000004-hits.csv: event 4: no column 'x'" in said(done)[0]
    done = mpi(3, source, tmp_path / "out", "--events-per-shard", 1, "--skip-bad")
    assert done.returncode == 0 and "left out: event 4: " in done.stdout
    assert store.open_dataset(tmp_path / "out").event_ids.tolist() == [0, 1, 2, 3, 5]


@needs_mpi
def test_what_the_first_rank_refuses_is_said_once(source, tmp_path):
    done = mpi(2, tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 2 and len(said(done)) == 1 and "nothing: does not exist" in said(done)[0]
    done = mpi(2, source, tmp_path / "out", "--jobs", 2)
    assert done.returncode == 2 and len(said(done)) == 1 and "--jobs is for one machine" in said(done)[0]
    done = mpi(2, source, tmp_path / "out", "--limit", 0)
    assert done.returncode == 2 and len(said(done)) == 1 and done.stderr.count("usage:") == 1


def alone(source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess:
    """One process that believes a launcher started it."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "hpctrack.convert", str(source), str(out)]
    return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_without_mpi4py(source, tmp_path, rank):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('none here')")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = alone(source, tmp_path / "out", PYTHONPATH=path, PMI_SIZE="2", PMI_RANK=str(rank))
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    lines = said(done)
    assert len(lines) == (rank == 0) and all("pip install 'hpctrack[mpi]'" in line for line in lines)


@needs_mpi
def test_a_launcher_of_another_mpi_is_noticed(source, tmp_path):
    done = alone(source, tmp_path / "out", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "started 2 processes, but MPI sees 1" in said(done)[0]

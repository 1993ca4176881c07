"""Under a real MPI launcher: the same content on any number of ranks, one line and no hang for every error."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_trackml
from toys import losses

from hpctrack import convert, infer
from hpctrack.config import dump_yaml
from hpctrack.parallel.env import distributed
from hpctrack.storage import store
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.hdf5 import has_parallel_hdf5
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train

ROOT = Path(__file__).parents[2]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


LAUNCH = {  # Open MPI: as root, in a container, on few cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}


def mpi(n: int, *args: object, **environment: str) -> subprocess.CompletedProcess:
    """Convert on n ranks."""
    return launch(n, [sys.executable, "-m", "hpctrack.convert", *map(str, args)], **environment)


def launch(n: int, command: list[str], **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | LAUNCH | environment
    command = [MPIRUN, "-n", str(n), *command]
    return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=120)


def without_mpi() -> str:
    """Why mpirun and mpi4py do not work together here; empty if they do."""
    if MPIRUN is None or importlib.util.find_spec("mpi4py") is None:
        return "not installed"
    done = launch(2, [sys.executable, "-c", "from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != 2)"])
    if done.returncode == 0:
        return ""
    return f"{MPIRUN} ended with {done.returncode}: {' '.join((done.stdout + done.stderr).split())[:300]}"


WHY_NOT = without_mpi()
needs_mpi = pytest.mark.skipif(
    bool(WHY_NOT), reason=f"needs mpi4py and an mpirun of its MPI: pip install 'hpctrack[mpi]' mpich ({WHY_NOT})"
)


def said(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that are errors of ours; no tracebacks, please."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("hpctrack ") and "error: " in line]


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
    assert done.returncode == 2 and len(said(done)) == 1 and "--limit: '0'" in said(done)[0]


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
def test_a_launcher_without_its_library(source, tmp_path):
    done = alone(source, tmp_path / "out", MPI4PY_LIBMPI="/nowhere.so", PMI_SIZE="2", PMI_RANK="0")
    assert done.returncode == 2 and len(said(done)) == 1
    assert "mpi4py cannot be used" in said(done)[0] or "MPI sees 1" in said(done)[0]  # the latter: linked to its MPI


@needs_mpi
def test_a_launcher_of_another_mpi_is_noticed(source, tmp_path):
    done = alone(source, tmp_path / "out", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "started 2 processes, but MPI sees 1" in said(done)[0]


@needs_mpi
def test_training_under_mpirun_is_that_of_one_process(tmp_path):
    data = toy_dataset(tmp_path / "data")
    for name, ranks in (("alone", 1), ("ranks", 2)):
        config = toy_config(tmp_path / name, data)
        (tmp_path / f"{name}.yaml").write_text(dump_yaml(config))
        command = [sys.executable, "-m", "hpctrack.train", str(tmp_path / f"{name}.yaml")]
        done = launch(ranks, command)
        assert done.returncode == 0, done.stderr
    assert "ranks: 2 from " in done.stdout and "on 1 node, gloo; " in done.stdout and ": 0-1 on cpu" in done.stdout
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "alone"), rel=1e-9)


@needs_mpi
def test_an_error_in_training_ends_all_mpi_ranks(tmp_path):
    config = toy_config(tmp_path / "run", tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    done = launch(2, [sys.executable, "-m", "hpctrack.train", str(tmp_path / "config.yaml")])
    assert done.returncode != 0 and said(done) and "nothing" in said(done)[0]


@needs_mpi
@pytest.mark.skipif(
    not has_parallel_hdf5(), reason="needs an h5py that was built with MPI (docs/explanation/formats.md says how)"
)
def test_candidates_by_parallel_hdf5_are_those_of_one_rank(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 9, 5, 1, 2, 6), n_noise=2, per_shard=3)
    config = toy_config(tmp_path / "run", data, train={"precision": "fp32", "steps": 3})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    common = ["--checkpoint", str(tmp_path / "run"), "--data", str(data), "--out"]
    assert infer.main([*common, str(tmp_path / "1")]) == 0
    command = [sys.executable, "-m", "hpctrack.infer", *common]
    for n in (2, 3):
        done = launch(n, [*command, str(tmp_path / str(n))])
        assert done.returncode == 0, done.stderr
        assert CandidateStore(tmp_path / str(n)).digest == CandidateStore(tmp_path / "1").digest
        assert sorted(p.name for p in (tmp_path / str(n)).iterdir()) == sorted(
            p.name for p in (tmp_path / "1").iterdir()
        )

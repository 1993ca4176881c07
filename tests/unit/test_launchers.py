"""What launchers say in environment variables: who wins, what contradicts what, and where ranks meet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpctrack.config import ParallelConfig
from hpctrack.errors import InputError
from hpctrack.parallel import env as env_module
from hpctrack.parallel import launchers, mpi
from hpctrack.parallel.env import (
    Env,
    allowed_cores,
    binding_text,
    bound,
    choose_device,
    ranks_line,
    shares,
    with_rendezvous,
)
from hpctrack.parallel.launchers import Place, find_place, first_node, slurm_rendezvous

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77"}  # no srun yet
OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "source", "rank", "world", "local"),
    [
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}, "torchrun", 3, 4, 1),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"} | SLURM, "torchrun", 3, 4, 1),  # under srun it wins
        (TORCHRUN | {"CROSS_RANK": "1"} | SLURM, "deepspeed", 3, 4, 1),
        (TORCHRUN, "environment", 3, 4, 1),
        (SLURM, "Slurm", 1, 2, 0),
        (SLURM | {"PMI_RANK": "1", "PMI_SIZE": "2"}, "Slurm", 1, 2, 0),  # srun --mpi=pmi2
        (
            SLURM | {"SLURM_PROCID": "0"} | OPENMPI | {"OMPI_COMM_WORLD_SIZE": "8"},
            "Open MPI",
            1,
            8,
            1,
        ),  # srun's daemons
        (BATCH, None, 0, 1, 0),
        (BATCH | OPENMPI, "Open MPI", 1, 2, 1),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, "MPICH", 1, 2, 1),
        ({"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PMI_RANK": "5", "PMI_SIZE": "8"}, "Cray PALS", 5, 8, 1),
        ({}, None, 0, 1, 0),
    ],
)
def test_the_innermost_launcher_is_found(environ, source, rank, world, local):
    place = find_place(environ)
    assert (
        place is None
        if source is None
        else ((place.source, place.rank, place.world, place.local_rank) == (source, rank, world, local))
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "RANK set but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "but not MASTER_ADDR"),
        (TORCHRUN | SLURM, "environment says rank 3 of 4 (RANK, WORLD_SIZE), but Slurm says rank 1 of 2"),
        (TORCHRUN | OPENMPI, "but Open MPI says rank 1 of 2"),
        (SLURM | OPENMPI | {"OMPI_COMM_WORLD_RANK": "0"}, "start with srun or with mpirun, not with both"),
        (TORCHRUN | {"RANK": "4"}, "says rank 4 of 4; ranks go from 0 to 3"),
        (TORCHRUN | {"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is not a whole number"),
    ],
)
def test_what_contradicts_itself_is_refused(environ, message):
    with pytest.raises(InputError) as error:
        find_place(environ)
    assert message in str(error.value)


def test_a_file_to_meet_at_needs_no_address():
    environ = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", launchers.INIT_METHOD: "file:///tmp/x"}
    assert find_place(environ).address is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"), ("n[1-3,7]", "n1"), ("nid[000012-000015],gpu3", "nid000012"), ("a,b", "a"),
        ("rack[2-3]node[05,09-11]", "rack2node05"), ("gpu-3.site[4,9]-x", "gpu-3.site4-x"),
    ],
)  # fmt: skip
def test_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_slurm_tasks_agree_on_a_place_to_meet(monkeypatch):
    monkeypatch.setattr(launchers.socket, "getaddrinfo", lambda *_: [])
    assert slurm_rendezvous(SLURM) == slurm_rendezvous(SLURM | {"SLURM_PROCID": "0"})
    assert slurm_rendezvous(SLURM)[0] == "n1"
    ports = {slurm_rendezvous(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "1"})[1] for job in range(100)}
    assert len(ports) == 100 and min(ports) >= 20000 and max(ports) < 30000
    again = slurm_rendezvous(SLURM | {"SLURM_RESTART_COUNT": "1"})[1]
    assert again != slurm_rendezvous(SLURM)[1]  # what held the port at the last try may hold it still
    assert slurm_rendezvous(SLURM | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"
    for missing in ("n[", ""):
        with pytest.raises(InputError, match="set MASTER_ADDR"):
            slurm_rendezvous(SLURM | {"SLURM_STEP_NODELIST": missing})


def test_names_that_do_not_resolve_are_asked_of_slurm(monkeypatch):
    def unknown(*_):
        raise OSError

    said = "NodeName=n1 Arch=x86_64\n   NodeAddr=10.0.0.7 NodeHostName=n1 Version=22.05"
    monkeypatch.setattr(launchers.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(launchers.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said))
    assert slurm_rendezvous(SLURM)[0] == "10.0.0.7"
    monkeypatch.setattr(launchers.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, ""))
    with pytest.raises(InputError, match="node name 'n1' does not resolve"):
        slurm_rendezvous(SLURM)


def test_an_address_that_is_set_is_used(monkeypatch):
    for name, value in (SLURM | {"MASTER_ADDR": "login", "MASTER_PORT": "1234"}).items():
        monkeypatch.setenv(name, value)
    place = with_rendezvous(find_place(env_module.os.environ))
    assert (place.address, place.port) == ("login", 1234)


def test_mpi_without_mpi4py_says_what_helps(monkeypatch):
    for name, value in (OPENMPI | {"OMPI_COMM_WORLD_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match=r"pip install 'hpctrack\[mpi\]'"):
        with_rendezvous(find_place(env_module.os.environ))


def test_mpi_ranks_that_know_an_address_need_no_mpi4py(monkeypatch):
    for name, value in (OPENMPI | {"MASTER_ADDR": "n1", "MASTER_PORT": "1234"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    place = with_rendezvous(find_place(env_module.os.environ))
    assert (place.address, place.port, place.local_rank) == ("n1", 1234, 1)
    mpi.mpi_end()


def test_the_interface_that_leads_to_the_others(monkeypatch):
    assert launchers.address_towards("127.0.0.1") == "127.0.0.1" and launchers.is_loopback("127.0.1.1")
    assert launchers.address_towards("no.such.host.invalid") is None and launchers.is_loopback(None)
    assert launchers.interface_of("127.0.0.1") == "lo" and launchers.interface_of("192.0.2.7") is None
    monkeypatch.setattr(launchers, "interface_of", lambda address: f"of-{address}")
    assert launchers.interface_for(1, ["a", "a"], ["127.0.0.1"] * 2) is None  # one machine
    assert launchers.interface_for(1, ["a", "b"], ["10.0.0.1", "10.0.0.2"]) == "of-10.0.0.2"
    assert launchers.interface_for(1, ["a", "a"], ["10.0.0.1", "10.0.0.2"]) == "of-10.0.0.2"  # two of one name
    monkeypatch.setattr(launchers, "address_towards", {"10.0.0.2": "10.0.0.1"}.get)
    assert launchers.interface_for(0, ["a", "b"], ["127.0.1.1", "10.0.0.2"]) == "of-10.0.0.1"  # it served the store
    assert launchers.interface_for(0, ["a", "b"], [None, None]) is None


def test_devices(monkeypatch):
    assert choose_device("cpu", 3, "torchrun").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 0, "torchrun").type == "cpu"
    with pytest.raises(InputError, match="torch sees no GPU"):
        choose_device("cuda", 0, "torchrun")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert choose_device("auto", 3, "torchrun") == torch.device("cuda", 3)
    with pytest.raises(InputError, match=r"local rank 4 has no GPU of its own \(4 here\); start 4 ranks per node"):
        choose_device("auto", 4, "torchrun")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", 3, "Slurm") == torch.device("cuda", 0)  # --gpus-per-task 1 shows each its own
    with pytest.raises(InputError, match="start 1 ranks per node"):
        choose_device("auto", 1, "torchrun")


def test_two_ranks_on_a_gpu_are_refused(monkeypatch, capsys):
    found = [(host, "cuda:0", "GPU-a", (0, 1)) for host in ("n1", "n2", "n1")]
    monkeypatch.setattr(env_module, "gpu_identity", lambda device: "GPU-a")
    monkeypatch.setattr(env_module.dist, "all_gather_object", lambda box, own: box.__setitem__(slice(None), found))
    with pytest.raises(InputError, match=r"ranks 0 and 2 have the same GPU \(cuda:0 of n1\)"):
        env_module.exchange_places(Env(0, 3, 0, torch.device("cpu"), "nccl", "Slurm"), 1)
    with pytest.raises(SystemExit) as end:
        env_module.exchange_places(Env(1, 3, 0, torch.device("cpu"), "nccl", "Slurm"), 1)
    assert end.value.code == 2 and capsys.readouterr().out.count("\n") == 1


def test_one_line_for_many_ranks():
    env = Env(0, 16, 0, torch.device("cuda", 0), "nccl", "Slurm")
    found = [(f"n{rank // 4}", f"cuda:{rank % 4}") for rank in range(16)]
    start = "ranks: 16 from Slurm on 4 nodes, nccl; n0: 0-3 on cuda:0-3; n1: 4-7 on cuda:0-3; "
    assert ranks_line(env, found) == start + "n2: 8-11 on cuda:0-3; n3: 12-15 on cuda:0-3"
    env = Env(0, 1024, 0, torch.device("cuda", 0), "nccl", "Slurm")
    found = [(f"n{rank // 4}", f"cuda:{rank % 4}") for rank in range(1024)]
    assert ranks_line(env, found).endswith("; and 252 nodes more")
    assert ranks_line(Env(0, 2, 0, torch.device("cpu"), "gloo", "torchrun"), [("a", "cpu"), ("a", "cpu")]) == (
        "ranks: 2 from torchrun on 1 node, gloo; a: 0-1 on cpu"
    )
    assert ranks_line(Env(0, 1, 0, torch.device("cpu"), None, "no launcher"), []) == (
        "ranks: 1 (no launcher) on cpu, no process group"
    )


def test_sharding_has_a_group_even_of_one():
    place = Place("no launcher", 0, 1, 0)
    assert env_module.make_env(ParallelConfig(device="cpu"), place).backend is None
    assert env_module.make_env(ParallelConfig(device="cpu", strategy="fsdp"), place).backend == "gloo"


def test_ranks_of_a_host_split_the_cores_that_they_share():
    eight = tuple(range(8))
    assert shares(["a", "a"], [eight] * 2, 1) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shares(["a", "b", "a"], [(3, 5, 9)] * 3, 1) == [(3,), (), (5, 9)]  # b has one rank
    assert shares(["a"] * 3, [eight] * 3, 2) == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert shares(["a"] * 3, [eight] * 3, 3) == [()] * 3  # nine threads on eight cores
    assert shares(["a", "a"], [(0, 1), (2, 3)], 1) == [()] * 2  # the launcher has bound them
    assert shares(["a", "a"], [()] * 2, 1) == [()] * 2  # the system does not say


def test_binding_ends_with_its_context():
    before = allowed_cores()
    with bound(before[:1]):
        assert allowed_cores() == before[:1]
        with bound(()):
            assert allowed_cores() == before[:1]
    assert allowed_cores() == before
    assert binding_text([(0,), (), (1,)]) == "; each bound to 1 core"
    assert binding_text([(0, 1), (2, 3, 4)]) == "; each bound to 2-3 cores" and binding_text([()]) == ""


def test_a_job_can_have_its_python_in_a_container(tmp_path):
    script = Path(__file__).parents[2] / "slurm/container.sh"
    twice = (
        f'source {script}; source {script}; python -c \'import os; print(os.environ["INSIDE"], os.environ["PATH"])\''
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "SLURM_JOB_ID": "7", "HPCTRACK_CONTAINER": "env INSIDE=yes"}
    done = subprocess.run(
        ["bash", "-euc", twice], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["yes", path]
    del environment["HPCTRACK_CONTAINER"]
    done = subprocess.run(
        ["bash", "-euc", twice], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode and "HPCTRACK_CONTAINER: says how to run a command in the container" in done.stderr

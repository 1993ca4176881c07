"""Two network namespaces as two nodes: `torchrun --nnodes 2` over a wire of their own, on which nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpctrack.config import dump_yaml
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.ledger import problems

ADDRESS = ("10.211.7.1", "10.211.7.2")


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str]]]:
    """(namespace, network interface) of two nodes that see each other only."""
    try:
        made = ip("netns", "list")
    except FileNotFoundError:
        pytest.skip("no ip command (Debian: apt-get install iproute2), so no network namespaces")
    tag = uuid.uuid4().hex[:6]
    found = [(f"hpctrack-{tag}-{i}", f"wire{i}{tag}") for i in (0, 1)]
    try:
        for name, _ in found:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"network namespaces need the right to make them: {made.stderr.strip()}")
        wire = [found[0][1], "netns", found[0][0], "type", "veth", "peer", "name", found[1][1], "netns", found[1][0]]
        commands = [["link", "add", *wire]]
        for (name, interface), address in zip(found, ADDRESS, strict=True):
            commands += [["-n", name, "addr", "add", f"{address}/30", "dev", interface]]
            commands += [["-n", name, "link", "set", device, "up"] for device in (interface, "lo")]
        for command in commands:
            made = ip(*command)
            if made.returncode:
                pytest.skip(f"no network between namespaces: {made.stderr.strip()}")
        yield found
    finally:
        for name, _ in found:
            ip("netns", "delete", name)


def test_torchrun_trains_across_two_namespaces(nodes, tmp_path):
    """With /etc/hosts as Debian writes it, by which gloo would give others the loopback as its address."""
    data = toy_dataset(tmp_path / "data")
    config = toy_config(tmp_path / "run", data, train={"steps": 20}, parallel={"timeout_s": 60.0})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
    processes = []
    for node, (name, _) in enumerate(nodes):
        mounted = f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"'
        command = ["ip", "netns", "exec", name, "unshare", "-m", "bash", "-c", mounted, "bash"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        command += [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--node-rank", str(node), "--nproc-per-node", "1", "--master-addr", ADDRESS[0]]
        command += ["--master-port", "29500", "-m", "hpctrack.train", str(tmp_path / "config.yaml")]
        with open(tmp_path / f"log-{node}", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    codes = [process.wait(150) for process in processes]
    logs = [(tmp_path / f"log-{node}").read_text() for node in (0, 1)]
    assert codes == [0, 0], "\n".join(logs)
    assert "ranks: 2 from torchrun" in logs[0] and "step 20/20" in logs[0] and "step" not in logs[1]
    assert problems(Path(config.run)) == []

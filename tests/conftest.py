"""Fixtures for all tests."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from acts_files import write_acts_files
from documented import ROOT, environment
from hypothesis import HealthCheck, settings
from preloaded import preloaded

from hpctrack import convert, simulate

settings.register_profile("hpctrack", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hpctrack")


@pytest.fixture(scope="session")
def trackml_dir() -> Path:
    """The folder of the real event."""
    folder = os.environ.get("HPCTRACK_TRACKML_DIR")
    if not folder:
        pytest.skip("HPCTRACK_TRACKML_DIR is unset; it names the folder of a real TrackML event")
    return Path(folder)


@pytest.fixture(scope="session")
def acts_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of events that ACTS has written: `csv` and, by ColliderML's schema, `parquet`."""
    pytest.importorskip("acts", reason="pyacts is not installed")
    return write_acts_files(tmp_path_factory.mktemp("acts") / "files")


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mounts an empty file system of so many KiB: `small_disk(kib) -> Path`."""
    mounted = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no mount command, so no small disk")
        if done.returncode:
            pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def quick_commands() -> Iterator[Path]:
    """A folder, to be put first into PATH, with an `hpctrack` that starts at once (tests/preloaded.py)."""
    with tempfile.TemporaryDirectory(prefix="hpctrack-") as folder:  # a path short enough for a socket
        commands = Path(folder) / "bin"
        with preloaded(commands, environment(ROOT)):
            yield commands


@pytest.fixture(scope="session")
def helix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four small events in two shards; tests put edges and kept hits beside them, each under own names."""
    folder = tmp_path_factory.mktemp("helix")
    assert not simulate.main([str(folder / "csv"), "--source", "helix", "--events", "4", "--particles", "30"])
    assert not convert.main([str(folder / "csv"), str(folder / "data"), "--events-per-shard", "2"])
    return folder / "data"

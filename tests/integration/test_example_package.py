"""The example of a package of one's own: installed by pip, trained on two ranks, used, put to the contract tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrack import infer
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.toys import toy_dataset

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example_package"


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package, installed into its folder `installed`."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "install",
        *alone,
        "--target",
        str(folder / "installed"),
        str(folder),
    ]
    finish(subprocess.Popen(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    shutil.rmtree(folder / "hpctrack_example")  # so that the installed one is used
    return folder


def start(package: Path, *words: str) -> subprocess.Popen:
    """Begin `python words…` in the package's folder, with the package installed."""
    env = os.environ | {"PYTHONPATH": f"{package / 'installed'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *words], env=env, cwd=package, **pipes)


def finish(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{process.args}: exit {process.returncode}\n{text}"
    return text


def test_a_package_of_ones_own_trains_finds_tracks_and_keeps_the_contracts(package, capsys, monkeypatch):
    toy_dataset(package / "data" / "train")
    toy_dataset(package / "data" / "valid", sizes=(4, 3), seed=1)
    contracts = start(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hpctrack.train"]
    trained = finish(start(package, *ranks, "recipe.yaml", "train.steps=4", "train.log_every=1"))
    assert "step 4/4" in trained and "2 ranks" in trained
    versions = json.loads((package / "runs/deep_sets/versions.json").read_text())
    assert versions["hpctrack-example"] == "0.1.0"

    found = package / "candidates"
    run = ["--checkpoint", str(package / "runs/deep_sets"), "--data", str(package / "data/valid"), "--out", str(found)]
    assert infer.main(run) == 2  # here the package is not installed
    missing = "names an entry of hpctrack-example 0.1.0, which is not installed: pip install hpctrack-example"
    assert missing in capsys.readouterr().err
    monkeypatch.syspath_prepend(package / "installed")
    assert infer.main(run) == 0
    store = CandidateStore(found)
    assert len(store) == 2 and store.attributes["versions"] == {"hpctrack-example": "0.1.0"}
    assert " passed" in finish(contracts)

"""The package as a wheel in an environment of its own: built, installed and used where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "hpctrack", "configs")


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command that ends well, without the checkout in its paths; its standard output and error."""
    return finish(start(*words, cwd=cwd))


def start(*words: str | Path, cwd: Path) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1"}
    command = [str(word) for word in words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd)


def finish(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, f"{process.args}: exit {process.returncode}\n{text}"
    return text


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """The commands of a virtual environment with the wheel; what it depends on is that of the tests' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy, since a build leaves its files beside setup.py
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        kwargs = {"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}
        copy(ROOT / name, folder / "source" / name, **kwargs)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    run(*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", folder, folder / "source", cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    (wheel,) = folder.glob("hpctrack-*.whl")
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", *alone, "--no-compile", wheel, cwd=folder)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(others))
    return folder / "venv" / "bin"


def test_a_wheel_does_all_that_a_checkout_does(bin_folder, tmp_path):
    python, hpctrack = bin_folder / "python", bin_folder / "hpctrack"
    where = "import hpctrack, hpctrack.named_recipes as n; print(hpctrack.__file__, n.folder())"
    assert run(python, "-c", where, cwd=tmp_path).count(str(bin_folder.parent)) == 2
    assert "\npipeline/filter " in run(hpctrack, "recipes", cwd=tmp_path)
    run(hpctrack, "simulate", "csv", "--source", "helix", "--events", "2", "--particles", "40", cwd=tmp_path)
    run(hpctrack, "convert", "csv", "data", "--jobs", "1", cwd=tmp_path)
    keys = ["run=run", "data.train=data", "data.valid=null", "train.steps=2", "builder.radius=0.3"]
    both = [
        start(hpctrack, "train", "influencer-500", *keys, cwd=tmp_path),
        start(hpctrack, "infer", "--checkpoint", "influencer-500", "--data", "data", "--out", "found", cwd=tmp_path),
    ]
    trained, found = (finish(process) for process in both)
    assert "step 2/2" in trained and (tmp_path / "run" / "checkpoints" / "latest").is_file()
    assert "candidates of 2 events" in found

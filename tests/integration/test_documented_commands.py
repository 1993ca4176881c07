"""The commands of README.md and docs/how-to, as they stand there, in a copy of the tree."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from documented import INDEX, PAGES, README, ROOT, blocks, changes_the_package, clone, environment, script

from hpctrack.storage.candidates import CandidateStore

HOW_TO = {page.name: page for page in PAGES if page not in (README, INDEX)}


def run(commands: str, folder: Path, *first: Path) -> str:
    """Run commands in a shell that stops at the first that fails; their output. Programs in `first` come first."""
    shell = ["bash", "-c", commands]
    done = subprocess.run(
        shell, cwd=folder, env=environment(folder, *first), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_commands_of_the_readme_run_on_two_ranks_and_one_rank_finds_the_same(tmp_path, quick_commands):
    text = run(script(README), clone(tmp_path), quick_commands)  # torchrun and its ranks are real
    assert "2 x cpu (torchrun, gloo process group)" in text and "builder.radius=" in text
    assert re.search(r"step (\d+)/\1 ", text) and re.search(r"candidates of \d+ events, digest", text)
    assert list((tmp_path / "runs/influencer/tensorboard").glob("events.*"))
    assert "<html" in (tmp_path / "report.html").read_text()
    run("hpctrack infer --checkpoint runs/influencer --data data/test-20 --out alone", tmp_path, quick_commands)
    assert CandidateStore(tmp_path / "alone").digest == CandidateStore(tmp_path / "candidates").digest


@pytest.fixture(scope="module")
def project(tmp_path_factory, quick_commands) -> Path:
    """A clone with the data and the run of the how-to pages."""
    folder = clone(tmp_path_factory.mktemp("how-to"))
    run(script(INDEX), folder, quick_commands)
    return folder


@pytest.mark.parametrize("page", HOW_TO.values(), ids=HOW_TO)
def test_the_commands_of_a_page_run(page, project, quick_commands):
    run(script(page), project, *([] if changes_the_package(page) else [quick_commands]))


def test_every_block_is_run_or_says_why_not():
    for block in (block for page in PAGES for block in blocks(page)):
        if block.language != "bash":
            assert not block.runs and not block.values, f"{block.where}: only commands are run"
            continue
        known = block.runs in ("", "slurm") or block.reason or (ROOT / block.elsewhere).is_file()
        assert known, f"{block.where}: '{block.runs}' is none of slurm, never with a reason, in FILE"
        assert block.script()


def test_blocks_that_are_not_run_are_shell_and_name_files_that_exist():
    texts = {block.where: block.text for page in PAGES for block in blocks(page) if block.language == "bash"}
    parsed = subprocess.run(
        ["bash", "-n"], input="\n".join(texts.values()), capture_output=True, text=True, check=False
    )
    assert parsed.returncode == 0, parsed.stderr
    for where, text in texts.items():
        for name in re.findall(r"(?<![\w./-])(?:launch|slurm|configs|tests)/[\w./-]+\w", text):
            assert (ROOT / name).exists(), f"{where}: no {name}"


def test_a_replaced_value_must_be_there():
    block = next(block for block in blocks(INDEX) if block.values)
    missing = replace(block, text="hpctrack train influencer train.steps=30\n", values={"steps": "2"})
    with pytest.raises(ValueError, match=r"docs/how-to/README.md:\d+: has no steps that could be 2"):
        missing.script()
    assert replace(block, text="a --n 30 m.n=4 n='5 6'\n", values={"n": "2"}).script() == "a --n 2 m.n=4 n=2\n"

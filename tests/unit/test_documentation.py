"""The documents: shipped models have cards, versions agree, lines of Python run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

import hpctrack

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/fixtures/v0_1_0"
CARD = ["Trained", "How good", "Limits", "Licence"]


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("hpctrack/pretrained/*/meta.json")))
def test_every_shipped_model_has_a_card(folder):
    card = (folder / "README.md").read_text()
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == CARD
    assert card.startswith(f"# {folder.name}\n") and f"--checkpoint {folder.name}" in card


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hpctrack.__version__ and citation["license"] == "Apache-2.0"
    ruff = re.search(r"^ruff==(.*)$", (ROOT / "launch/constraints.txt").read_text(), re.MULTILINE)[1]
    revisions = {
        repo["repo"]: repo["rev"] for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    }
    assert revisions["https://github.com/astral-sh/ruff-pre-commit"] == f"v{ruff}"


def test_lines_that_read_files_run_as_they_stand(tmp_path, monkeypatch):
    shutil.copytree(OLD / "data", tmp_path / "data/train")
    shutil.copytree(OLD / "candidates", tmp_path / "candidates")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/reference/data-format.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = {}
    for block in blocks:
        exec(compile(block, "docs/reference/data-format.md", "exec"), found)
    assert len(blocks) == 3 and len(found["hits"]) == len(found["event"].column("hits.x")) == len(found["track_of_hit"])
    assert (found["hits"].x == found["event"].column("hits.x")).all()

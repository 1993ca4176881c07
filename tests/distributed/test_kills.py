"""Small versions of the campaigns of kills and faults: whatever ends a verb, every file is the same in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import injected, ranks_killed, resume

CAMPAIGN = Path(__file__).parents[1] / "campaigns/kills.py"


@pytest.mark.parametrize("what", ["convert", "infer"])
def test_ten_kills(what):
    command = [sys.executable, str(CAMPAIGN), "--what", what, "--n", "10", "--seed", "3", "--quick"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 3: 10 kills, " in done.stdout and " 0 differ, " in done.stdout


def test_three_kills_under_torchruns_restarts(tmp_path):
    assert "3 kills, 1 runs: no hang, every ledger exact, every curve bit-equal" in ranks_killed.campaign(
        tmp_path, 3, 2
    )


@pytest.mark.parametrize(
    ("verb", "part"),
    [("train, a checkpoint rewritten", 40), ("convert", 120), ("infer --part", 50), ("simulate", 30), ("evaluate", 5)],
)
def test_a_part_of_all_faults_of_file_operations(tmp_path, verb, part):
    found = injected.Struck(verb, tmp_path).campaign(part)
    assert found["points"] >= 4 and not found["failures"], found["failures"]


def test_a_training_that_goes_on_three_times_elsewhere():
    found = resume.resumed_three_times(1, seed=5, jobs=1)
    assert ": 0 failures, else every ledger exact, " in resume.summary(found, 0), found
    ends = [segment["ended"] for one in found for segment in one["segments"]]
    assert sorted(ends) == ["SIGKILL", "SIGTERM", "SIGUSR1", "done"]

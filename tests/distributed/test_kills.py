"""A small version of the kill campaign: kill -9 at random moments, again and again, and every file ends the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import ranks_killed

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

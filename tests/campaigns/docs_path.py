"""Run every command of docs/distributed.md's path, as it stands there, on a two-node Slurm cluster of this machine.

    python tests/campaigns/docs_path.py

Blocks that begin with ```bash are run, one after the other, in one shell that stops at the first error; ```bash site is
for the site's own. Everything is written into runs/first, which must not be there yet.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = "## From login to a scaling plot"


def commands() -> str:
    """The blocks of the path."""
    text = (ROOT / "docs/distributed.md").read_text()
    section = text[text.index(PATH) :].split("\n## ", 1)[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))


def main() -> int:
    """Exit code of the commands."""
    if (ROOT / "runs/first").exists():
        raise SystemExit("runs/first is there already; remove it first")
    with tempfile.TemporaryDirectory(prefix="hps-", dir="/tmp") as folder:
        settings = {"HPCTRACK_SLURM_DIR": f"{folder}/c", "HPCTRACK_RANKS_PER_NODE": "1"}
        settings["HPCTRACK_ENV"] = f"{Path(sys.executable).parent}/activate"
        script = "set -euxo pipefail\n" + commands().replace("source .venv/bin/activate", "source $HPCTRACK_ENV")
        cluster = ["bash", "launch/slurm_local.sh", "run", "bash", "-c", script]
        return subprocess.run(cluster, cwd=ROOT, env=os.environ | settings, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())

"""Run the commands of docs/how-to that need a cluster, as they stand, on a two-node Slurm cluster of this machine.

    python -m tests.campaigns.docs_path

They are run in a copy of the project, after those of the index, whose data they take (tests/documented.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.documented import INDEX, PAGES, ROOT, blocks, clone, environment, script


def main() -> int:
    """Exit code of the commands."""
    pages = [INDEX, *(page for page in PAGES if any(block.runs == "slurm" for block in blocks(page)))]
    commands = "\n".join(script(page, "slurm") for page in pages)
    with tempfile.TemporaryDirectory(prefix="hps-", dir="/tmp") as folder:  # short, for the sockets
        project = clone(Path(folder))
        settings = {"HPCTRACK_SLURM_DIR": f"{folder}/c", "HPCTRACK_RANKS_PER_NODE": "1"}
        settings["HPCTRACK_ENV"] = f"{Path(sys.executable).parent}/activate"
        cluster = ["bash", str(ROOT / "launch/slurm_local.sh"), "run", "bash", "-x", "-c", commands]
        return subprocess.run(cluster, cwd=project, env=environment(project) | settings, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())

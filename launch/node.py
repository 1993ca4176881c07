"""torchrun on one node of a batch job: `srun --ntasks-per-node 1 python launch/node.py TORCHRUN-ARGUMENTS`.

Batch systems signal all processes of a job. SIGUSR1 and SIGTERM are for the workers, which save and end by themselves;
torchrun would die of the first and cut the workers short on the second. Its exit code is 1 whatever happened; here it
is that of the first worker that failed, and 85 (preempted) also for one that was signalled before it could act on it.
torchrun waits for the other nodes' in silence, up to --rdzv-conf join_timeout=600; here a line says so after 10 s.
SIGINT (Ctrl-C) and SIGHUP are passed on to the workers, which have 30 s to save before torchrun kills them; what was
ignored at the start (`nohup`) stays so.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

WORKERS_OWN = (signal.SIGUSR1, signal.SIGTERM)
PREEMPTED = 85
WORD_S = 10.0
TORCHRUNS = [  # what it passes on, and ends of
    name
    for name in os.environ.get("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT").split(",")
    if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN
]
for number in WORKERS_OWN:  # a function, since workers would inherit "ignored"
    signal.signal(number, lambda *_: None)
for name in TORCHRUNS:  # until there are workers
    signal.signal(signal.Signals[name], lambda number, _: os._exit(128 + number))
os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(TORCHRUNS)
# A store of its own for each restart: in a shared one, restarted ranks find the addresses of those that were killed.
os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")

from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: E402 - handlers come first
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402 - handlers come first
from torch.distributed.elastic.rendezvous import RendezvousError  # noqa: E402
from torch.distributed.run import main  # noqa: E402


def say(text: str) -> None:
    """A line about this node's launcher and where it meets the others."""
    where = dict(zip(sys.argv, sys.argv[1:], strict=False)).get("--rdzv-endpoint", "the endpoint")
    print(f"launch/node.py: {socket.gethostname()}, at {where}: {text}", file=sys.stderr, flush=True)


def word() -> None:
    """Say that no worker has been started yet, if that is so."""
    started = Path(f"/proc/self/task/{os.getpid()}/children")
    if started.exists() and not started.read_text().strip():
        say(f"waits for the launchers of other nodes (since {WORD_S:g} s)")


if __name__ == "__main__":
    timer = threading.Timer(WORD_S, word)
    timer.daemon = True
    timer.start()
    try:
        main()
    except RendezvousError as error:
        say(f"error: the launchers did not meet ({type(error).__name__}{f': {error}' if str(error) else ''})")
        sys.exit(1)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code == PREEMPTED or -code in WORKERS_OWN:
            sys.exit(PREEMPTED)
        print(f"launch/node.py: rank {rank} was the first to fail, exit code {code}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)

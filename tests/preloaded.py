"""An `hpctrack` command that starts at once: a process that has imported the package forks for each call.

Most of the time of a documented command on small data is the import of torch. Here one process imports it, and the
`hpctrack` in `folder` asks that process to run `hpctrack.cli.main` with the caller's arguments, folder, variables and
standard files. The exit code is the command's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SIZE = 8  # bytes that say how long a request is
COMMAND = f"""#!{sys.executable} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "socket"))
    request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes({SIZE}, "big")], [0, 1, 2])
    server.sendall(request)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@contextmanager
def preloaded(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, `folder`, which is made and has a short path, holds a command `hpctrack`."""
    folder.mkdir()
    (folder / "hpctrack").write_text(COMMAND)
    (folder / "hpctrack").chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(folder / "socket")], env=environment)
    try:
        while not (folder / "socket").exists():
            assert server.poll() is None, "the process that imports hpctrack has ended"
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait()


def serve(address: str) -> None:
    """Import every verb, then fork for each request, for ever."""
    from hpctrack.process.verbs import VERBS, module_of

    for verb in VERBS:
        importlib.import_module(module_of(verb))
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, all pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the forked processes end
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        os.rename(f"{address}.new", address)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answer(client)


def answer(client: socket.socket) -> None:
    """Run a request in a child, and say how it ended."""
    size, files, _, _ = socket.recv_fds(client, SIZE, 3)
    with client.makefile("rb") as stream:
        arguments, folder, variables = json.loads(stream.read(int.from_bytes(size, "big")))
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        client.send(bytes([os.waitstatus_to_exitcode(status) & 255]))
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    client.close()
    for name, (number, mode) in {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}.items():
        setattr(sys, name, open(number, mode, errors="backslashreplace"))  # noqa: SIM115 - until the process ends
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = arguments
    try:
        code = importlib.import_module("hpctrack.cli").main()
    except SystemExit as end:  # of --help, or of options that argparse refuses
        code = end.code if isinstance(end.code, int) else bool(end.code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # taking down all that was imported takes longer than most commands


if __name__ == "__main__":
    sys.path.pop(0)  # of tests
    serve(sys.argv[1])

"""A probe process that is really dumped and really restored: the only proof that a CRIU works on this kernel.

`criu check` proves nothing: there are versions that say "Looks good" and cannot dump a single socket.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
import uuid
from pathlib import Path

from worker import orphans
from worker.engine import Engine
from worker.errors import JobFailed
from worker.paths import Paths
from worker.tools import Tools

# It has what servers have: a listening socket, a thread, a pipe; and it counts, to show that it is the same.
_PROGRAM = """
import os, socket, sys, threading
pipe = os.pipe()
threading.Thread(target=os.read, args=(pipe[0], 1), daemon=True).start()
server = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as file:
    file.write(str(server.getsockname()[1]) + "\\n")
count = 0
while True:
    connection, _ = server.accept()
    count += 1
    connection.sendall(str(count).encode())
    connection.close()
"""
_PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


def run(criu_binary: str, tini: str) -> float:
    """Start, dump and restore a probe process in folders of its own, and leave nothing behind.

    Returns:
        Seconds that the dump and the restore took together.

    Raises:
        JobFailed: a step failed, or the restored process is not the one that was dumped.
    """
    with tempfile.TemporaryDirectory(prefix="miehisto-probe-") as folder:
        base = Path(folder)
        paths = Paths(base / "state", base / "run", base / "log")
        for path in (paths.images, paths.run_dir / "services", paths.log_dir):
            path.mkdir(parents=True)
        engine = Engine(Tools(paths, criu_binary, tini, timeout=60, settle=0.05))
        return _go_through(engine, base / "port")


def _go_through(engine: Engine, port_file: Path) -> float:
    service_id, image_id = uuid.uuid4().hex, uuid.uuid4().hex
    engine.start(service_id, {"argv": [_PYTHON, "-c", _PROGRAM, str(port_file)]})
    try:
        port = _port(port_file)
        before = _count(port)
        began = time.monotonic()
        engine.dump(service_id, image_id)
        engine.restore(service_id, image_id)
        seconds = time.monotonic() - began
        if _count(port) != before + 1:
            raise JobFailed(
                "probe_differs", "The restored probe is not where the dumped one was.", "Use another CRIU."
            )
        return seconds
    finally:
        engine.stop(service_id, 1.0)


def _port(file: Path) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if file.exists() and file.read_text().endswith("\n"):
            return int(file.read_text())
        time.sleep(0.01)
    raise JobFailed("probe_silent", "The probe process did not start.", f"Try {_PYTHON} by hand.")


def _count(port: int) -> int:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return int(connection.recv(32))
    except (OSError, ValueError) as error:
        raise JobFailed(
            "probe_silent", f"The probe process does not answer: {error}.", "Use another CRIU."
        ) from None


def main() -> int:
    """Probe the CRIU that the command line names; 0 if it works here, else 1 and the reason on stderr."""
    parser = argparse.ArgumentParser("python -m worker.probe", description=__doc__)
    parser.add_argument("--criu", required=True)
    parser.add_argument("--tini", default="/usr/bin/tini-static")
    arguments = parser.parse_args()
    orphans.adopt()
    try:
        seconds = run(arguments.criu, arguments.tini)
    except JobFailed as failure:
        sys.stderr.write("\n".join([failure.message, *failure.lines, failure.remedy]) + "\n")
        return 1
    finally:
        orphans.reap()
    sys.stdout.write(f"dumped and restored in {seconds:.2f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A node whose parts are started one by one, as units of systemd or containers are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import CHECKOUT, READY_WITHIN, Stack, eventually, free_port, get_page
from worker import orphans


class Parts(Stack):
    """The same node as four processes of miehistod."""

    def launch(self, only: str) -> subprocess.Popen[bytes]:
        """Start a miehistod with these parts and wait until it is ready."""
        self.output = self.folder / f"{only}.log"
        with self.output.open("wb") as output:
            daemon = subprocess.Popen(
                [*self.command, "--only", only],
                cwd=CHECKOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        assert eventually(lambda: "\nready" in self.said() or daemon.poll() is not None, READY_WITHIN)
        assert daemon.poll() is None, self.said()
        return daemon


@pytest.fixture
def parts(folder: Path) -> Iterator[Parts]:
    """Prepared folders, and none of the parts running."""
    orphans.adopt()
    folder.chmod(0o755)
    made = Parts(folder)
    done = subprocess.run(
        [*made.command, "--prepare"], cwd=CHECKOUT, env=made.environment, check=True, capture_output=True
    )
    assert done.stdout == b""
    yield made
    orphans.reap()


def end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(15) == 0


def test_each_part_comes_and_goes_by_itself_and_services_stay(parts: Parts) -> None:
    running = {only: parts.launch(only) for only in ("redis", "worker", "site,scheduler")}
    try:
        port = free_port()
        service = parts.create(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
        pid = parts.show("service", service)["pid"]
        eventually(lambda: get_page(port))
        for only in ("worker", "redis"):  # as `systemctl restart` does it
            end(running.pop(only))
            running[only] = parts.launch(only)
        os.kill(pid, 0)
        image = parts.dump(service)
        end(running.pop("site,scheduler"))
        running["site,scheduler"] = parts.launch("site,scheduler")
        parts.restore(image)
        assert eventually(lambda: get_page(port))
        parts.clear()
    finally:
        for daemon in running.values():
            end(daemon)

"""`make demo`, as it is typed: the whole walk-through, of which nothing stays, beside a node that does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.stack import CHECKOUT, Stack, eventually, get_page


def test_the_demo_shows_the_walk_through_and_touches_no_other_node(stack: Stack) -> None:
    """The demo deletes all services at its end; its caller may have set the address of a node in use."""
    kept = stack.create("sleep", "600")
    done = subprocess.run(
        [CHECKOUT / "scripts/demo"],
        env={
            **stack.environment,
            "DEMO_EXIT": "1",
            "MIEHISTO_URL": f"http://127.0.0.1:{stack.port}",
            "MIEHISTO_TOKEN": stack.token(),
            "DATABASE_URL": f"sqlite:///{stack.folder}/state/database/db.sqlite3",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line for line in done.stdout.splitlines() if "$ " in line]
    words = [
        "miehistod",
        "create",
        "curl",
        "list",
        "dump",
        "list",
        "curl",
        "image list",
        "restore",
        "list",
        "curl",
    ]
    assert len(shown) == len(words)
    for line, word in zip(shown, words, strict=True):
        assert word in line, line
    assert "curl: (7) Failed to connect" in done.stdout + done.stderr
    assert done.stdout.count("<!DOCTYPE HTML>") == 2
    assert stack.show("service", kept)["status"] == "running"


def test_ctrl_c_ends_the_demo_with_nothing_left(folder: Path) -> None:
    """Pressed twice, as who is impatient does."""
    output = folder / "output"
    # What runs these tests in the background ignores SIGINT, and its children inherit that.
    command = ["env", "--default-signal=INT", str(CHECKOUT / "scripts/demo")]
    with output.open("wb") as file:
        demo = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        assert eventually(lambda: "Press Ctrl-C" in output.read_text() or demo.poll() is not None, 120)
        assert demo.poll() is None, output.read_text()
        shown = output.read_text()
        place = re.search(r"miehistod >(/tmp/miehisto-demo-\w+)/miehistod.log", shown)
        port = re.search(r"http.server (\d+)", shown)
        assert place and port
        assert _processes_of(place[1])
        assert get_page(int(port[1]))
    finally:
        for _ in range(2):
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGINT)
                eventually(lambda: demo.poll() is not None, 0.5)
        assert demo.wait(60) == 130, output.read_text()
    assert not Path(place[1]).exists()
    assert eventually(lambda: not _processes_of(place[1])), _processes_of(place[1])
    with pytest.raises(OSError, match="refused"):
        get_page(int(port[1]))


def _processes_of(folder: str) -> list[int]:
    """Return who names the demo's folder in its command line or its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in told:
            found.append(int(path.name))
    return found

"""`make demo`, as it is typed: the whole walk-through, of which nothing stays, beside a node that does."""

from __future__ import annotations

import subprocess

from tests.stack import CHECKOUT, Stack


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

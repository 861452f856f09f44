"""What miehistod and its parts write, as JSON: each line is an object, and says what it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miehistod.saying import say_json
from tests.isolation import FOLDER
from tests.stack import CHECKOUT, Stack


def entries(stack: Stack) -> list[dict[str, Any]]:
    """Return the lines that the node has written; each of them has to be an object."""
    return [json.loads(line) for line in stack.output.read_text().splitlines()]


def test_a_node_writes_one_object_a_line_with_the_ids_of_job_and_service() -> None:
    folder = FOLDER / "node-with-json"
    folder.mkdir(mode=0o755)
    stack = Stack(folder)
    stack.environment["MIEHISTO_LOG_FORMAT"] = "json"
    stack.start()
    try:
        service = stack.create("sleep", "1000", options=("--name", "calm"))
        failed = stack.mhctl("service", "create", "--json", "--", "/does/not/exist", check=False)
        assert failed.code == 1
        jobs = {job["object_id"]: job for job in stack.api("GET", "jobs").body}
        stack.clear()
    finally:
        stack.stop()
    said = entries(stack)
    for entry in said:
        assert {"time", "part", "message"} <= entry.keys(), entry
    assert {"miehistod", "worker", "site"} <= {entry["part"] for entry in said}
    assert any(entry["message"] == "stopped" for entry in said if entry["part"] == "miehistod")
    asked = [entry for entry in said if entry.get("path", "").startswith("/api/v1/services")]
    assert {(entry["method"], entry["status"]) for entry in asked} >= {("POST", 200), ("GET", 200)}
    assert all(entry["part"] == "site" and entry["milliseconds"] >= 0 for entry in asked)
    assert all("level" in entry for entry in said if entry["part"] == "redis"), said
    for number, job in jobs.items():
        about = [entry for entry in said if entry.get("job") == number]
        assert about, f"nothing is said of {job}"
        assert all(entry["service"] == job["service"] for entry in about)
        warned = any(entry["level"] == "warning" for entry in about)
        assert warned is (job["status"] == "failed"), about
    assert service in {job["service"] for job in jobs.values()}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            "redis     | 13:M 23 Nov 2026 23:20:31.288 # Memory is short",
            {"part": "redis", "level": "warning", "message": "Memory is short"},
        ),
        (
            "site      | [2026-11-23 23:20:32 +0000] [21] [INFO] Starting gunicorn",
            {"part": "site", "level": "info", "message": "Starting gunicorn"},
        ),
        (
            'site      | 404 GET /a b","job":"x 12ms',
            {"part": "site", "level": "info", "status": 404, "method": "GET", "milliseconds": 12}
            | {"path": '/a b","job":"x', "message": '404 GET /a b","job":"x 12ms'},
        ),
        ("site      | Traceback:", {"part": "site", "message": "Traceback:"}),
    ],
)
def test_lines_of_programs_that_know_no_json_are_taken_apart(
    line: str, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    say_json(line)
    entry = json.loads(capsys.readouterr().out)
    assert entry.pop("time")
    assert entry == fields


def test_a_traceback_is_a_part_of_its_line() -> None:
    program = (
        "import django, logging; django.setup()\n"
        "from services.concerning import concerning\n"
        "with concerning(job='j', service=''):\n"
        "    try: raise ValueError('first\\nsecond')\n"
        "    except ValueError: logging.getLogger('worker.x').exception('it \\x1b[2J %s', 'failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PATH": "/usr/bin:/bin",
            "DJANGO_SETTINGS_MODULE": "miehisto_web.settings",
            "MIEHISTO_LOG_FORMAT": "json",
            "DATABASE_URL": "sqlite:///:memory:",
        },
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["job"]) == ("error", "worker.x", "j")
    assert entry["message"] == "it \x1b[2J failed" and "\x1b" not in line and "service" not in entry
    assert entry["traceback"].endswith("ValueError: first\nsecond")


def test_a_format_that_there_is_not_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "miehistod.main"],
        env={"PATH": "/usr/bin:/bin", "MIEHISTO_STATE_DIR": str(tmp_path), "MIEHISTO_LOG_FORMAT": "xml"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Set MIEHISTO_LOG_FORMAT to text or json." in done.stderr
    assert not list(tmp_path.iterdir())

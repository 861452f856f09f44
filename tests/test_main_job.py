"""The main job, end to end: by mhctl, through the site, the queue and the worker, with real CRIU."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

from tests.stack import Stack, eventually, free_port, get_page


def test_the_walk_through(stack: Stack) -> None:
    """The README's example, line by line."""
    port = free_port()
    service = stack.create("python3", "-m", "http.server", str(port), "-d", "/etc")
    assert re.fullmatch(r"[0-9a-f]{32}", service)
    content = eventually(lambda: get_page(port, "hostname"))

    heading, row = stack.mhctl("service", "list").out.splitlines()
    assert heading.split() == ["OBJECT_ID", "PID", "PPID", "ARGS"]
    listed, pid, ppid, arguments = row.split(maxsplit=3)
    assert (listed, arguments) == (service, f"python3 -m http.server {port} -d /etc")

    folder = stack.mhctl("service", "dump", "-t", pid).out.strip()
    assert folder.startswith(f"{stack.folder}/state/images/")
    assert stack.mhctl("service", "list").out.splitlines() == [heading]
    assert service in stack.mhctl("service", "list", "--all").out
    try:
        get_page(port, "hostname")
        raise AssertionError("the dumped server still answers")
    except OSError:
        pass

    image = folder.rpartition("/")[2]
    heading, row = stack.mhctl("image", "list").out.splitlines()
    assert heading.split() == ["OBJECT_ID", "COMM", "PAGE_SIZE", "CTIME"]
    assert re.fullmatch(rf"{image}\s+python3\s+\d+\.\d\dMiB\s+\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \+0000", row)

    assert stack.mhctl("service", "restore", "--from", image).out.strip() == image
    assert get_page(port, "hostname") == content
    again = stack.mhctl("service", "list").out.splitlines()[1].split(maxsplit=3)
    assert again[0] == service
    assert (again[1], again[2]) != (pid, ppid)


def test_a_later_image_is_the_newer_whatever_the_clock_says(stack: Stack) -> None:
    """A boot restores the newest; a clock that was set back leaves images from the future behind."""
    service = stack.create("sleep", "1000")
    images = [stack.dump(service, "--leave-running")]
    with closing(sqlite3.connect(stack.folder / "state/database/db.sqlite3", timeout=20)) as rows, rows:
        rows.execute("UPDATE images_image SET created_at = datetime(created_at, '+1 hour')")
    images += [stack.dump(service, "--leave-running"), stack.dump(service)]
    assert [image["object_id"] for image in stack.api("GET", "images").body] == images
    assert stack.mhctl("image", "verify", images[1]).code == 0

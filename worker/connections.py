"""What becomes of a service's TCP connections while it is away. Knows nothing of dumping and restoring.

A dump that ends its service leaves a firewall table of CRIU's that drops the packets of its connections, so
that no client is told that the server is gone; the restore of that image takes it away. Connections can be
picked up again once, by the image that was the service's present: after a start, or a restore of another
image, they have moved on, and so they have when a restore of that one was broken off too late. So each
service has a file that says which image is its present, if any, and whether its clients have been let go.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import threading
from pathlib import Path

from google.protobuf.message import DecodeError
from pycriu.images.inventory_pb2 import inventory_entry

from worker import criu
from worker.durable import write_json
from worker.errors import describe
from worker.paths import Paths

# CRIU cuts the name of its run to what is left of 31 characters after "inet CRIU-" (criu/netfilter.c).
_NAME_LENGTH = 21
_RUN = re.compile(r"[0-9A-Za-z-]{1,64}\Z")

_LET_GO = "let_go"
_LOCK_SKIPPED = 2
"""NETWORK_LOCK_SKIP (criu/include/cr_options.h)."""

log = logging.getLogger(__name__)


def run_of(image: Path) -> str:
    """Return the name of the CRIU run that made an image, by which it has named its firewall table."""
    inventory = criu.entries_if_any(image / "inventory.img")
    return str(inventory[0].get("dump_criu_run_id", "")) if inventory else ""


def are_in(image: Path) -> bool:
    """Tell whether there are TCP connections in an image."""
    return any(image.glob("tcp-stream-*.img"))


def spare_unlocking(image: Path) -> None:
    """Write into an image without connections that its restore has no lock of the network to take back.

    CRIU reads from the inventory by what means the dump has locked, whatever the restore asks for
    (criu/image.c), and the kernel takes 12 ms to say that there is no such firewall table.

    Raises:
        OSError: the image cannot be read or written.
    """
    path = image / "inventory.img"
    content = path.read_bytes()
    # A magic number, the length of the one entry, and the entry (pycriu/images/images.py).
    head, length, packed = content[:4], content[4:8], content[8:]
    if are_in(image) or int.from_bytes(length, "little") != len(packed):
        return
    try:
        entry = inventory_entry.FromString(packed)
    except DecodeError as error:
        log.warning("%s is left as it is: %s", path, error)
        return
    entry.network_lock_method = _LOCK_SKIPPED
    packed = entry.SerializeToString()
    path.write_bytes(head + len(packed).to_bytes(4, "little") + packed)


def are_stale(paths: Paths, service_id: str, image_id: str) -> bool:
    """Tell whether an image's connections have moved on, for the service has run on since, or was about to.

    An image that came from elsewhere, to a node that knows nothing of its service, is not stale.
    """
    present = _read(paths, service_id)
    return bool(present) and (present.get("image") != image_id or _LET_GO in present)


def are_awaited(paths: Paths, service_id: str, image_id: str) -> bool:
    """Tell whether clients that were connected at the dump can be picked up by this image."""
    present = _read(paths, service_id)
    return present.get("image") == image_id and bool(present.get("run"))


def are_held(paths: Paths, service_id: str) -> bool:
    """Tell whether CRIU's firewall table keeps the connections of a service that is an image at present.

    Who reloads the rules of a firewall takes it away, and so does a restore in its last moment.
    """
    return _nft("list", str(_read(paths, service_id).get("run", "")))


def present_image(paths: Paths, service_id: str) -> str:
    """Return the id of the image that a service is at present; empty if it is none, or runs."""
    return str(_read(paths, service_id).get("image", ""))


def service_left(paths: Paths, service_id: str, image_id: str) -> None:
    """Note that the service is now this image; CRIU's firewall table stays only if it holds a connection.

    A power cut in the next seconds may take the note with it, as it does the table: then a restore tells the
    clients that their connections are gone.
    """
    image = paths.image(image_id)
    run = run_of(image)
    held = are_in(image)
    if not held:
        # The kernel takes 20 ms for it, and nobody waits for that: no connection is concerned.
        threading.Thread(target=release, args=(run,), name="release").start()
    write_json(_path(paths, service_id), {"image": image_id, "run": run if held else ""}, durable=False)


def service_runs(paths: Paths, service_id: str, image_id: str) -> None:
    """Note that the service runs, from this image or (empty) a start; connections of another are let go."""
    present = _read(paths, service_id)
    if present.get("image") and present["image"] != image_id:
        release(str(present.get("run") or present.get(_LET_GO, "")))
    write_json(_path(paths, service_id), {"image": "", "run": ""}, durable=False)


def about_to_go(paths: Paths, service_id: str, image_id: str) -> None:
    """Note that CRIU is about to let go of an image's connections, which cannot be undone.

    From then on a client that sends something is answered: by the service or, if the restore is broken off,
    that nobody is there. The next restore of the image would take up connections that clients have given up.
    """
    present = _read(paths, service_id)
    if present.get("image") == image_id and present.get("run"):
        gone = {"image": image_id, "run": "", _LET_GO: present["run"]}
        try:
            write_json(_path(paths, service_id), gone, durable=False)
        except OSError as error:  # a full disk must not keep a service from coming back
            log.warning("should this restore be broken off, its clients are not told: %s", describe(error))


def went(paths: Paths, service_id: str, image_id: str) -> bool:
    """Tell whether a restore that was broken off had begun to let go of an image's connections.

    What it still held is let go of, too; so to be called when no process of it is left.
    """
    present = _read(paths, service_id)
    run = present.get(_LET_GO, "") if present.get("image") == image_id else ""
    release(run)
    return bool(run)


def release(run: str) -> None:
    """Let go of the connections that a CRIU run holds; nothing happens if it holds none."""
    _nft("delete", run)


def _nft(verb: str, run: str) -> bool:
    """Have nft list or delete the table of a CRIU run; False if there is none, or that cannot be done."""
    if not run:
        return False
    # nft reads its arguments as one text of its language, and an image may come from a stranger.
    if not _RUN.match(run):
        log.warning("no run of CRIU's has the id %.80r, so no firewall table is looked for", run)
        return False
    words = ["nft", verb, "table", "inet", f"CRIU-{run[:_NAME_LENGTH]}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the firewall table of CRIU's run %s may be left: %s", run, error)
        return False
    if done.returncode and "No such file" not in done.stderr:
        log.warning("the firewall table of CRIU's run %s may be left: %s", run, done.stderr.strip())
    return done.returncode == 0


def _path(paths: Paths, service_id: str) -> Path:
    return paths.spec(service_id).with_name("present.json")


def _read(paths: Paths, service_id: str) -> dict[str, str]:
    try:
        present = json.loads(_path(paths, service_id).read_bytes())
    except (OSError, ValueError):
        return {}
    return present if isinstance(present, dict) else {}

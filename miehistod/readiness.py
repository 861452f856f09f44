"""When a node is ready: Redis answers, the site answers, and the worker's agent has left its sign of life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from mhctl.client import Client
from mhctl.errors import ApiError, MhctlError
from miehistod.settings import Settings

PAUSE = 0.05  # seconds between two looks
LONGEST_LOOK = 5.0  # seconds; a stop must not have to wait for longer
REPORT_EVERY = 20.0  # seconds


def worker_sign(settings: Settings) -> Path:
    """The file that the worker's agent touches with each heartbeat."""
    return settings.run_dir / "worker.ready"


async def redis_answers(settings: Settings) -> bool:
    """Whether the private Redis answers a PING."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(settings.redis_dir / "redis.sock"))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await asyncio.wait_for(reader.readline(), 1)).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def site_answers(settings: Settings) -> bool:
    """Whether the site answers root's token on the unix socket. Blocks."""
    client = Client(f"unix:{settings.run_dir / 'miehistod.sock'}")
    client.token = (settings.run_dir / "token").read_text(encoding="ascii").strip()
    try:
        client.open("GET", "services", timeout=LONGEST_LOOK).close()
    except ApiError as error:
        return error.status < 500  # it refused, so it is there
    except MhctlError:
        return False
    return True


async def until_ready(settings: Settings, say: Callable[[str], None], *, site: bool, worker: bool) -> None:
    """Waits until the node is ready, and says now and then what it waits for.

    Args:
        site, worker: whether they are waited for.
    """
    loop = asyncio.get_running_loop()
    report_at = loop.time() + REPORT_EVERY
    while True:
        site = site and not await asyncio.to_thread(site_answers, settings)
        worker = worker and not worker_sign(settings).exists()
        if not (site or worker):
            return
        if loop.time() > report_at:
            waiting = [name for name, missing in (("the site", site), ("the worker", worker)) if missing]
            say(f"miehistod | not ready yet: waiting for {' and '.join(waiting)}")
            report_at = loop.time() + REPORT_EVERY
        await asyncio.sleep(PAUSE)


def tell_systemd() -> None:
    """Tell the service manager, if one asked (sd_notify(3)), that this unit is ready."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace, unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to, contextlib.suppress(OSError):
        to.sendto(b"READY=1", address)

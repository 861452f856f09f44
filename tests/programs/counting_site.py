"""A site for gunicorn, and gunicorn's own settings: three workers, each of which counts its requests.

A worker's count lies in its own memory; it is copied into memory that all share, so that any worker can tell
the counts of all: `/state` says them, `/grow` counts one more.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

WORKERS = 3
preload_app = True
workers = WORKERS
_ROW = struct.Struct("ii")
_shared = mmap.mmap(-1, WORKERS * _ROW.size)
_mine = {"slot": 0, "count": 0}


def post_fork(_arbiter: object, worker: Any) -> None:
    """Called by gunicorn in each new worker; `age` numbers them from 1."""
    _mine["slot"] = worker.age - 1
    _tell()


def _tell() -> None:
    _ROW.pack_into(_shared, _mine["slot"] * _ROW.size, os.getpid(), _mine["count"])


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """The site (WSGI)."""
    if environ["PATH_INFO"] == "/grow":
        _mine["count"] += 1
        _tell()
    start_response("200 OK", [("Content-Type", "application/json")])
    rows = [_ROW.unpack_from(_shared, slot * _ROW.size) for slot in range(WORKERS)]
    return [json.dumps(dict(rows)).encode()]

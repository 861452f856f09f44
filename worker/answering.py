"""Answers the site's questions about live processes, by Redis: the site may not look into other users' ones.

A question carries a service's id and where to put the answer; nothing of it becomes a path unchecked.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker import presently, supervision
from worker.paths import IS_ID, Paths

log = logging.getLogger(__name__)

_LISTEN = 1.0
_GOOD_FOR = 1.0
"""Seconds for which an answer is given again: many pages may show the same service."""
_KEPT = 10
"""Seconds that Redis keeps an answer that nobody fetches."""
_MOST_KEPT = 1000


class Answerer:
    """Answers for one node, one question at a time.

    Args:
        paths: the node's folders.
        node: the node's name.
        url: of Redis.
    """

    def __init__(self, paths: Paths, node: str, url: str) -> None:
        self._paths = paths
        self._queue = f"miehisto.look.{node}"
        self._client = redis.Redis.from_url(
            url, socket_timeout=_LISTEN + 5, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        self._answers: dict[str, tuple[float, bytes]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answerer", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asked = self._client.blpop([self._queue], timeout=_LISTEN)
                if isinstance(asked, list | tuple):
                    self._answer(asked[1])
            except (RedisError, OSError):
                self._stopping.wait(1.0)
            except Exception:
                log.exception("a question about a service could not be answered")

    def _answer(self, question: bytes | str) -> None:
        words = question.decode("ascii", "replace") if isinstance(question, bytes) else question
        service, _, reply = words.partition(" ")
        if not (IS_ID.match(service) and IS_ID.match(reply)):
            return
        key = f"miehisto.seen.{reply}"
        self._client.lpush(key, self._look(service))
        self._client.expire(key, _KEPT)

    def _look(self, service: str) -> bytes:
        at, answer = self._answers.get(service, (0.0, b""))
        if time.monotonic() - at < _GOOD_FOR:
            return answer
        if len(self._answers) > _MOST_KEPT:
            self._answers.clear()
        running = supervision.running(self._paths, service)
        found: dict[str, Any] = {"running": running is not None}
        if running is not None:
            found |= presently.look(running.init.pid)
        answer = json.dumps(found).encode()
        self._answers[service] = time.monotonic(), answer
        return answer

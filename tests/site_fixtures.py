"""Fixtures of the tests of the site: a database in a file, a real Redis, a client of an admin's."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from services import bell, enqueue


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """The tests' database is a file, as the real one, so that threads and processes meet in it."""
    Path(settings.DATABASES["default"]["TEST"]["NAME"]).parent.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def admin() -> Client:
    """Who may see everything and do everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    return client


def text_of(client: Client, address: str, **query: Any) -> str:
    """Return a page that is shown."""
    answer = client.get(address, query)
    assert answer.status_code == 200, address
    return answer.content.decode()


@pytest.fixture
def redis_server() -> Iterator[redis.Redis]:
    """A real Redis where the settings expect it."""
    url = bell.redis_url(settings.CELERY_BROKER_URL)
    socket = Path(url.removeprefix("unix://"))
    socket.unlink(missing_ok=True)
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""],
        cwd=socket.parent,
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis.from_url(url)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server doesn't answer"
                time.sleep(0.02)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(10)
        socket.unlink(missing_ok=True)
        bell._client.cache_clear()
        enqueue._connections.cache_clear()

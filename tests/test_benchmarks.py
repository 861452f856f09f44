"""What the benchmarks do beside measuring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from django.utils import timezone

from benchmarks.filling import Filling
from benchmarks.folders import own_folder
from images.models import ImageContents
from services.models import Job, Node, Service
from tests.rows import recorded_image, running_service
from tests.stack import CHECKOUT, eventually

A_RUN = """
import subprocess
from benchmarks.folders import own_folder
with own_folder() as (folder, keeper):
    daemon = subprocess.Popen(["sleep", "1000"], pass_fds=[keeper])
    print(folder, daemon.pid, flush=True)
    daemon.wait()
"""


def begun() -> tuple[subprocess.Popen[str], Path, int]:
    command = [sys.executable, "-c", A_RUN]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    run = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)
    with run.stdout as told:  # type: ignore[union-attr]
        folder, daemon = told.readline().split()
    return run, Path(folder), int(daemon)


def test_what_a_killed_run_left_is_deleted_once_nobody_works_in_it() -> None:
    with own_folder() as (mine, _keeper):
        running, its, daemon = begun()
        killed, left, survivor = begun()
        killed.kill()
        killed.wait()
        with own_folder():
            assert mine.is_dir() and its.is_dir() and left.is_dir()  # a daemon still works in that one
        os.kill(survivor, signal.SIGKILL)

        def deleted() -> bool:
            with own_folder():
                return not left.exists()

        assert eventually(deleted)
        assert mine.is_dir() and its.is_dir()
        os.kill(daemon, signal.SIGKILL)
        running.wait()
        assert not its.exists()
    assert not mine.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("count", [2, 40])
def test_a_database_is_filled_with_ever_so_few_rows(count: int) -> None:
    service = running_service()
    image = recorded_image(service)
    ImageContents.objects.create(image=image, read_at=timezone.now(), data={})
    pattern = Job.objects.create(
        kind="dump", service=service, node=Node.objects.local(), image_id=image.pk, queued_at=timezone.now()
    )
    pattern.events.create(at=timezone.now(), status="succeeded")
    ids = Filling(services=count // 2, images=count, jobs=count, pattern=pattern).all()
    assert Service.objects.get(pk=ids["service"]).status == "running"
    for name, status in (("good", "succeeded"), ("bad", "failed")):
        job = Job.objects.get(pk=ids[name])
        assert (job.kind, job.status, job.service_ref) == ("dump", status, ids["service"])
        assert job.events.exists()
    compared = ImageContents.objects.filter(image__in=(ids["a"], ids["b"]), image__service=ids["service"])
    assert compared.count() == 2 and ids["a"] != ids["b"]

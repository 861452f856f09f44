"""What a deletion leaves in the image pool that was killed half way. It is memory, passwords included."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import manifest

IMAGE = "a" * 32


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool in which an image was being deleted when the worker was killed."""
    (tmp_path / f".deleted-{IMAGE}" / "deep").mkdir(parents=True)
    (tmp_path / f".deleted-{IMAGE}" / "deep" / "pages-1.img").write_text("a password")
    return tmp_path


def test_who_deletes_it_again_deletes_what_was_left(pool: Path) -> None:
    manifest.remove(pool / IMAGE)
    assert list(pool.iterdir()) == []


def test_an_image_that_came_back_meanwhile_can_be_deleted_too(pool: Path) -> None:
    (pool / IMAGE).mkdir()
    (pool / IMAGE / manifest.NAME).write_text("{}")
    manifest.remove(pool / IMAGE)
    assert list(pool.iterdir()) == []


def test_what_nobody_deletes_again_goes_after_an_hour(pool: Path) -> None:
    manifest.sweep(pool)
    assert len(list(pool.iterdir())) == 1, "somebody may be at work on it"
    manifest.sweep(pool, left_for=0.0)
    assert list(pool.iterdir()) == []

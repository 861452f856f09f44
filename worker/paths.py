"""Where things lie on a node's disk. Knows nothing of what is in the files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

IS_ID = re.compile(r"[0-9a-f]{32}\Z")
_ARCHIVE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")


class Paths(NamedTuple):
    """The three folders of a node; several nodes may live on one machine with folders of their own."""

    state_dir: Path
    run_dir: Path
    log_dir: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Paths:
        """Return the folders that MIEHISTO_STATE_DIR, MIEHISTO_RUN_DIR and MIEHISTO_LOG_DIR name."""
        return cls(
            Path(environ.get("MIEHISTO_STATE_DIR") or "/var/lib/miehisto"),
            Path(environ.get("MIEHISTO_RUN_DIR") or "/run/miehisto"),
            Path(environ.get("MIEHISTO_LOG_DIR") or "/var/log/miehisto"),
        )

    @property
    def images(self) -> Path:
        """The image pool."""
        return self.state_dir / "images"

    @property
    def empty_root(self) -> Path:
        """An empty folder on which a service's root is laid, inside a mount namespace only."""
        return self.state_dir / "root"

    def image(self, image_id: str) -> Path:
        """Return the folder of a sealed image."""
        return self.images / checked_id(image_id)

    def partial_image(self, image_id: str) -> Path:
        """Return the folder that an image is written to before it is sealed."""
        return self.images / f".partial-{checked_id(image_id)}"

    def importing(self, image_id: str) -> Path:
        """Return the folder that an image is imported to before it is sealed; an import goes on there."""
        return self.images / f".import-{checked_id(image_id)}"

    def import_lock(self, image_id: str) -> Path:
        """Return the lock of whoever imports an image."""
        return self.run_dir / "imports" / checked_id(image_id) / "job.lock"

    @property
    def archives(self) -> Path:
        """The folder of archives, the only one that jobs export to and import from. It is root's alone."""
        return self.state_dir / "archives"

    def spec(self, service_id: str) -> Path:
        """Return the file that says what a service is."""
        return self.state_dir / "services" / checked_id(service_id) / "spec.json"

    def wanted_back(self, service_id: str) -> Path:
        """Return the mark of a service that shall come back after a boot; its row may be lost."""
        return self.spec(service_id).with_name("restore-on-boot")

    def runtime(self, service_id: str) -> Path:
        """Return the folder of what is true of a service until the next reboot: its state and locks."""
        return self.run_dir / "services" / checked_id(service_id)

    def state(self, service_id: str) -> Path:
        """Return the file in which runmh says how its service is."""
        return self.runtime(service_id) / "state.json"

    @property
    def admission_lock(self) -> Path:
        """Return the lock of whoever counts the services that live, and then adds one."""
        return self.run_dir / "admission.lock"

    def stopping(self, service_id: str) -> Path:
        """Return the mark of a stop that has begun: an end that comes after it is the operator's wish."""
        return self.runtime(service_id) / "stopping"

    def job_lock(self, service_id: str) -> Path:
        """Return the lock of whoever works on a service: the worker, or a CRIU that has outlived it."""
        return self.runtime(service_id) / "job.lock"

    def log(self, service_id: str) -> Path:
        """Return the file that receives what a service prints."""
        return self.log_dir / f"{checked_id(service_id)}.log"


def checked_id(text: str) -> str:
    """Return `text` if it is an id of ours, so that no other word ever becomes part of a path.

    Raises:
        ValueError: `text` is not 32 lower-case hex digits.
    """
    if not IS_ID.match(text):
        raise ValueError(f"not an id: {text[:80]!r}")
    return text


def archive_name(text: str) -> str:
    """Return `text` if it can be the name of a file in the folder of archives.

    Raises:
        ValueError: it is a path, hidden, too long or odd.
    """
    if not _ARCHIVE.match(text):
        raise ValueError(f"not the name of an archive: {text[:80]!r}")
    return text

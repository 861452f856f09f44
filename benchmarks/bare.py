"""Bare CRIU at the same work: `criu dump` and `criu restore` of the tree that runmh made, same options."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from worker import connections, namespaces, process
from worker.supervision import Running

# CRIU works in a session of its own: one that Ctrl-C ends half way can take the process along that it dumps.
_OPTIONS = [
    "--tcp-established",
    "--file-locks",
    "--ext-unix-sk",
    "--shell-job",
    "--link-remap",
    "--manage-cgroups=ignore",
    "--network-lock=nftables",
    "-v4",
]


def dump(criu: str, running: Running, image: Path) -> None:
    """Dump the tree into the folder `image` and end it."""
    image.mkdir(parents=True)
    external = [f"--external=mnt[{target}]:{target}" for target, _ in running.mounts]
    words = [
        criu,
        "dump",
        "-t",
        str(running.init.pid),
        "-D",
        str(image),
        "-o",
        "dump.log",
        *_OPTIONS,
        *external,
    ]
    subprocess.run(words, check=True, capture_output=True, start_new_session=True)


def restore(criu: str, running: Running, image: Path, root: Path) -> None:
    """Restore what `dump` wrote; the PID of its init is in the file `pid`. Its output goes to /dev/null."""
    external = [f"--external=mnt[{target}]:{source}" for target, source in running.mounts]
    sink = os.open("/dev/null", os.O_WRONLY)
    try:
        words = [
            *(criu, "restore", "-D", str(image), "-o", "restore.log", "-d", "--root", str(root)),
            *("--pidfile", str(image / "pid"), "--inherit-fd", f"fd[{sink}]:pipe:[{running.pipe}]"),
            *_OPTIONS,
            *external,
        ]
        subprocess.run(words, check=True, capture_output=True, pass_fds=[sink], start_new_session=True)
    finally:
        os.close(sink)


def end(image: Path) -> None:
    """End what `restore` restored, which has no supervisor, and remove the image."""
    restored = process.Process.of(int((image / "pid").read_text()))
    if restored is not None:
        restored.signal(signal.SIGKILL)
        restored.wait(10)
    shutil.rmtree(image)


def release(image: Path) -> None:
    """Take away the firewall table that a dump leaves, as a restore does."""
    connections.release(connections.run_of(image))


@contextlib.contextmanager
def namespace() -> Iterator[Path]:
    """Yield the root folder for restores; in the block's mount namespace the host's root lies on it.

    Only the calling thread moves there, so call it in a thread of its own (unshare(2)).
    """
    assert threading.current_thread() is not threading.main_thread()
    root = Path(f"/tmp/miehisto-bench-root-{os.getpid()}")  # noqa: S108 - empty, root's, and named by PID
    root.mkdir(mode=0o700)
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.make_private()
        namespaces.bind("/", str(root))
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False)
        shutil.rmtree(root, ignore_errors=True)

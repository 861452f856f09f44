"""A Debian in a folder booted by a kernel of its own, in QEMU: for what namespaces cannot show.

The kernel is the release's: root has all capabilities, systemd all controllers of control groups (version 2),
and a reboot is one. Without the processor's help (KVM) it takes a few minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from scripts.host import install_packages
from tests.deb.clean import Clean
from tests.deb.machine import Shell
from tests.debian_root import run
from tests.stack import eventually, free_port

_SIZE = "6G"
_BOOTED_WITHIN = 400.0
_SSH = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "LogLevel=ERROR"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
)
_NETWORK = "[Match]\nName=en*\n[Network]\nAddress=10.0.2.15/24\n"
"""The address that QEMU's own network (qemu(1), -netdev user) forwards to."""


class VirtualMachine(Shell):
    """A machine like tests/deb/machine.py's, with a kernel of its own.

    Args:
        debian: where its root lies; it is changed, and copied into a disk at the first boot.
        folder: of the disk, the console's output and the key.
    """

    def __init__(self, debian: Clean, folder: Path) -> None:
        self._debian = debian
        self._disk = folder / "disk"
        self._console = folder / "console.log"
        self._key = folder / "key"
        self._port = free_port()
        self._qemu: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Switch it on; returns when systemd has started all that it was to start."""
        if not self._disk.exists():
            self._install()
        boot = self._debian.root / "boot"
        (kernel,), (initrd,) = boot.glob("vmlinuz-*"), boot.glob("initrd.img-*")
        words = [
            f"qemu-system-{os.uname().machine}",
            *(
                "-accel",
                "kvm" if _has_kvm() else "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "2048",
            ),
            *("-machine", "virt" if os.uname().machine == "aarch64" else "q35", "-no-reboot"),
            *("-display", "none", "-serial", f"file:{self._console}"),
            *(
                "-kernel",
                kernel,
                "-initrd",
                initrd,
                "-append",
                "root=/dev/vda rw console=ttyS0 console=ttyAMA0",
            ),
            *("-drive", f"file={self._disk},if=virtio,format=raw"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"),
        ]
        self._qemu = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        booted = eventually(lambda: self._state() in {"running", "degraded"}, _BOOTED_WITHIN)
        assert booted, self._console.read_text(errors="replace")[-4000:]

    def _install(self) -> None:
        """Give the root a kernel and a way in, and make a disk of it."""
        install_packages(["qemu-system-arm" if os.uname().machine == "aarch64" else "qemu-system-x86"])
        install_packages(["openssh-client", "e2fsprogs"])
        architecture = run("dpkg", "--print-architecture").strip()
        packages = (f"linux-image-cloud-{architecture}", "initramfs-tools", "udev", "openssh-server")
        self._debian.run("apt-get", "-q", "-y", "install", "--no-install-recommends", *packages)
        root = self._debian.root
        (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        (root / "etc/systemd/network").mkdir(exist_ok=True)
        (root / "etc/systemd/network/outside.network").write_text(_NETWORK)
        run("systemctl", f"--root={root}", "enable", "systemd-networkd.service", "ssh.service")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key)
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (root / "root/.ssh/authorized_keys").write_bytes(self._key.with_suffix(".pub").read_bytes())
        run("mke2fs", "-q", "-t", "ext4", "-d", root, self._disk, _SIZE)

    def _state(self) -> str:
        assert self._qemu is not None and self._qemu.poll() is None, self._console.read_text(errors="replace")
        return self.done("systemctl", "is-system-running").stdout.strip()

    def way(self, words: tuple[str, ...]) -> list[str]:
        door = (*_SSH, "-i", str(self._key), "-p", str(self._port), "root@127.0.0.1")
        return ["ssh", *door, f"{{ {shlex.join(words)}; }} 2>&1"]  # sshd(8) gives it to a shell

    def shut_down(self) -> None:
        """Have systemd end everything, and then the kernel itself."""
        assert self._qemu is not None
        self.done("systemctl", "poweroff")
        self._qemu.wait(_BOOTED_WITHIN)
        self._qemu = None

    def pull_the_plug(self) -> None:
        """Take its power away: what no program had synced by then may be lost."""
        self.end()

    def end(self) -> str:
        """Switch it off, if it is on; return what its console said."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        return self._console.read_text(errors="replace") if self._console.exists() else ""


def _has_kvm() -> bool:
    """Tell whether the processor helps; /dev/kvm alone may be there and work for nothing."""
    if os.uname().machine == "x86_64" and not re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()):
        return False
    return os.access("/dev/kvm", os.R_OK | os.W_OK)

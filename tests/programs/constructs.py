"""A service made of one thing that CRIU can or cannot dump, so that a prediction can be held to the truth.

Started as `constructs.py FOLDER NAME…` it makes each thing named, says "ready", and waits.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pty
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
kept: list[Any] = []
folder = Path(sys.argv[1])
things: dict[str, Callable[[], Any]] = {}


def thing(make: Callable[[], Any]) -> Callable[[], Any]:
    things[make.__name__] = make
    return make


def call(number: int, *arguments: Any) -> int:
    """Make a system call by its number (x86-64)."""
    found = int(libc.syscall(number, *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def child(work: Callable[[], Any], wait: bool = True) -> int:
    """Fork a child that does something and then sleeps."""
    hear, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hear)
        work()
        os.close(say)
        while True:
            signal.pause()
    os.close(say)
    if wait:
        os.read(hear, 1)
    os.close(hear)
    return pid


@thing
def plain() -> None:
    """Nothing but the process."""


@thing
def threads() -> None:
    for _ in range(3):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@thing
def tcp_listener() -> Any:
    return socket.create_server(("127.0.0.1", 0))


@thing
def tcp_connection() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, socket.create_connection(listener.getsockname()), listener.accept()


@thing
def tcp_not_accepted() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, socket.create_connection(listener.getsockname())


@thing
def tcp_half_closed() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    ours, (theirs, _) = socket.create_connection(listener.getsockname()), listener.accept()
    ours.shutdown(socket.SHUT_WR)
    return listener, ours, theirs


@thing
def mptcp() -> Any:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@thing
def udp() -> Any:
    found = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    found.bind(("::1", 0))
    return found


@thing
def raw() -> Any:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


@thing
def packet() -> Any:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))


@thing
def netlink() -> Any:
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    found.bind((0, 1))
    return found


@thing
def vsock() -> Any:
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


@thing
def unix_pair() -> Any:
    return socket.socketpair()


@thing
def unix_listener() -> Any:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "own.sock"))
    listener.listen()
    return listener


@thing
def unix_not_accepted() -> Any:
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "own-not-accepted.sock"))
    listener.listen()
    client.connect(listener.getsockname())
    return listener, client


@thing
def unix_stream_outside() -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / "outside-stream.sock"))
    return client


@thing
def unix_datagram_outside() -> Any:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect(str(folder / "outside-datagram.sock"))
    return client


@thing
def descriptor_from_outside() -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / "outside-stream.sock"))
    _, descriptors, _, _ = socket.recv_fds(client, 1, 1)
    client.close()
    return descriptors


@thing
def lock_outside() -> Any:
    """A lock of an open file that another program has, too."""
    file = (folder / "sent").open("w")
    fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "outside-stream.sock"))
        socket.send_fds(client, [b"x"], [file.fileno()])
        client.recv(1)
    return file


@thing
def io_uring() -> Any:
    return call(425, 4, ctypes.create_string_buffer(120))


@thing
def io_uring_mapped() -> Any:
    ring = call(425, 4, ctypes.create_string_buffer(120))
    return ring, mmap.mmap(ring, 4096, mmap.MAP_SHARED, mmap.PROT_READ)


@thing
def event_descriptors() -> Any:
    timer = call(283, 1, 0)
    signals = call(282, -1, ctypes.byref(ctypes.c_uint64(1 << 9)), 8)
    return os.eventfd(3), timer, signals, call(291, 0)


@thing
def memory_file() -> Any:
    found = os.memfd_create("scratch")
    os.write(found, b"x" * 5000)
    return found


@thing
def process_descriptor() -> Any:
    return os.pidfd_open(os.getpid())


@thing
def inotify() -> Any:
    found = libc.inotify_init()
    assert libc.inotify_add_watch(found, str(folder).encode(), 0x100) > 0
    return found


@thing
def inotify_shm() -> Any:
    Path("/dev/shm/x-inotify").touch()
    found = libc.inotify_init()
    assert libc.inotify_add_watch(found, b"/dev/shm/x-inotify", 0x100) > 0
    return found


@thing
def inotify_proc() -> Any:
    found = libc.inotify_init()
    assert libc.inotify_add_watch(found, b"/proc/self/status", 0x100) > 0
    return found


@thing
def fanotify() -> Any:
    found = call(300, 0, 0)
    assert libc.fanotify_mark(found, 1, ctypes.c_uint64(1), -100, str(folder).encode()) == 0
    return found


@thing
def fanotify_fid() -> Any:
    found = call(300, 0x200, 0)
    assert libc.fanotify_mark(found, 1, ctypes.c_uint64(1), -100, str(folder).encode()) == 0
    return found


@thing
def bpf_map() -> Any:
    return call(321, 0, struct.pack("IIIII", 2, 4, 4, 1, 0).ljust(72, b"\0"), 72)


@thing
def bpf_program() -> Any:
    code = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    text = ctypes.create_string_buffer(code)
    gpl = ctypes.create_string_buffer(b"GPL")
    kept.append((text, gpl))
    attributes = struct.pack("IIQQ", 1, 2, ctypes.addressof(text), ctypes.addressof(gpl)).ljust(120, b"\0")
    return call(321, 5, attributes, 120)


@thing
def perf_event() -> Any:
    attributes = struct.pack("IIQ", 1, 112, 0).ljust(40, b"\0") + struct.pack("Q", 1 | 1 << 5)
    return call(298, attributes.ljust(112, b"\0"), 0, -1, -1, 0)


@thing
def user_faults() -> Any:
    return call(323, 1)


@thing
def locks() -> Any:
    found = []
    for name, lock in (("posix", fcntl.lockf), ("flock", fcntl.flock)):
        file = (folder / name).open("w")
        lock(file, fcntl.LOCK_EX)
        found.append(file)
    file = (folder / "ofd").open("w")
    fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    lease = (folder / "lease").open("w")
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return [*found, file, lease]


@thing
def deleted() -> Any:
    file = (folder / "deleted").open("w+")
    file.write("x" * 10000)
    file.flush()
    (folder / "deleted").unlink()
    return file


@thing
def deleted_large() -> Any:
    file = (folder / "deleted-large").open("w+")
    os.posix_fallocate(file.fileno(), 0, 260 << 20)
    (folder / "deleted-large").unlink()
    return file


@thing
def deleted_sparse() -> Any:
    file = (folder / "deleted-sparse").open("w+")
    file.truncate(300 << 20)
    file.write("x")
    file.flush()
    (folder / "deleted-sparse").unlink()
    return file


@thing
def deleted_other_name() -> Any:
    file = (folder / "one-name").open("w+")
    (folder / "another-name").hardlink_to(folder / "one-name")
    (folder / "one-name").unlink()
    return file


@thing
def deleted_folder() -> None:
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()


@thing
def deleted_mapping() -> Any:
    file = (folder / "mapped").open("w+")
    file.truncate(8192)
    found = mmap.mmap(file.fileno(), 8192)
    found[0] = 7
    file.close()
    (folder / "mapped").unlink()
    return found


@thing
def terminal() -> Any:
    """A pseudo terminal of its own, both ends."""
    return pty.openpty()


@thing
def terminal_session() -> Any:
    pid, master = pty.fork()
    if pid == 0:
        while True:
            signal.pause()
    return master


@thing
def terminal_from_outside() -> Any:
    return descriptor_from_outside()


@thing
def terminal_of_another() -> Any:
    return os.open((folder / "terminal").read_text(), os.O_RDWR | os.O_NOCTTY)


@thing
def device() -> Any:
    return (
        os.open("/dev/zero", os.O_RDONLY),
        os.open("/dev/urandom", os.O_RDONLY),
        os.open("/dev/full", os.O_RDWR),
    )


@thing
def odd_device() -> Any:
    return os.open("/dev/kmsg", os.O_RDONLY)


@thing
def fuse_device() -> Any:
    return os.open("/dev/fuse", os.O_RDWR)


@thing
def unix_client_outside() -> Any:
    listener = unix_listener()
    return listener, listener.accept()


@thing
def unix_not_accepted_outside() -> Any:
    return unix_listener()


@thing
def terminal_hung_up() -> Any:
    """A terminal of the service's own whose master it has closed."""
    master, slave = pty.openpty()
    os.close(master)
    return slave


@thing
def path_only() -> Any:
    return (
        os.open(folder, os.O_PATH),
        os.open(folder, os.O_RDONLY | os.O_DIRECTORY),
        os.open("/proc/self/status", os.O_RDONLY),
    )


@thing
def fifo() -> Any:
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR)


@thing
def system_v() -> Any:
    shared = libc.shmget(0, 8192, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat(shared, None, 0)
    return shared, libc.semget(0, 2, 0o1600), libc.msgget(0, 0o1600)


@thing
def message_queue() -> Any:
    return call(240, b"x-queue", os.O_CREAT | os.O_RDWR, 0o600, None)


@thing
def shared_memory() -> Any:
    found = mmap.mmap(-1, 1 << 20)
    found[5] = 1
    child(lambda: None)
    return found


@thing
def uts_namespace() -> Any:
    return child(lambda: libc.unshare(0x04000000))


@thing
def network_namespace() -> Any:
    return child(lambda: libc.unshare(0x40000000))


@thing
def mount_namespace() -> Any:
    return child(lambda: libc.unshare(0x00020000))


@thing
def user_namespace() -> Any:
    return child(lambda: libc.unshare(0x10000000))


@thing
def pid_namespace() -> Any:
    libc.unshare(0x20000000)
    return child(lambda: None)


@thing
def cgroup_namespace() -> Any:
    return child(lambda: libc.unshare(0x02000000))


@thing
def time_namespace() -> Any:
    return child(lambda: libc.unshare(0x00000080))


@thing
def ipc_namespace() -> Any:
    return child(lambda: libc.unshare(0x08000000))


@thing
def another_user() -> Any:
    def work() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    return child(work)


@thing
def zombie() -> Any:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


@thing
def stopped() -> Any:
    return child(lambda: os.kill(os.getpid(), signal.SIGSTOP), wait=False)


@thing
def uninterruptible() -> Any:
    """A parent that waits for its vfork child, which the kernel shows as state D."""
    pid = os.fork()
    if pid == 0:
        found = libc.vfork()
        if found == 0:
            libc.pause()
        os._exit(0)
    return pid


@thing
def rights_on_their_way() -> Any:
    ours, theirs = socket.socketpair()
    with (folder / "sent").open("w") as file:
        socket.send_fds(ours, [b"x"], [file.fileno()])
    return ours, theirs


@thing
def own_mount() -> Any:
    (folder / "mounted").mkdir()
    assert libc.mount(b"none", str(folder / "mounted").encode(), b"tmpfs", 0, None) == 0
    return (folder / "mounted" / "file").open("w")


@thing
def chrooted() -> Any:
    (folder / "jail").mkdir()
    return child(lambda: os.chroot(folder / "jail"))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        kept.append(things[name]())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Event().wait()

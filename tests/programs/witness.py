"""A service whose answers prove that it is the very process as before: a word of its own, and a count.

usage: witness.py PORT [memory=MIB] [deleted=MIB:FOLDER] [peer=SOCKET] [line=PORT] [at=FOLDER]

It can also hold memory, a deleted file that is still open or a connection to somebody's unix socket, and be
in a folder. It hangs up after each answer; who calls its other port (line) is answered at each byte he sends.
"""

import os
import select
import socket
import sys
import tempfile

port, *wishes = sys.argv[1:]
held: list[object] = []
listeners: dict[socket.socket, bool] = {socket.create_server(("127.0.0.1", int(port)), backlog=16): False}
lines: list[socket.socket] = []
for wish in wishes:
    kind, value = wish.split("=", 1)
    if kind == "memory":
        held.append(bytearray(b"x") * (int(value) << 20))
    elif kind == "deleted":
        mebibytes, folder = value.split(":", 1)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it stays open
        for _ in range(int(mebibytes)):
            file.write(os.urandom(1 << 20))
        file.flush()
        held.append(file)
    elif kind == "peer":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(value)
        held.append(peer)
    elif kind == "at":
        os.chdir(value)
    elif kind == "line":
        listeners[socket.create_server(("127.0.0.1", int(value)))] = True

word = os.urandom(8).hex()
count = 0
while True:
    ready = select.select([*listeners, *lines], [], [])[0][0]
    caller = ready.accept()[0] if ready in listeners else ready
    if ready in lines:
        try:
            asked = caller.recv(1)
        except ConnectionError:
            asked = b""
        if not asked:
            lines.remove(caller)
            caller.close()
            continue
    count += 1
    caller.sendall(f"{word} {count}\n".encode())
    if not listeners.get(ready, True):
        caller.close()
    elif ready in listeners:
        lines.append(caller)

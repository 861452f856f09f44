"""A service whose answers prove that it is the very process as before: a word of its own, and a count.

usage: witness.py PORT [memory=MIB] [deleted=MIB:FOLDER] [peer=SOCKET]

It can also hold memory, a deleted file that is still open, or a connection to somebody's unix socket.
"""

import os
import socket
import sys
import tempfile

port, *wishes = sys.argv[1:]
held: list[object] = []
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

word = os.urandom(8).hex()
count = 0
with socket.create_server(("127.0.0.1", int(port)), backlog=16) as listener:
    while True:
        caller = listener.accept()[0]
        count += 1
        with caller:
            caller.sendall(f"{word} {count}".encode())

"""Processes as the kernel shows them, while they change under the look."""

from __future__ import annotations

import os
import subprocess
import sys

from worker import process

# Two hundred threads end one after the other, and the last that was made has a child.
PARENT = """
import subprocess, sys, threading, time
for number in range(200):
    threading.Thread(target=time.sleep, args=(1 + number / 200,)).start()
def with_a_child():
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    child.wait()
threading.Thread(target=with_a_child, daemon=True).start()
sys.stdin.read()
"""


def test_a_thread_that_ends_hides_no_child_of_another() -> None:
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            while len(os.listdir(f"/proc/{parent.pid}/task")) > 2:
                assert process.children(parent.pid) == [child]
        finally:
            os.kill(child, 9)
            parent.stdin.close()

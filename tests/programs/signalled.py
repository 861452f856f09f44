"""A service that prints a line at its start and at each SIGUSR1, numbered, and ends with status 3 at SIGUSR2.

With the argument `deaf` it ignores SIGTERM; otherwise it says "bye" at SIGTERM and ends with status 0.
"""

import signal
import sys


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


heard = {signal.SIGUSR1, signal.SIGUSR2}
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    heard.add(signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
count = 0
while True:
    say(f"line {count}")
    match signal.sigwait(heard):
        case signal.SIGUSR1:
            count += 1
        case signal.SIGUSR2:
            sys.exit(3)
        case signal.SIGTERM:
            say("bye")
            sys.exit(0)

"""Runs programs and tells the operator one short line a step; knows nothing of what is being set up."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class SetupError(Exception):
    """One sentence for the operator: which part is missing, and what to do."""


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(
    argv: Sequence[str | Path],
    *,
    otherwise: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 1800,
) -> str:
    """Run a program and return its standard output.

    Args:
        argv: the program and its arguments, never a shell string.
        otherwise: the sentence to raise with when it fails; the last lines it printed are added.
        env: variables on top of this process's own.
        timeout: seconds; a registry that hangs must not hang the set-up for ever.
    Raises:
        SetupError: the program is missing, failed, or took too long.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise SetupError(f"{otherwise} ({words[0]} is not installed)") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{otherwise} ({words[0]} took longer than {timeout:.0f} s)") from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        quoted = "".join(f"\n    {line}" for line in said[-6:])
        raise SetupError(f"{otherwise}{quoted}")
    return done.stdout


def succeeds(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> bool:
    """Tell whether a program exits with 0; False too when it is missing."""
    try:
        run(argv, otherwise="", env=env, cwd=cwd, timeout=120)
    except SetupError:
        return False
    return True


def digest(*parts: str | bytes | Path) -> str:
    """Return one sha256 over texts and the contents of files (a file that is missing counts as empty)."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            content = part.read_bytes() if part.is_file() else b""
        else:
            content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()

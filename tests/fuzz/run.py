"""`make fuzz`: runs each target for some seconds, with atheris where it is, and keeps what was found.

python -m tests.fuzz.run [--seconds N] [--seed N] [TARGET…]
python -m tests.fuzz.run TARGET --replay FILE
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = ROOT / "test-artifacts" / "fuzz"
LONGEST = 8192  # bytes of an input
MEMORY = 1024  # MiB that a target may take
ONE_INPUT = 10  # seconds that it may take


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Fuzz one target in this process, which a finding ends with a status that is not 0."""
    logging.disable()
    try:
        import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        without_coverage(name, seconds, seed)
        return
    with atheris.instrument_imports(include=["worker", "pycriu"]):
        from tests.fuzz import targets
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, content in enumerate(targets.seeds(name)):
        (corpus / str(number)).write_bytes(content)
    FOUND.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": LONGEST,
        "rss_limit_mb": MEMORY,
        "timeout": ONE_INPUT,
        "artifact_prefix": f"{FOUND}/{name}-",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)],
        targets.TARGETS[name],
    )
    atheris.Fuzz()


def without_coverage(name: str, seconds: int, seed: int) -> None:
    """Change sound inputs at random: where atheris has no wheel, or no time."""
    from tests.fuzz import targets

    chance = random.Random(seed)
    known = targets.seeds(name)
    deadline = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < deadline:
        data = bytearray(chance.choice(known))
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        try:
            targets.TARGETS[name](bytes(data))
        except BaseException:
            FOUND.mkdir(parents=True, exist_ok=True)
            (FOUND / f"{name}-crash").write_bytes(data)
            say(f"{name}: found with seed {seed}, kept as {FOUND / name}-crash")
            raise
        runs += 1
    sys.stderr.write(f"stat::number_of_executed_units: {runs}\n")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Fuzz; the exit status is 0 when nothing was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--replay", type=Path, help="one input that was kept")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.here:
        fuzz(options.targets[0], options.seconds, options.seed)
        return 0
    from tests.fuzz import targets

    if options.replay:
        targets.TARGETS[options.targets[0]](options.replay.read_bytes())
        return 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        failed = _run_all(options.targets or list(targets.TARGETS), options.seconds, options.seed, folder)
    return 1 if failed else 0


def _run_all(waiting: list[str], seconds: int, seed: int, folder: str) -> list[str]:
    """Fuzz as many targets at once as there are processors; return those in which something was found."""
    failed = []

    def run(name: str) -> None:
        words = [sys.executable, "-m", "tests.fuzz.run", "--here", name]
        done = subprocess.run(
            [*words, f"--seconds={seconds}", f"--seed={seed}"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        runs = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
        found = "FOUND" if done.returncode else "nothing"
        say(f"{name:<15} seed {seed}, {(runs or ['?'])[-1]} inputs: {found}")
        if done.returncode:
            failed.append(name)
            say(done.stdout[-4000:] + done.stderr[-2000:])
            say(f"again: python -m tests.fuzz.run {name} --replay {FOUND}/{name}-…")

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(run, waiting))
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""Options, seeds and records of the fault suite. Knows no fault."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("faults", "the fault suite (tests/faults)")
    group.addoption("--long", action="store_true", help="as many rounds as docs/reliability.md tells of")
    group.addoption("--rounds", type=int, default=0, help="so many rounds of each fault")
    group.addoption("--seed", type=int, default=None, help="repeat the random moments of an earlier run")
    group.addoption("--results", default="", help="a file that each fault adds a line to")


class Broken(AssertionError):
    """The promise does not hold."""


@dataclass
class Fault:
    """What became of one fault.

    Attributes:
        name, what: for the page.
        seed: of all its random moments.
        rounds: how often it happened.
        findings: a sentence for each round in which the promise did not hold.
        lost: how many services were neither running nor in an image that restores, without a reason.
        facts: what else is worth telling.
        seconds, load: how long it took, and how busy the machine was (getloadavg(3)).
    """

    name: str
    what: str
    seed: int
    rounds: int = 0
    findings: list[str] = field(default_factory=list)
    lost: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    load: float = 0.0

    @contextmanager
    def round(self, title: str = "") -> Iterator[random.Random]:
        """One round, with chances of its own; one that breaks the promise is noted, and the next begins."""
        number = self.rounds
        self.rounds += 1
        try:
            yield random.Random(f"{self.seed}:{self.name}:{number}")
        except (AssertionError, OSError, HTTPException, sqlite3.Error) as error:
            said = str(error) or type(error).__name__
            if not isinstance(error, Broken):
                said = f"{type(error).__name__}: {said}"
                traceback.print_exc()
            self.findings.append(f"round {number}{title and f' ({title})'}: {said}")
            print(f"FINDING {self.name}: {self.findings[-1]}", flush=True)  # noqa: T201
            if "LOST" in said:
                self.lost += 1


class Campaign:
    """One run of the suite."""

    def __init__(self, config: pytest.Config) -> None:
        given = config.getoption("--seed")
        self.long = bool(config.getoption("--long"))
        self.seed = int(given) if given is not None else random.SystemRandom().randrange(10**6)
        self._rounds = int(config.getoption("--rounds"))
        self._results = str(config.getoption("--results"))

    def rounds(self, short: int, long: int) -> int:
        """Return how often a fault shall happen."""
        return self._rounds or (long if self.long else short)

    @contextmanager
    def fault(self, name: str, what: str) -> Iterator[Fault]:
        """Run the rounds of one fault, write down what they found, and fail if that is anything."""
        fault = Fault(name, what, self.seed)
        print(f"\n{name}: --seed {self.seed}", flush=True)  # noqa: T201
        began = time.monotonic()
        try:
            yield fault
        except Exception as error:
            fault.findings.append(f"given up after round {fault.rounds}: {type(error).__name__}: {error}")
            raise
        finally:
            fault.seconds = round(time.monotonic() - began, 1)
            # Of the last 15 minutes: what took long may have waited for others on the same machine.
            fault.load = round(os.getloadavg()[2], 1)
            if self._results:
                with Path(self._results).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(fault)) + "\n")
        assert not fault.findings, f"--seed {self.seed}:\n" + "\n".join(fault.findings)


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """This run of the suite."""
    return Campaign(request.config)

"""The pool's processes are forked from one whose agent, a thread, uses the database and holds locks."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker import forks, inspecting, locks, spares
from worker.image_files import Unreadable

FORKS = 100
"""In as many, one that falls into such a moment is all but certain."""


def connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, isolation_level=None, timeout=2, check_same_thread=False)


@contextmanager
def forked(count: int = FORKS) -> Iterator[None]:
    """Fork so many processes, one after the other, that live until the end of the block."""
    awaited, end = os.pipe()
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                os.close(end)
                os.read(awaited, 1)
                os._exit(0)
            children.append(child)
        yield
    finally:
        os.close(awaited)
        os.close(end)
        for child in children:
            os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_can_write_to_the_database(tmp_path: Path) -> None:
    """Without the gate its SQLite believes for ever that its own process holds the lock."""
    database = tmp_path / "rows"
    mine = connect(database)
    mine.execute("PRAGMA journal_mode=WAL")
    mine.execute("CREATE TABLE seen (who TEXT)")
    forks.close_before_each(mine.close)
    writing, forking = threading.Event(), threading.Event()

    def write() -> None:
        with forks.kept_away():
            mine.execute("BEGIN IMMEDIATE")
            writing.set()
            forking.wait(10)
            mine.execute("INSERT INTO seen VALUES ('the agent')")
            mine.execute("COMMIT")

    agent = threading.Thread(target=write)
    agent.start()
    assert writing.wait(10)
    threading.Timer(0.1, forking.set).start()
    child = os.fork()
    if child == 0:
        try:
            connect(database).execute("INSERT INTO seen VALUES ('the pool')")
        except BaseException:
            os._exit(1)
        os._exit(0)
    agent.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    forks._closers.remove(mine.close)
    with connect(database) as again:
        assert again.execute("SELECT who FROM seen").fetchall() == [("the agent",), ("the pool",)]
    again.close()


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_holds_no_lock(tmp_path: Path) -> None:
    """The agent takes a service over while a process of the pool is replaced, which then kept the lock."""
    path = tmp_path / "job.lock"
    holding, ending = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.held(path), locks.waited_for(tmp_path / "another.lock"):
            holding.set()
            ending.wait(10)

    agent = threading.Thread(target=hold)
    agent.start()
    assert holding.wait(10)
    with forked(1):
        with locks.held(path) as taken:
            assert taken is None, "the agent has it still"
        ending.set()
        agent.join()
        with locks.held(path, 10) as taken, locks.held(tmp_path / "another.lock", 10) as other:
            assert taken is not None and other is not None


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_nor_one_that_was_about_to_be_taken_or_let_go(tmp_path: Path) -> None:
    """Between a file's opening and the note of it, and between that and its closing, others may run."""
    path, enough = tmp_path / "job.lock", threading.Event()

    def take_and_let_go() -> None:
        while not enough.is_set():
            with locks.held(path):
                pass

    agent = threading.Thread(target=take_and_let_go)
    agent.start()
    try:
        with forked():
            enough.set()
            agent.join()
            # The youngest may not yet have let go of what it has got.
            with locks.held(path, 10) as taken:
                assert taken is not None
    finally:
        enough.set()


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["reader", "supervisor"])
def test_nor_one_that_keeps_a_program_from_being_started(start: str) -> None:
    """Python waits until a pipe to the new program is closed, and the reader of an image for its others."""
    wrong: list[Unreadable] = []
    enough = threading.Event()

    def begin() -> None:
        while not (wrong or enough.is_set()):
            if start == "reader":
                try:
                    inspecting.heard(["true"], 1000, 5)
                except Unreadable as error:
                    wrong.append(error)
            else:
                spare = spares.Spare()
                spare._connection.close()  # it ends without an order
                spare.launcher.wait()

    agent = threading.Thread(target=begin)
    agent.start()
    try:
        with forked():
            enough.set()
            agent.join(10)
            assert not (agent.is_alive() or wrong)
    finally:
        enough.set()
        agent.join()

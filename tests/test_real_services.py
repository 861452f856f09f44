"""Real servers survive dump and restore: the same memory, the same processes, the same open connections.

Each runs as a service of the real node, driven by mhctl.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.refusals import Witness
from tests.servers import (
    Gunicorn,
    ManyParts,
    Memcached,
    NodeJs,
    PostgreSQL,
    Redis,
    Server,
    connected,
    started,
)
from tests.stack import Stack, eventually


@pytest.mark.parametrize("kind", [Redis, Memcached, Gunicorn, NodeJs, ManyParts])
def test_a_server_goes_on_where_it_was(stack: Stack, folder: Path, kind: type[Server]) -> None:
    server = kind(folder)
    service = started(stack, server)

    # Two cycles. A dump takes the server away, a restore brings it back as it was, and it goes on.
    images = []
    for _ in range(2):
        held = server.state()
        images.append(stack.dump(service))
        with pytest.raises(OSError, match="refused"):
            server.state()
        stack.restore(images[-1])
        assert server.state() == held
        server.grow()

    # A dump that leaves the server running doesn't disturb it.
    at_the_copy = server.state()
    process = stack.show("service", service)["pid"]
    copy = stack.dump(service, "--leave-running")
    assert stack.show("service", service)["pid"] == process
    assert server.state() == at_the_copy
    server.grow()

    # After a newer image was made, the older ones still hold what was then.
    newest = stack.dump(service)
    assert newest not in {*images, copy}
    stack.restore(images[-1])
    assert server.state() == held
    server.grow()
    stack.mhctl("service", "stop", service)
    stack.restore(copy)
    assert server.state() == at_the_copy
    server.grow()


def test_a_client_of_redis_goes_on_over_the_same_connection(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    with connected(server.port) as client:
        assert client.ask("SELECT 5") == "+OK"  # a choice that lives in the connection only
        assert client.ask("SET fruit pear") == "+OK"

        for count in (1, 2):
            image = stack.dump(service)
            client.send(f"INCRBY sent-while-it-was-away {count}")
            stack.restore(image)
            assert client.answer() == f":{2 * count - 1}"
            assert client.ask("GET fruit", lines=2) == "pear"

        stack.dump(service, "--leave-running")
        assert client.ask("GET fruit", lines=2) == "pear"

        # An older image cannot know how its clients' connections went on: they are closed, not left hanging.
        stack.dump(service)
        stack.restore(image)
        with pytest.raises(ConnectionError):
            client.ask("GET fruit", lines=2)
    with connected(server.port) as client:
        assert client.ask("SELECT 5") == "+OK"
        assert client.ask("GET fruit", lines=2) == "pear"


def test_a_restore_without_connections_leaves_the_firewall_alone(stack: Stack) -> None:
    """The kernel would take longer to find no table there than CRIU takes to copy a small memory."""
    witness = Witness(stack)
    stack.restore(stack.dump(witness.id))
    assert witness.answers_as_before()
    said = (stack.folder / "run" / "services" / witness.id / "criu" / "restore.log").read_text()
    assert "Unlock network" in said
    assert "delete table" not in said


def test_a_session_of_postgresql_goes_on(stack: Stack, folder: Path) -> None:
    """Two cycles and a copy. An older image is no aim here: the files on the disk have moved on."""
    server = PostgreSQL(folder)
    service = stack.create(*server.command, options=server.options)
    with eventually(server.connect) as session:
        session.execute("CREATE TABLE counter AS SELECT 1 AS count")
        session.execute("CREATE TEMP TABLE mine AS SELECT 1 AS count")
        session.execute("PREPARE mine_grows AS UPDATE mine SET count = count + 1 RETURNING count")
        for count in (2, 3):
            with session.transaction():
                session.execute("UPDATE counter SET count = count + 1")
                image = stack.dump(service)
                with pytest.raises(OSError, match="refused"):
                    server.state()
                stack.restore(image)
                assert session.execute("EXECUTE mine_grows").fetchall() == [(count,)]
                assert server.state() == {"rows": [(count - 1,)]}, "seen before it was committed"
            assert server.state() == {"rows": [(count,)]}

        stack.dump(service, "--leave-running")
        assert session.execute("EXECUTE mine_grows").fetchall() == [(4,)]
        server.grow()
        assert session.execute("SELECT count FROM counter").fetchall() == [(4,)]
    stack.mhctl("service", "stop", service)
    assert "database system is shut down" in stack.log(service)

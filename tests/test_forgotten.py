"""What was deleted, or never had a row: an image brings its service back, a rescan says what is true."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

from tests.refusals import Witness
from tests.stack import CHECKOUT, Stack, eventually


def test_an_image_brings_a_deleted_service_back(stack: Stack) -> None:
    """ "Its images stay", says the help of `service delete`: so they must be good for something."""
    witness = Witness(stack, options=("-e", "COLOUR=red", "--name", "brief"))
    image = stack.dump(witness.id)
    mark = stack.folder / "state/services" / witness.id / "restore-on-boot"
    stack.mhctl("service", "set", "--restore-on-boot", witness.id)
    assert eventually(mark.exists, 60)
    stack.mhctl("service", "delete", witness.id)
    assert stack.mhctl("service", "show", witness.id, check=False).code == 4
    stack.restore(image)
    assert witness.answers_as_before()
    service = json.loads(stack.mhctl("service", "show", witness.id, "--env", "--json").out)
    assert (service["status"], service["env"], service["name"]) == ("running", {"COLOUR": "red"}, "")
    assert stack.show("image", image)["service"] == witness.id
    # A service like any other: it can be dumped and restored again, and comes back after a boot if asked to.
    stack.mhctl("service", "set", "--restore-on-boot", witness.id)
    assert eventually(mark.exists, 60)
    stack.restore(stack.dump(witness.id))
    assert witness.answers_as_before()


def test_a_rescan_knows_a_service_that_runs(stack: Stack) -> None:
    witness = Witness(stack)
    image = stack.dump(witness.id, "--leave-running")
    mark = stack.folder / "state/services" / witness.id / "restore-on-boot"
    stack.mhctl("service", "set", "--restore-on-boot", witness.id)
    assert eventually(mark.exists, 30)
    stack.mhctl("service", "set", "--no-restore-on-boot", witness.id)
    assert eventually(lambda: not mark.exists(), 30)
    stack.mhctl("service", "set", "--restore-on-boot", witness.id)
    assert eventually(mark.exists, 30)
    with closing(sqlite3.connect(stack.folder / "state/database/db.sqlite3", timeout=20)) as rows, rows:
        rows.execute("UPDATE services_job SET service_id = NULL WHERE service_id = ?", [witness.id])
        rows.execute("UPDATE images_image SET service_id = NULL WHERE service_id = ?", [witness.id])
        rows.execute("DELETE FROM services_service WHERE id = ?", [witness.id])
    eventually(lambda: False, 1)  # the agent has looked, and found no row
    subprocess.run(
        [sys.executable, "manage.py", "rescan"], cwd=CHECKOUT, env=stack.environment, check=True, timeout=60
    )
    assert eventually(lambda: stack.show("service", witness.id)["status"] == "running", 3)
    stack.mhctl("service", "rename", witness.id, "found")
    assert stack.show("image", image)["service_name"] == "found"
    assert stack.show("service", witness.id)["restore_on_boot"]
    assert witness.answers_as_before()


def test_a_rescan_that_cannot_read_the_pool_drops_no_row(stack: Stack) -> None:
    """The site's user may write the database, but not look into the pool."""
    witness = Witness(stack)
    image = stack.dump(witness.id, "--leave-running")
    user = (stack.folder / "state/database").owner()
    done = subprocess.run(
        ["setpriv", f"--reuid={user}", "--init-groups", "--", sys.executable, "manage.py", "rescan"],
        cwd=CHECKOUT,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert "so nothing was changed" in done.stderr and "remedy: Run it as root" in done.stderr
    assert stack.show("image", image)["object_id"] == image

"""Images that are no longer what was sealed, and rows and disk that no longer agree."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.stack import CHECKOUT
from worker import manifest

MANIFEST = "manifest.json"
BESIDE = "statistics.json"
"""CRIU's figures, which are no part of what was sealed: a page shows them, a restore needs them not."""


def flip(path: Path, chances: random.Random) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[chances.randrange(len(content))] ^= 1 << chances.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chances: random.Random) -> None:
    """Cut some of its end off."""
    path.write_bytes(path.read_bytes()[: chances.randrange(path.stat().st_size)])


def remove(path: Path, _chances: random.Random) -> None:
    """Delete it."""
    path.unlink()


def swap(path: Path, chances: random.Random) -> None:
    """Exchange it with another of the image's files."""
    others = [each for each in path.parent.iterdir() if each.read_bytes() != path.read_bytes()]
    other = chances.choice(sorted(each for each in others if each.name not in {BESIDE, MANIFEST}))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def edit(path: Path, chances: random.Random) -> None:
    """Change one value of a manifest, as somebody with an editor would."""
    said = json.loads(path.read_bytes())
    name = chances.choice(sorted(said))
    value = said[name]
    said[name] = value + 1 if isinstance(value, int | float) else [] if value else "other"
    path.write_text(json.dumps(said))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "one bit of": flip,
    "the end of": truncate,
    "all of": remove,
    "the place of": swap,
}


def test_a_damaged_image_is_named_and_not_restored(lab: Lab, campaign: Campaign, tmp_path: Path) -> None:
    what = (
        "For every file of an image: one bit changed, its end cut off, deleted, exchanged with another; and"
        " the manifest edited. `verify` names the file, a restore is refused, and the file put back is enough"
    )
    with campaign.fault("damage", what) as fault:
        data = tmp_path / "data"
        data.mkdir()
        (data / "book").write_text("of the dump's moment")
        service = Kept(lab, carry=[str(data)])
        before = promise.host(lab)
        service.bring_to("dumped")
        (data / "book").write_text("newer")
        image = lab.state / "images" / service.row()["image"]
        backup = tmp_path / "backup"
        shutil.copytree(image, backup)
        files = sorted(path for path in image.iterdir() if path.name != BESIDE and path.stat().st_size)
        todo = [(path, kind, harm) for path in files for kind, harm in KINDS.items()]
        todo += [(image / MANIFEST, "a value in", edit)] * 10
        if not campaign.long:
            todo = random.Random(fault.seed).sample(todo, campaign.rounds(6, 6))
        for path, kind, harm in todo:
            with fault.round(f"{kind} {path.name}") as chances:
                harm(path, chances)
                try:
                    _refused(service, path.name)
                    if {each.name: each.read_text() for each in data.iterdir()} != {"book": "newer"}:
                        raise Broken("the data beside the image was touched")
                finally:
                    shutil.rmtree(image)
                    shutil.copytree(backup, image)
        with fault.round("all put back"):
            fault.rounds -= 1
            service.do("POST", f"images/{image.name}/verify")
            promise.holds(lab, [service], before=before)
            service.resume(image.name)
            promise.holds(lab, [service], before=before)
            if (data / "book").read_text() != "of the dump's moment":
                raise Broken("its data was not put back")
        fault.facts = {"files of the image": len(files)}
        service.delete()


def test_an_image_in_the_place_of_another_is_not_restored(lab: Lab, campaign: Campaign) -> None:
    what = (
        "The folders of two images are exchanged by hand, or a manifest is given another service and its sum"
        " made anew. A restore is refused, and once all is in its place again it succeeds"
    )
    with campaign.fault("images exchanged", what) as fault:
        services = [Kept(lab), Kept(lab)]
        before = promise.host(lab)
        for service in services:
            service.bring_to("dumped")
        one, other = (lab.state / "images" / service.row()["image"] for service in services)
        with fault.round("folders exchanged"):
            _exchange(one, other)
            for service in services:
                _refused_as(service, {"verify", "restore"}, {"image_misplaced"})
            if f"holds another image, {one.name}" not in rescan(lab):
                raise Broken("rescan does not say that an image lies in another's place")
            _exchange(one, other)
        with fault.round("a manifest of another service"):
            sealed = (one / MANIFEST).read_bytes()
            said = {**json.loads(sealed), "service": services[1].id}
            (one / MANIFEST).write_text(json.dumps(manifest._summed(said)))
            _refused_as(services[0], {"restore"}, {"image_of_another"})
            (one / MANIFEST).write_bytes(sealed)
        for service in services:
            service.do("POST", f"images/{service.row()['image']}/verify")
            service.resume(service.row()["image"])
        promise.holds(lab, services, before=before)
        for service in services:
            service.delete()


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _refused(service: Kept, name: str) -> None:
    for error in _refused_as(service, {"verify", "restore"}, {"image_damaged", "manifest_too_new"}):
        if error["code"] == "image_damaged" and not any(name in line for line in error["lines"]):
            raise Broken(f"{name} is not named: {error['lines']}")


def _refused_as(service: Kept, verbs: set[str], codes: set[str]) -> list[dict[str, Any]]:
    """Ask for what must fail with one of these codes, and return the errors."""
    image = service.row()["image"]
    errors = []
    for verb in sorted(verbs):
        asked = service.ask("POST", f"images/{image}/{verb}?wait=60")
        job = service.node.api("GET", f"jobs/{asked['object_id']}?wait=60").body
        errors.append(job["error"] or {})
        if errors[-1].get("code") not in codes:
            raise Broken(f"{verb} ended as {job['status']}: {job['error']}")
    if service.row()["status"] != "dumped" or promise.processes_of(service) != ([], []):
        raise Broken("the service is no longer just dumped")
    return errors


def rescan(lab: Lab) -> str:
    """Run `manage.py rescan` and return what it says."""
    return subprocess.run(
        [sys.executable, "manage.py", "rescan"],
        cwd=CHECKOUT,
        env=lab.environment,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def dumped(lab: Lab) -> Kept:
    """A service that is dumped."""
    service = Kept(lab)
    service.bring_to("dumped")
    return service


def test_rescan_mends_rows_without_disk_and_disk_without_rows(
    lab: Lab, campaign: Campaign, dumped: Kept, tmp_path: Path
) -> None:
    what = "Image folders and rows are taken away and put back by hand; `rescan` says and mends it"
    image = str(dumped.row()["image"])
    folder = lab.state / "images" / image
    before = promise.host(lab)
    with campaign.fault("rows and disk", what) as fault:
        with fault.round("a row without its image"):
            shutil.move(folder, tmp_path / "away")
            if f"image {image}: dropped its row" not in rescan(lab):
                raise Broken("the row of an image without a folder is kept")
            row = dumped.row()
            if (row["image"], row["status"]) != (None, "exited") or "image" not in row["status_reason"]:
                raise Broken(f"a service of which nothing is left is shown as {row}")
        with fault.round("an image without its row"):
            shutil.move(tmp_path / "away", folder)
            if f"image {image}: made its row" not in rescan(lab):
                raise Broken("no row is made of an image")
            dumped.resume(image)
            dumped.bring_to("dumped")
            dumped.forget_images(but=dumped.row()["image"])
            image = str(dumped.row()["image"])
            folder = lab.state / "images" / image
        with fault.round("an image and a service without rows, after one with a damaged spec"):
            _forget(lab, dumped.id, image)
            spec = lab.state / "services" / ("0" * 32) / "spec.json"
            spec.parent.mkdir()
            spec.write_text('{"argv": ["sle')
            said = rescan(lab)
            shutil.rmtree(spec.parent)
            expected = (f"service {'0' * 32}: no row", f"service {dumped.id}: made", f"image {image}: made")
            if not all(line in said for line in expected):
                raise Broken(f"rescan says {said!r}")
        with fault.round("nothing amiss"):
            if "rows and disk agree" not in rescan(lab):
                raise Broken("a second rescan finds something to mend")
            promise.holds(lab, [dumped], before=before)
            dumped.resume(image)
            promise.holds(lab, [dumped], before=before)


def _forget(lab: Lab, service: str, image: str) -> None:
    database = lab.folder / "state/database/db.sqlite3"
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as rows, rows:
        rows.execute("UPDATE services_job SET service_id = NULL WHERE service_id = ?", [service])
        rows.execute("DELETE FROM images_image WHERE id = ?", [image])
        tables = rows.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            columns = {row[1] for row in rows.execute(f"PRAGMA table_info({table})")}
            if "service_id" in columns and table not in {"services_job"}:
                rows.execute(f"DELETE FROM {table} WHERE service_id = ?", [service])
        rows.execute("DELETE FROM services_service WHERE id = ?", [service])

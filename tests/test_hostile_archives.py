"""An archive that somebody has shaped: it is refused in one sentence, and nothing of it stays anywhere."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.archives import (
    FILES,
    IMAGE,
    Change,
    compressed,
    do_import,
    facts_of,
    import_file,
    node_in,
    refused,
    sound_members,
    tar_of,
)
from worker import importing, manifest, tarstream
from worker.errors import JobFailed
from worker.paths import Paths

Member = tuple[tarfile.TarInfo | str, bytes]


def of_the_first_version(facts: dict[str, Any]) -> None:
    facts["version"] = 1
    facts["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return node_in(tmp_path)


def special(kind: bytes, name: str = "core-1.img", target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def with_manifest(*members: Member) -> bytes:
    return compressed(tar_of((manifest.NAME, facts_of(FILES)), *members))


def test_a_sound_archive_is_taken_whoever_owns_what_is_in_it(paths: Paths) -> None:
    """The others here differ from this one in what they are named after."""
    members: list[Member] = []
    for name, content in sound_members():
        assert isinstance(name, str)
        info = tarfile.TarInfo(name)
        info.size, info.uid, info.gid, info.mode, info.uname = len(content), 1000, 1000, 0o6777, "eve"
        members.append((info, content))
    assert do_import(paths, compressed(tar_of(*members))).image_id == IMAGE
    image = paths.image(IMAGE)
    assert {path.name for path in image.iterdir()} == {*FILES, manifest.NAME}
    for path in (image, *image.iterdir()):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 0)
        assert stat.S_IMODE(found.st_mode) == (0o700 if path == image else 0o600)
    assert manifest.faults(image, manifest.read(image)) == []


def test_an_archive_of_the_first_version_is_taken_and_summed_anew(paths: Paths) -> None:
    members: list[Member] = [(manifest.NAME, facts_of(FILES, of_the_first_version)), *FILES.items()]
    assert do_import(paths, compressed(tar_of(*members))).image_id == IMAGE
    image = paths.image(IMAGE)
    said = manifest.read(image)
    assert said["version"] == manifest.VERSION and not manifest.faults(image, said)
    manifest.remove(image)
    members[1] = ("core-1.img", b"c0re")
    assert "has other bytes in 'core-1.img'" in refused(paths, compressed(tar_of(*members))).message


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("../../etc/cron.d/x", b"x"), "does not name"),
        (("/etc/cron.d/x", b"x"), "does not name"),
        (("core-1.img/../../x", b"x"), "does not name"),
        (("other.img", b"x"), "does not name"),
        (("core-1.img", b"other length"), "not 4"),
        (("core-1.img", b"cord"), "other bytes"),
        ((special(tarfile.SYMTYPE, target="/etc/shadow"), b""), "a symbolic link"),
        ((special(tarfile.LNKTYPE, target="pages-1.img"), b""), "a hard link"),
        ((special(tarfile.CHRTYPE), b""), "a device"),
        ((special(tarfile.BLKTYPE), b""), "a device"),
        ((special(tarfile.FIFOTYPE), b""), "a FIFO"),
        ((special(tarfile.DIRTYPE), b""), "a folder"),
        ((special(tarfile.CONTTYPE), b""), "something that is no file"),
        ((special(tarfile.GNUTYPE_SPARSE), b""), "something that is no file"),
        (("x" * 300, b"x"), "does not name"),
        ((manifest.NAME, b"{}"), "does not name"),
    ],
)
def test_a_member_that_the_manifest_does_not_account_for(paths: Paths, member: Member, said: str) -> None:
    failure = refused(paths, with_manifest(member))
    assert failure.code == "archive_damaged"
    assert said in failure.message


def test_a_name_that_comes_twice(paths: Paths) -> None:
    failure = refused(paths, with_manifest(("core-1.img", b"core"), ("core-1.img", b"core")))
    assert "twice" in failure.message


def test_a_file_that_the_manifest_names_is_missing(paths: Paths) -> None:
    failure = refused(paths, compressed(tar_of(*sound_members()[:2], *sound_members()[3:])))
    assert "lacks 'pages-1.img'" in failure.message


@pytest.mark.parametrize(
    "members",
    [[], sound_members()[1:], [("x.json", b"{}")], [(manifest.NAME, b"\xff{")], [(manifest.NAME, b"[]")]],
)
def test_an_archive_that_does_not_begin_with_a_manifest(paths: Paths, members: list[Member]) -> None:
    assert "manifest" in refused(paths, compressed(tar_of(*members))).message


def named(name: str) -> Change:
    def change(facts: dict[str, Any]) -> None:
        facts["files"][name] = facts["files"].pop("core-1.img")

    return change


def put(**values: Any) -> Change:
    return lambda facts: facts.update(values)


def entry(**values: Any) -> Change:
    return lambda facts: facts["files"]["core-1.img"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        *(
            named(name)
            for name in (
                "../x",
                "/x",
                "a/../b",
                "a/b",
                "a//b",
                "a/",
                ".",
                "",
                "x\0y",
                "x\ny",
                "x" * 256,
                "pages-1.img/x",
                manifest.NAME,
                manifest.FIGURES,
                "\ud800",
            )
        ),
        entry(size=-1),
        entry(size=True),
        entry(size=4.0),
        entry(size=2**63),
        entry(blake3="A" * 64),
        entry(blake3=None),
        put(image="../" + IMAGE[3:]),
        put(image=IMAGE.upper()),
        put(service="x"),
        put(files={}),
        put(files={"a": 1}),
        put(mounts=[["/"]]),
        put(mounts=["/", "/"]),
        put(mounts=[["/", "etc"]]),
        put(mounts=[["/", "/\0"]]),
        put(pipe=-1),
        put(pipe="7"),
        put(version=0),
        put(version=99),
        put(created=float("inf")),
        put(created=1e300),
        put(created="today"),
        put(pages_bytes=-5),
        put(comm=["x"]),
        put(comm="x" * 100),
        put(comm="a\0b"),
        put(spec=[]),
        put(unknown={"deep": ["\udcff"]}),
    ],
)
def test_a_manifest_that_is_intact_but_says_what_cannot_be(paths: Paths, change: Change) -> None:
    archive = compressed(tar_of((manifest.NAME, facts_of(FILES, change)), *FILES.items()))
    assert refused(paths, archive).code in {"archive_damaged", "manifest_too_new"}


def test_a_manifest_that_somebody_has_edited(paths: Paths) -> None:
    edited = facts_of(FILES).replace(b"/bin/true", b"/bin/evil")
    failure = refused(paths, compressed(tar_of((manifest.NAME, edited), *FILES.items())))
    assert "damaged manifest" in failure.message


def test_brackets_without_end(paths: Paths) -> None:
    deep = b"[" * 100_000
    assert "manifest" in refused(paths, compressed(tar_of((manifest.NAME, deep)))).message
    nested = facts_of(FILES).replace(b'"pipe": 7', b'"pipe": 7, "x": ' + b"[" * 900 + b"]" * 900)
    assert "manifest" in refused(paths, compressed(tar_of((manifest.NAME, nested)))).message


def test_what_goes_on_or_is_something_else(paths: Paths) -> None:
    sound = compressed(tar_of(*sound_members()))
    plain = tar_of(*sound_members())
    for archive in (
        b"",
        b"\x28\xb5\x2f\xfd",
        sound + sound,
        plain,
        compressed(plain[:700]),
        compressed(plain + b"x" * 512),
        compressed(plain + bytes(3 << 20)),
        compressed(b"\0" * 512 + b"x" * 512),
        os.urandom(300),
        b"age-encryption.org/v1\n-> X25519 x\n",
        b"\x85\x01\x0c\x03" + os.urandom(200),
    ):
        assert refused(paths, archive).code in {"archive_damaged", "identity_needed"}
    assert do_import(paths, sound).image_id == IMAGE


def test_what_is_cut_off_leaves_what_was_right_of_it_and_no_image(paths: Paths) -> None:
    sound = compressed(tar_of(*sound_members()))
    plain = tar_of(*sound_members())
    for archive in (
        sound[:-9],
        sound[: len(sound) // 2],
        sound + b"more",
        compressed(plain.rstrip(b"\0")),
        compressed(plain[:5000]),
    ):
        with pytest.raises(JobFailed) as caught:
            do_import(paths, archive)
        assert caught.value.code == "archive_damaged"
        assert [path.name for path in paths.images.iterdir()] in ([], [f".import-{IMAGE}"])
        for path in paths.importing(IMAGE).glob("*"):
            assert path.read_bytes() == FILES[path.name]
    # What is refused afterwards takes that with it.
    assert "does not name" in refused(paths, with_manifest(("core-2.img", b"x"))).message
    assert do_import(paths, sound).image_id == IMAGE


def headed(change: Callable[[bytearray], None]) -> bytes:
    """Return a sound stream whose first header was changed, its checksum mended."""
    stream = bytearray(tar_of(*sound_members()))
    change(stream)
    stream[148:156] = b" " * 8
    stream[148:156] = b"%06o\0 " % sum(stream[:512])
    return compressed(bytes(stream))


def field(start: int, value: bytes) -> Callable[[bytearray], None]:
    def change(stream: bytearray) -> None:
        stream[start : start + len(value)] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        field(124, b"-0000000001\0"),
        field(124, b"\x80" + (2**62).to_bytes(11, "big")),
        field(124, b"77777777777\0"),
        field(124, b"12345678 90\0"),
        field(157, b"/etc/shadow"),
        field(257, b"ustar  \0"),
        field(0, b"\xff\xfe"),
    ],
    ids=[
        "negative",
        "base 256",
        "eight gibibytes",
        "digits and blanks",
        "a link's target",
        "GNU's",
        "no text",
    ],
)
def test_a_header_that_tar_would_not_write(paths: Paths, change: Callable[[bytearray], None]) -> None:
    assert refused(paths, headed(change)).code == "archive_damaged"


@pytest.mark.parametrize(
    "records",
    [
        b"",
        b"9 path=x",
        b"99999 path=x\n",
        b"0 path=x\n",
        b"10 path=x\n10 path=y\n",
        b"15 linkpath=x\n",
        b"9 size=-\n",
    ],
)
def test_an_extended_header_that_is_none(paths: Paths, records: bytes) -> None:
    info = tarfile.TarInfo("core-1.img")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    refused(paths, with_manifest((info, records)))


def test_an_extended_header_that_would_fill_the_memory(paths: Paths) -> None:
    info = tarfile.TarInfo("core-1.img")
    info.type, info.size = tarfile.XHDTYPE, 8 << 20
    assert "extended header of" in refused(paths, with_manifest((info, b" " * info.size))).message


def test_an_image_larger_than_the_pool_is_refused_before_a_byte_of_it_is_written(paths: Paths) -> None:
    free = os.statvfs(paths.images)
    huge = facts_of(FILES, entry(size=free.f_blocks * free.f_frsize + 1))
    failure = refused(paths, compressed(tar_of((manifest.NAME, huge))))
    assert failure.code == "pool_full"


def test_a_bomb_is_put_out_where_it_outgrows_what_the_manifest_says(paths: Paths) -> None:
    """A gibibyte of zeros in some ten kilobytes, behind a manifest that tells of four bytes."""
    text = facts_of(FILES)
    begins = tarstream.header(manifest.NAME, len(text)) + text + tarstream.padding(len(text))
    bomb = compressed(begins + tarstream.header("core-1.img", 1 << 30) + bytes(64 << 20))
    assert len(bomb) < 20_000
    assert "1073741824 bytes of 'core-1.img', not 4" in refused(paths, bomb).message


def test_a_window_that_would_fill_the_memory(paths: Paths) -> None:
    """zstd's frame may ask its reader for a window of terabytes (RFC 8878, 3.1.1.1.2)."""
    frame = struct.pack("<I", 0xFD2FB528) + b"\x00" + bytes([0x1F << 3]) + b"\x01\x00\x00"
    failure = refused(paths, frame)
    assert failure.code == "archive_damaged"
    assert "memory" in " ".join(failure.lines).lower()


def test_too_many_files(paths: Paths) -> None:
    entries = {f"f{number}": {"size": 0, "blake3": "0" * 64} for number in range(importing._MOST_FILES + 1)}
    archive = compressed(tar_of((manifest.NAME, facts_of(FILES, put(files=entries)))))
    assert f"{len(entries)} files are named" in refused(paths, archive).message


def test_another_image_of_the_same_id_stays_as_it_is(paths: Paths) -> None:
    do_import(paths, compressed(tar_of(*sound_members())))
    before = {path.name: path.read_bytes() for path in paths.image(IMAGE).iterdir()}
    other = {"core-1.img": b"evil"}
    with pytest.raises(JobFailed) as caught:
        do_import(paths, compressed(tar_of(*sound_members(other))))
    assert caught.value.code == "image_exists"
    assert {path.name: path.read_bytes() for path in paths.image(IMAGE).iterdir()} == before


def test_what_lies_in_the_folder_of_archives_but_is_no_plain_file(paths: Paths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "sound"
    elsewhere.write_bytes(compressed(tar_of(*sound_members())))
    link = paths.archives / "link"
    link.symlink_to(elsewhere)
    fifo = paths.archives / "fifo"
    os.mkfifo(fifo)
    folder = paths.archives / "folder"
    folder.mkdir()
    for file in (link, fifo, folder, paths.archives / "nothing"):
        with pytest.raises(JobFailed) as caught:
            import_file(paths, file)
        assert caught.value.code == "archive_missing"

"""The memory in an image: which pages of a process are there, by kind, and what stands in them.

Knows CRIU's mm-, pagemap- and pages- files. Each page file holds the present pages in the order of its map.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping as ReadOnly
from itertools import pairwise
from typing import NamedTuple

from worker.image_files import (
    Entry,
    Image,
    Unreadable,
    entries,
    names,
    number,
    opened,
    part,
    some_entries,
    text,
)

PAGE = 4096
KINDS = ("heap", "stack", "anonymous", "file", "shared", "other")

# Bits of a mapping's `status` (criu/include/image.h).
_STACK, _HEAP, _FILE_PRIVATE, _FILE_SHARED, _ANON_SHARED, _ANON_PRIVATE = (
    1 << 1,
    1 << 5,
    1 << 6,
    1 << 7,
    1 << 8,
    1 << 9,
)
_SYSVIPC, _MEMFD = 1 << 10, 1 << 14
_PRESENT = 4
_MOST_PIECES = 10_000


class Run(NamedTuple):
    """Pages that follow each other in the address space and in the page file."""

    start: int
    end: int
    offset: int


class Mapping(NamedTuple):
    """A mapping of a process; sizes in bytes, `source` the id of a file or of a shared memory."""

    start: int
    end: int
    kind: str
    source: int
    stored: int

    @property
    def mapped(self) -> int:
        """Return its size."""
        return self.end - self.start


class Memory:
    """The memory of one process.

    Args:
        image: the image's folder.
        pid: the process, as the image numbers it.

    Raises:
        Unreadable: a file of it is missing or damaged.
    """

    def __init__(self, image: Image, pid: int) -> None:
        self._image = image
        self.mm: Entry = next(iter(entries(image, f"mm-{pid}.img")), {})
        self._pages, self.runs = _runs(image, f"pagemap-{pid}.img")
        self._starts = [run.start for run in self.runs]

    def read(self, start: int, end: int, most: int) -> bytes:
        """Return the bytes of a piece of memory, at most `most`; fewer when the image does not hold them."""
        end = min(end, start + most)
        found = b""
        with opened(self._image, f"pages-{self._pages}.img") as file:
            while start < end:
                index = bisect_right(self._starts, start) - 1
                if index < 0 or self.runs[index].end <= start:
                    break
                run = self.runs[index]
                length = min(end, run.end) - start
                try:
                    file.seek(run.offset + start - run.start)
                except (OSError, OverflowError):
                    break  # no file is so long
                piece = file.read(length)
                found += piece
                if len(piece) < length:
                    break
                start += length
        return found

    def mappings(self) -> list[Mapping]:
        """Return the mappings, in the order of their addresses, each with what the image holds of it.

        Memory that is shared is not in the process's own page file: it counts nothing here.
        """
        found = []
        areas = self.mm.get("vmas")
        index = 0
        for area in sorted(
            (area for area in areas if isinstance(area, dict)) if isinstance(areas, list) else [],
            key=lambda area: number(area, "start"),
        ):
            start, end = number(area, "start"), number(area, "end")
            if end <= start:
                continue
            while index < len(self.runs) and self.runs[index].end <= start:
                index += 1
            stored, ahead = 0, index
            while ahead < len(self.runs) and self.runs[ahead].start < end:
                run = self.runs[ahead]
                stored += min(end, run.end) - max(start, run.start)
                if run.end > end:
                    break
                ahead += 1
            index = ahead
            found.append(Mapping(start, end, self._kind(area), number(area, "shmid"), stored))
        return found

    def _kind(self, area: Entry) -> str:
        status = number(area, "status")
        start, end = number(area, "start"), number(area, "end")
        if start <= number(self.mm, "mm_start_stack") < end or status & _STACK:
            return "stack"
        if status & (_ANON_SHARED | _SYSVIPC | _MEMFD):
            return "shared"
        if status & (_FILE_PRIVATE | _FILE_SHARED):
            return "file"
        if status & _HEAP or number(self.mm, "mm_start_brk") <= start < number(self.mm, "mm_brk"):
            return "heap"
        return "anonymous" if status & _ANON_PRIVATE else "other"


class Shared:
    """The shared memory in an image: a name and a size in bytes for each piece, by its number.

    A mapping names a piece itself or, as memfds and since CRIU 3.17 what is anonymous, a file that is one.

    Args:
        image: the image's folder.
        files: entries of files.img by their ids.

    Raises:
        Unreadable: a map of it is damaged.
    """

    def __init__(self, image: Image, files: ReadOnly[int, Entry]) -> None:
        memfds = {number(entry, "inode_id"): entry for entry in some_entries(image, "memfd.img")}
        self._pieces = {
            source: number(memfds[inode], "shmid")
            for source, entry in files.items()
            if (inode := number(part(entry, "memfd"), "inode_id")) in memfds
        }
        self._names = {
            number(entry, "shmid"): f"memfd:{text(entry.get('name'), 256)}"
            for entry in memfds.values()
            if entry.get("name") != "/dev/zero"
        }
        self.left: dict[int, int] = {}
        for name in names(image, "pagemap-shmem-")[:_MOST_PIECES]:
            digits = name.removesuffix(".img").rpartition("-")[2]
            if digits.isdecimal():
                _, runs = _runs(image, name)
                self.left[int(digits)] = sum(run.end - run.start for run in runs)

    def take(self, source: int) -> tuple[str, int]:
        """Return the name of what a mapping shares, and its bytes, which are told once only."""
        piece = self._pieces.get(source, source)
        return self._names.get(piece, "[shared]"), self.left.pop(piece, 0)


def _runs(image: Image, name: str) -> tuple[int, list[Run]]:
    """Return the number of the page file, and the present pages sorted by address without overlaps."""
    found = entries(image, name)
    if not found:
        return 0, []
    offset = 0
    runs: list[Run] = []
    for entry in found[1:]:
        start = number(entry, "vaddr")
        pages = number(entry, "nr_pages") or number(entry, "compat_nr_pages")
        flags = entry.get("flags")
        present = flags & _PRESENT if isinstance(flags, int) else not entry.get("in_parent")
        if not present or pages <= 0:
            continue
        runs.append(Run(start, start + pages * PAGE, offset))
        offset += pages * PAGE
    runs.sort()
    if any(left.end > right.start for left, right in pairwise(runs)):
        raise Unreadable(f"{name}: names a page twice")
    return number(found[0], "pages_id"), runs

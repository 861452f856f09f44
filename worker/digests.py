"""The sums by which the files of an image are known: made by BLAKE3, read also where they are SHA-256.

Knows nothing of images. A sum stands in a record under the name of its algorithm, as 64 hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from blake3 import blake3

ALGORITHM = "blake3"
"""Of new sums. It takes a third of the time of SHA-256 where the processor helps that one, a tenth elsewhere:
memory is then verified before CRIU has copied it."""

_PIECE = 256 << 10
_HEX = re.compile(r"[0-9a-f]{64}")


class Sum(Protocol):
    """A sum that grows with what it is given."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return what it is by now."""


_MAKERS: dict[str, Callable[[], Sum]] = {ALGORITHM: blake3, "sha256": hashlib.sha256}


def begin() -> Sum:
    """Return a new sum, of nothing yet."""
    return blake3()


class Recorded(NamedTuple):
    """The sum that somebody else has made of a file."""

    begin: Callable[[], Sum]
    """Begins a sum of the same kind."""
    text: str

    def agrees(self, found: Sum) -> bool:
        """Tell whether a sum that `begin` began has become this one."""
        return found.hexdigest() == self.text

    def is_of(self, path: Path) -> bool:
        """Tell whether it is the sum of a file's bytes. Raises OSError: they cannot be read."""
        found, data = self.begin(), memoryview(bytearray(_PIECE))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(data):
                found.update(data[:count])
        return self.agrees(found)


def recorded(record: object) -> Recorded | None:
    """Return the sum in a file's entry of a manifest, whoever wrote that; None if there is none."""
    if isinstance(record, Mapping):
        for name, begin_one in _MAKERS.items():
            text = record.get(name)
            if isinstance(text, str) and _HEX.fullmatch(text):
                return Recorded(begin_one, text)
    return None

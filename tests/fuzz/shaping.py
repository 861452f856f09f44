"""Turns the bytes that a fuzzer makes up into choices, numbers, texts and JSON. Knows no target."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ODD_NAMES = (
    "", ".", "..", "../x", "/etc/x", "a/b", "a//b", "a/../b", "core-1.img", "pages-1.img", "manifest.json",
    "origin.json", "statistics.json", "x" * 101, "y" * 300, "\0", "\n", "ä", "a/" * 200 + "z", "\ud800", "-x",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, 10**300, 0.5, 1e308, float("inf"), float("nan"), "",
    "x", "0" * 32, "f" * 64, [], {}, [[]], {"": None}, ["/", "/"], [["/", "/"]], "\0", "\udcff", "x" * 5000,
)  # fmt: skip


class Shaper:
    """Takes bytes off the front; at their end everything is the first choice, zero, or empty."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __bool__(self) -> bool:
        return bool(self.data)

    def bytes(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, most: int) -> int:
        """Return a number from 0 to `most`."""
        size = (most.bit_length() + 7) // 8
        return int.from_bytes(self.bytes(size), "little") % (most + 1)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices) - 1)]

    def text(self) -> str:
        if self.number(1):
            return self.pick(ODD_NAMES)
        return self.bytes(self.number(40)).decode("utf-8", "replace")

    def value(self, depth: int = 3) -> Any:
        """Return a JSON value, mostly an odd one."""
        match self.number(5) if depth else 0:
            case 1:
                return self.text()
            case 2:
                return self.number(2**64)
            case 3:
                return [self.value(depth - 1) for _ in range(self.number(4))]
            case 4:
                return {self.text(): self.value(depth - 1) for _ in range(self.number(4))}
        return copy.deepcopy(self.pick(ODD_VALUES))

    def changed(self, sound: Any) -> Any:
        """Return a sound JSON value with some of its parts replaced, taken out, or named otherwise."""
        root = [copy.deepcopy(sound)]
        for _ in range(1 + self.number(3)):
            self._change(root)
        return root[0]

    def _change(self, holder: Any) -> None:
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = self.pick(keys)
        if isinstance(holder[key], dict | list) and holder[key] and self.number(3):
            self._change(holder[key])
        elif isinstance(holder, dict) and (how := self.number(3)) < 2:
            content = holder.pop(key)
            if how:
                holder[self.text()] = content
        else:
            holder[key] = self.value()

"""As much D-Bus as it takes to ask systemd for something over its own socket. Knows nothing of services.

runmh speaks it, which reads nothing but the standard library, and of that as little as it can. How messages
are laid out: dbus.freedesktop.org/doc/dbus-specification.html, "Message Format".
"""

from __future__ import annotations

import _socket
import os
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

_CALL, _ERROR, _SIGNAL = 1, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_TO, _SIGNATURE = 1, 2, 3, 4, 5, 8
_NUMBERS = {"y": ("B", 1), "b": ("I", 4), "u": ("I", 4), "t": ("Q", 8)}
_ALIGNED = {"s": 4, "o": 4, "a": 4, "(": 8, **{kind: size for kind, (_, size) in _NUMBERS.items()}}
_LARGEST = 1 << 27  # bytes, the specification's limit of a message


class ErrorReply(Exception):
    """The other side answered with an error.

    Attributes:
        name: the error's, words with dots between.
    """

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(message or name)
        self.name = name


class Message(NamedTuple):
    """What came from the other side.

    Attributes:
        kind: as the specification numbers it.
        fields: those of its header, by their codes.
        body: its arguments as they came.
        order: of their bytes, as `struct` writes it.
    """

    kind: int
    fields: dict[int, Any]
    body: bytes
    order: str

    def arguments(self, signature: str) -> list[Any]:
        """Return its first arguments, of these types: numbers, texts, and variants of them."""
        found: list[Any] = []
        at = 0
        for kind in signature:
            value, at = _read(self.body, at, kind, self.order)
            found.append(value)
        return found


class Connection:
    """A connection to one peer without a bus between, as systemd's private socket gives it.

    Args:
        path: the socket's.
        patience: seconds from now after which whatever is waited for is given up.

    Raises:
        OSError: nobody answers there, or not in time.
    """

    def __init__(self, path: str, patience: float) -> None:
        self._deadline = time.monotonic() + patience
        self._serial = 0
        self._heard = b""
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(patience)
            self._socket.connect(path)
            self._greet()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _greet(self) -> None:
        """Say who this is, which the kernel confirms, and that messages follow."""
        who = str(os.geteuid()).encode().hex()
        self._socket.sendall(f"\0AUTH EXTERNAL {who}\r\nBEGIN\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._take(1)
        if not answer.startswith(b"OK "):
            raise OSError(f"it answers {answer.decode(errors='replace').strip()}")

    def call(self, path: str, interface: str, member: str, signature: str = "", *values: object) -> Message:
        """Call a method and return the answer.

        Args:
            signature: the types of the values. A variant's value is its signature and what has it.

        Raises:
            ErrorReply: the answer is an error.
            OSError: there is none in time.
        """
        self._serial += 1
        body = bytearray()
        for kind, value in zip(_types(signature), values, strict=True):
            _write(body, kind, value)
        fields = [(_PATH, ("o", path)), (_INTERFACE, ("s", interface)), (_MEMBER, ("s", member))]
        if signature:
            fields.append((_SIGNATURE, ("g", signature)))
        message = bytearray(struct.pack("<cBBBII", b"l", _CALL, 0, 1, len(body), self._serial))
        _write(message, "a(yv)", fields)
        _align(message, 8)
        self._socket.settimeout(self._left())
        self._socket.sendall(message + body)
        while True:
            heard = self._hear()
            if heard.fields.get(_REPLY_TO) == self._serial:
                if heard.kind == _ERROR:
                    raise ErrorReply(heard.fields[_ERROR_NAME], *heard.arguments("s" if heard.body else ""))
                return heard

    def signal(self, member: str) -> Message:
        """Wait for the next signal of this name.

        Raises:
            OSError: it does not come in time.
        """
        while True:
            heard = self._hear()
            if heard.kind == _SIGNAL and heard.fields.get(_MEMBER) == member:
                return heard

    def _hear(self) -> Message:
        start = self._take(16)
        order = "<" if start.startswith(b"l") else ">"
        kind, body, fields = struct.unpack_from(f"{order}xB2xI4xI", start)
        if body + fields > _LARGEST:
            raise OSError("it speaks no D-Bus")
        # The lengths of the fields and of the body are told; the body begins at a multiple of 8.
        rest = start + self._take(fields + -fields % 8 + body)
        found, at = {}, 16
        try:
            while at < 16 + fields:
                at += -at % 8
                found[rest[at]], at = _read(rest, at + 1, "v", order)
        except (LookupError, ValueError, struct.error):
            raise OSError("it speaks no D-Bus") from None
        return Message(kind, found, rest[len(rest) - body :], order)

    def left(self) -> float:
        """Return the seconds that are left of its patience; 0 for none."""
        return max(0.0, self._deadline - time.monotonic())

    def _left(self) -> float:
        left = self.left()
        if not left:
            raise TimeoutError("it does not answer in time")
        return left

    def _take(self, count: int) -> bytes:
        while len(self._heard) < count:
            self._socket.settimeout(self._left())
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("it has hung up")
            self._heard += data
        taken, self._heard = self._heard[:count], self._heard[count:]
        return taken


def _types(signature: str) -> Iterator[str]:
    """Yield the complete types that a signature is made of."""
    while signature:
        end = depth = 0
        while True:
            letter = signature[end]
            depth += (letter == "(") - (letter == ")")
            end += 1
            if depth == 0 and letter != "a":
                break
        yield signature[:end]
        signature = signature[end:]


def _align(data: bytearray, to: int) -> None:
    data += bytes(-len(data) % to)


def _write(data: bytearray, kind: str, value: Any) -> None:
    """Append a value of one complete type."""
    _align(data, _ALIGNED.get(kind[0], 1))
    match kind[0]:
        case "s" | "o":
            text = value.encode()
            data += struct.pack("<I", len(text)) + text + b"\0"
        case "g":
            data += bytes([len(value)]) + value.encode() + b"\0"
        case "v":
            _write(data, "g", value[0])
            _write(data, value[0], value[1])
        case "a":
            data += bytes(4)
            length_at = len(data) - 4
            _align(data, _ALIGNED.get(kind[1], 1))
            start = len(data)
            for item in value:
                _write(data, kind[1:], item)
            struct.pack_into("<I", data, length_at, len(data) - start)
        case "(":
            for each, item in zip(_types(kind[1:-1]), value, strict=True):
                _write(data, each, item)
        case number:
            data += struct.pack(f"<{_NUMBERS[number][0]}", value)


def _read(data: bytes, at: int, kind: str, order: str) -> tuple[Any, int]:
    """Return the value at a place, and the place behind it."""
    at += -at % _ALIGNED.get(kind, 1)
    match kind:
        case "v":
            inner, at = _read(data, at, "g", order)
            return _read(data, at, inner, order)
        case "g":
            start, length = at + 1, data[at]
        case "s" | "o":
            start, length = at + 4, struct.unpack_from(f"{order}I", data, at)[0]
        case number:
            letter, size = _NUMBERS[number]
            return struct.unpack_from(f"{order}{letter}", data, at)[0], at + size
    return data[start : start + length].decode(), start + length + 1

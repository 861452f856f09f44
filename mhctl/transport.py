"""One HTTP/1.1 exchange over a unix socket, TCP or TLS; knows nothing of the API.

http.client would do, but importing it (ssl, email) costs more than all the rest of `mhctl service list`; and
`_socket` is what `socket` is made of, without the enums that take 6 ms before the request is on its way.
"""

from __future__ import annotations

import _socket

from mhctl.errors import NOT_ALLOWED, ConnectionLost, Unreachable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT = 5.0
LONGEST_LINE = 65536
PIECE = 65536
START_IT = "Start it with `sudo miehistod`, or set MIEHISTO_URL to where it listens."
SAFE_IN_URL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:,")


class Address:
    """Where the daemon listens.

    Args:
        url: `unix:PATH`, `http://HOST[:PORT][/PREFIX]` or `https://…`.

    Raises:
        UsageError: the address has none of these forms.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = ""
        self.port = 0
        scheme, colon, rest = url.partition(":")
        self.scheme = scheme.lower()
        if not url.isprintable() or " " in url:
            self.scheme = ""  # no header may carry it
        if self.scheme == "unix" and colon:
            self.host = "/" + rest.lstrip("/") if rest.startswith("/") else rest
            self.host_header = "localhost"
            if self.host:
                return
        elif self.scheme in ("http", "https") and rest.startswith("//"):
            self.host_header, _, prefix = rest[2:].partition("/")
            self.prefix = "/" + prefix.rstrip("/") if prefix.rstrip("/") else ""
            host, port = self.host_header, ""
            if host.startswith("["):
                host, _, port = host[1:].partition("]")
                port = port.removeprefix(":")
            elif ":" in host:
                host, _, port = host.partition(":")
            self.host = host
            self.port = int(port) if port.isdecimal() else {"http": 80, "https": 443}[self.scheme]
            if host and (port.isdecimal() or not port) and "@" not in host:
                return
        raise UsageError(
            f"The daemon's address cannot be {url!r}.",
            remedy="Give MIEHISTO_URL the form unix:PATH, http://HOST:PORT or https://HOST:PORT.",
        )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can answer there."""
        return self.scheme == "unix" or self.host in ("127.0.0.1", "::1", "localhost")

    def connect(self) -> _socket.socket:
        """Returns a connected socket. Raises Unreachable, with exit code 5 when the socket forbids us."""
        try:
            if self.scheme == "unix":
                local = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
                local.settimeout(CONNECT_TIMEOUT)
                local.connect(self.host)
                return local
            import socket

            connection = socket.create_connection((self.host, self.port), timeout=CONNECT_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.scheme == "https":
                import ssl

                return ssl.create_default_context().wrap_socket(connection, server_hostname=self.host)
            return connection
        except PermissionError as error:
            raise Unreachable(
                f"The daemon at {self.url} may not be reached: {error.strerror}.",
                remedy="Use sudo, or become a member of the socket's group.",
                code="not_allowed",
                exit_code=NOT_ALLOWED,
            ) from error
        except (OSError, ValueError) as error:  # ValueError: an embedded NUL, a host name too long for IDNA
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(
                f"The daemon at {self.url} cannot be reached: {reason}.", remedy=START_IT, code="not_reached"
            ) from error


def quote(text: str) -> str:
    """Percent-encodes one path segment or query value (urllib.parse would cost 6 ms)."""
    octets = text.encode("utf-8", "surrogateescape")
    return "".join(chr(octet) if octet in SAFE_IN_URL else f"%{octet:02X}" for octet in octets)


class Response:
    """An answer whose body is read as it comes.

    Attributes:
        status: the HTTP status.
        headers: names in lower case; of a repeated one the last stays.
    """

    def __init__(self, connection: _socket.socket, *, url: str) -> None:
        self._connection = connection
        self._read = b""  # from the socket, and not yet asked for
        self._url = url
        self.headers: dict[str, str] = {}
        self.status = 100
        while 100 <= self.status < 200:  # an interim answer (100, 103) stands before the real one
            self._read_head()
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        self._length = int(length) if length.isdecimal() else None
        if self.status in (204, 304):
            self._chunked, self._length = False, 0

    def _read_head(self) -> None:
        words = self._line().split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise Unreachable(
                f"What answers at {self._url} is not miehistod.", remedy=START_IT, code="not_reached"
            )
        self.status = int(words[1])
        self.headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def _line(self) -> str:
        while b"\n" not in self._read:
            more = self._receive() if len(self._read) < LONGEST_LINE else b""
            if not more:
                raise self._lost()
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("latin-1").rstrip("\r\n")

    def _some(self, most: int) -> bytes:
        if not self._read:
            self._read = self._receive()
        piece, self._read = self._read[:most], self._read[most:]
        return piece

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(PIECE)
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError | None = None) -> ConnectionLost:
        if isinstance(error, TimeoutError):
            reason = "no answer came in time"
        else:
            reason = (error.strerror if error else None) or "the connection ended before the answer did"
        return ConnectionLost(
            f"The daemon at {self._url} was lost: {reason}.",
            remedy="See whether miehistod still runs.",
            code="not_reached",
        )

    def pieces(self) -> Iterator[bytes]:
        """Yields the body's bytes as they arrive.

        Raises:
            ConnectionLost: the body ended before its announced end.
        """
        if self._chunked:
            while left := self._chunk_size():
                while left:
                    piece = self._some(min(left, PIECE))
                    if not piece:
                        raise self._lost()
                    left -= len(piece)
                    yield piece
                self._line()
            while self._line():  # trailers
                pass
        elif self._length is not None:
            while self._length:
                piece = self._some(min(self._length, PIECE))
                if not piece:
                    raise self._lost()
                self._length -= len(piece)
                yield piece
        else:
            while piece := self._some(PIECE):
                yield piece

    def _chunk_size(self) -> int:
        try:
            return int(self._line().partition(";")[0], 16)
        except ValueError as error:
            raise self._lost() from error

    def lines(self) -> Iterator[bytes]:
        """Yields the body's lines as they arrive, without their ends."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def read(self) -> bytes:
        """Returns the whole body."""
        return b"".join(self.pieces())

    def close(self) -> None:
        """Ends the exchange; the daemon notices that nobody listens any more."""
        self._connection.close()


def exchange(
    address: Address,
    method: str,
    path: str,
    *,
    headers: dict[str, str],
    body: bytes | None = None,
    timeout: float | None,
) -> Response:
    """Sends one request and returns when the answer's head has come.

    Args:
        path: what stands behind the address's prefix, already percent-encoded.
        timeout: seconds without a byte after which the daemon counts as lost; None waits for ever.

    Raises:
        Unreachable: nobody listens, or what listens speaks no HTTP.
        ConnectionLost: the connection ended before the answer's head.
    """
    connection = address.connect()
    try:
        connection.settimeout(timeout)
        head = [
            f"{method} {address.prefix}{path} HTTP/1.1",
            f"Host: {address.host_header}",
            "Connection: close",
        ]
        head += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None or method != "GET":
            head.append(f"Content-Length: {len(body or b'')}")
        request = "\r\n".join([*head, "", ""]).encode("latin-1") + (body or b"")
        try:  # noqa: SIM105 (contextlib costs 3 ms)
            connection.sendall(request)
        except OSError:
            pass  # an early refusal (413) may stand in the socket already: read on
        return Response(connection, url=address.url)
    except BaseException:
        connection.close()
        raise

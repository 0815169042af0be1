"""A pool of keep-alive HTTP/1.1 connections on asyncio, as thin as a load of small JSON requests allows.

It speaks what OpenAI-compatible servers speak: content-length, chunked and until-close bodies, gzip, TLS. It follows no
redirects and knows no proxies; `sdk.py` is for those.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import zlib
from urllib.parse import urlsplit

from distill.teacher.credentials import Credential
from distill.teacher.transport import HttpReply, Unreachable

_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 4.0  # below the 5 s after which uvicorn closes: a request must not meet a closing connection
_LONGEST_HEAD_BYTES = 1 << 16
_LONGEST_BODY_BYTES = 1 << 28
_BODILESS = (204, 304)


class _Malformed(Exception):
    """What came is not HTTP/1.1."""


class _Connection(asyncio.Protocol):
    """One connection: a request, its reply, the next request."""

    def __init__(self) -> None:
        self.reusable = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[HttpReply] | None = None
        self._head: tuple[int, dict[str, str]] | None = None
        self._length: int | None = None  # of the body; None: chunked or until close
        self._chunks: bytearray | None = None
        self._bodiless = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.reusable = True

    def exchange(self, message: bytes) -> asyncio.Future[HttpReply]:
        """Send and hand back the reply to come."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._waiting

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:  # nobody asked: whatever it is, this connection is out of step
            self.close()
            return
        self._buffer += data
        try:
            self._advance()
        except _Malformed as error:
            self._fail(f"not HTTP/1.1: {error}")

    def eof_received(self) -> bool:
        self.reusable = False
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if self._waiting is None:
            return
        until_close = self._head is not None and self._length is None and self._chunks is None
        if until_close and error is None:
            self._finish(bytes(self._buffer))
        else:
            self._fail(str(error) if error else "the server closed the connection before its answer was whole")

    def _advance(self) -> None:
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _LONGEST_HEAD_BYTES:
                    raise _Malformed("headers without an end")
                return
            status, headers = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if status >= 200:  # 1xx says that the answer is still to come
                self._begin_body(status, headers)
        if self._length is not None:
            if len(self._buffer) >= self._length:
                self._finish(bytes(self._buffer[: self._length]))
        elif self._chunks is not None:
            if self._take_chunks():
                self._finish(bytes(self._chunks))
        elif len(self._buffer) > _LONGEST_BODY_BYTES:
            raise _Malformed("a body without an end")

    def _begin_body(self, status: int, headers: dict[str, str]) -> None:
        self._head = (status, headers)
        if headers.get("transfer-encoding", "identity").lower() != "identity":
            self._chunks = bytearray()
        elif status in _BODILESS:
            self._length = 0
        elif "content-length" in headers:
            if not headers["content-length"].isdecimal() or int(headers["content-length"]) > _LONGEST_BODY_BYTES:
                raise _Malformed(f"content-length {headers['content-length'][:40]}")
            self._length = int(headers["content-length"])
        if (self._length is None and self._chunks is None) or headers.get("connection", "").lower() == "close":
            self.reusable = False

    def _take_chunks(self) -> bool:
        """Move whole chunks out of the buffer; True when the last one is there."""
        assert self._chunks is not None
        while True:
            line_end = self._buffer.find(b"\r\n")
            if line_end < 0:
                return False
            try:
                size = int(bytes(self._buffer[:line_end]).split(b";", 1)[0], 16)
            except ValueError:
                raise _Malformed("a chunk without a size") from None
            if size < 0 or size + len(self._chunks) > _LONGEST_BODY_BYTES:
                raise _Malformed("a chunk of no sensible size")
            if size == 0:
                trailer_end = self._buffer.find(b"\r\n\r\n", line_end)  # also where no trailer is
                if trailer_end < 0:
                    return False
                del self._buffer[: trailer_end + 4]
                return True
            end = line_end + 2 + size
            if len(self._buffer) < end + 2:
                return False
            self._chunks += self._buffer[line_end + 2 : end]
            del self._buffer[: end + 2]

    def _finish(self, content: bytes) -> None:
        assert self._head is not None
        if self._length is not None:
            del self._buffer[: self._length]
        if self._buffer and self.reusable:
            self.close()  # more than was asked for
        status, headers = self._head
        waiting, self._waiting = self._waiting, None
        self._head, self._length, self._chunks = None, None, None
        if headers.get("content-encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
            try:
                content = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, _LONGEST_BODY_BYTES)
            except zlib.error:
                content = b""  # nothing readable came: the reader of the reply says so
        if waiting is not None and not waiting.done():
            waiting.set_result(HttpReply(status, headers, content))

    def _fail(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, None
        self.close()
        if waiting is not None and not waiting.done():
            waiting.set_exception(Unreachable(reason))


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or len(code) != 3 or not code.isdecimal():
        raise _Malformed(repr(lines[0][:60]))
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if version == "HTTP/1.0" and headers.get("connection", "").lower() != "keep-alive":
        headers["connection"] = "close"
    return int(code), headers


class HttpPool:
    """Requests to one base URL. As many connections as are asked for at once; idle ones are used again."""

    def __init__(self, base_url: str, credential: Credential) -> None:
        parts = urlsplit(base_url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._tls = _tls() if secure else None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        named = host if parts.port is None else f"{host}:{parts.port}"
        fixed = {"host": named, "user-agent": "distill", **_organisation()}
        lines = [f"{name}: {value}\r\n" for name, value in fixed.items()]
        self._fixed = "".join([*lines, "accept: application/json\r\naccept-encoding: gzip\r\n"])
        self._credential = credential
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes | None, content_type: str) -> HttpReply:
        """One exchange. Raises Unreachable."""
        who = f"{self._credential.header}: {self._credential.value}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._fixed}{who}"
        if body is None:
            message = f"{head}\r\n".encode("latin-1")
        else:
            lengths = f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
            message = (head + lengths).encode("latin-1") + body
        connection = self._take_idle() or await self._connect()
        try:
            reply = await connection.exchange(message)
        except BaseException:  # timed out, cancelled or broken: what comes now belongs to nobody
            connection.close()
            raise
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def close(self) -> None:
        """Close all idle connections; those in use are closed by their users."""
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> _Connection | None:
        """The connection used last, the likeliest to be alive."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise Unreachable(f"no connection within {_CONNECT_SECONDS:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        return connection


def _tls() -> ssl.SSLContext:
    """The system's certificates (SSL_CERT_FILE and SSL_CERT_DIR count), certifi's where the system has none."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _organisation() -> dict[str, str]:
    """The headers that the official SDK makes of the environment."""
    found = {}
    for header, variable in (("openai-organization", "OPENAI_ORG_ID"), ("openai-project", "OPENAI_PROJECT_ID")):
        value = os.environ.get(variable, "").strip()
        if value and value.isascii() and value.isprintable():
            found[header] = value
    return found

"""The thin pool on raw bytes: framings of HTTP/1.1, what is not HTTP, and connections used again."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from distill.teacher.credentials import Key
from distill.teacher.http import HttpPool
from distill.teacher.transport import HttpReply, Unreachable, is_plain

OK = b"HTTP/1.1 200 OK\r\n"


def exchange(reply: bytes, *, pieces: int = 1, times: int = 1) -> tuple[list[HttpReply | str], int]:
    """So many requests to a server that answers each with these bytes and closes after a reply without a length."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while await reader.readuntil(b"{}"):
                size = -(-len(reply) // pieces)
                for start in range(0, len(reply), size):
                    writer.write(reply[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"ength" not in reply and b"chunked" not in reply:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> list[HttpReply | str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", Key("key"))
        found: list[HttpReply | str] = []
        for _ in range(times):
            try:
                found.append(await asyncio.wait_for(pool.request("POST", "/x", b"{}", "application/json"), 5))
            except Unreachable as error:
                found.append(str(error))
        await pool.close()
        server.close()
        return found

    return asyncio.run(main()), connections


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize(
    "reply",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"content-length:5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTrailer: t\r\n\r\n",
        OK + b"\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        OK
        + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(b"hello", mtime=0))
        + gzip.compress(b"hello", mtime=0),
    ],
)
def test_framings(reply: bytes, pieces: int) -> None:
    found, connections = exchange(reply, pieces=pieces, times=2)
    assert [one.content for one in found if isinstance(one, HttpReply)] == [b"hello", b"hello"]
    kept = b"ength" in reply or b"chunked" in reply
    assert connections == (1 if kept else 2)


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        OK + b"Content-Length: many\r\n\r\nhello",
        OK + b"Content-Length: -1\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
        b"",
        b"HTTP/1.1 200",
        b"x" * 100_000,
    ],
    ids=range(7),
)
def test_what_is_not_http_is_unreachable(reply: bytes) -> None:
    found, _ = exchange(reply)
    assert isinstance(found[0], str)


def test_more_than_was_asked_for_ends_the_connection() -> None:
    found, connections = exchange(OK + b"Content-Length: 2\r\n\r\nhello", times=2)
    assert [one.content for one in found if isinstance(one, HttpReply)] == [b"he", b"he"] and connections == 2


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    """The late answer to a request that was given up must not be taken for the next one's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = (await reader.readuntil(b"}"))[-8:]
        if b"slow" in body:
            await asyncio.sleep(0.1)
        writer.write(OK + b"Content-Length: 8\r\n\r\n" + body)
        writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", Key("key"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.request("POST", "/x", b'{"slow"}', "application/json"), 0.02)
        reply = await pool.request("POST", "/x", b'{"fast"}', "application/json")
        server.close()
        return reply.content

    assert asyncio.run(main()) == b'{"fast"}'


def test_what_the_thin_pool_leaves_to_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert is_plain("https://api.example/v1") and is_plain("http://127.0.0.1:8000/v1")
    assert not is_plain("https://api.example/v1?token=x") and not is_plain("https://me:pass@api.example/v1")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert not is_plain("https://api.example/v1") and is_plain("https://localhost/v1")
    monkeypatch.setenv("no_proxy", "api.example")
    assert is_plain("https://api.example/v1")

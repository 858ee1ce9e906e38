"""The only door of the server that nodes see: a reverse proxy that knows nine routes.

Open-source Flower serves its Control and Runtime APIs on the port of its Fleet API, without
authentication: whoever reaches that port can register nodes and run code on the server. So the
SuperLink listens on loopback, and this gateway forwards what a node needs (`FLEET`) and answers 404
with nothing said to everything else. Headers pass untouched: a node's signature is in them.

    python -m foedus.server.gateway --listen 127.0.0.1:8443 --upstream 127.0.0.1:8000 --certificates DIR \\
        --secret FILE
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import uvicorn

from ..errors import InputError
from . import secret, tls
from .certificates import Certificates, load
from .gate import FLEET, HEALTH, KEY_HEADER, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

MAX_BODY = 257 * 2**20  # bytes: a node's largest message (256 MiB) and its envelope
MAX_HELD = 4 * MAX_BODY  # bytes of request bodies held at once, over all connections
_TIMEOUT = 60.0  # seconds for the SuperLink to answer
_IDLE = 4.0  # seconds a pooled connection is good for; uvicorn, at its other end, closes after 5
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect", KEY_HEADER}
_NOT_RETURNED = _HOP_BY_HOP | {b"content-length", b"date", b"server"}


class Answer(NamedTuple):
    """What the SuperLink says: HTTP status, headers (names in lower case) and body."""

    status: int
    headers: Headers
    body: bytes


class Upstream(Protocol):
    """The way to the SuperLink."""

    async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        """One request.

        Raises:
            OSError: it can't be reached, or hangs up.
            TimeoutError: it does not answer in time.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class SuperLinkUpstream:
    """HTTP/1.1 over pooled TLS connections, by hand: a third of what a client library costs per request.

    Args:
        address: ``host:port``.
        tls: verifies the SuperLink's certificate.
        key: shown to the SuperLink with every request.
    """

    def __init__(self, address: str, tls: ssl.SSLContext, key: bytes) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._tls = tls
        self._key = key
        self._idle: list[tuple[float, _Connection]] = []

    async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        head = [f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n".encode("ascii")]
        head.append(b"%b: %b\r\n" % (KEY_HEADER, self._key))
        head += [b"%b: %b\r\n" % header for header in headers]
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        async with asyncio.timeout(_TIMEOUT):
            while (connection := self._pooled()) is not None:
                with contextlib.suppress(ConnectionError, EOFError):  # closed while it was idle
                    return await self._exchange(connection, b"".join(head), body)
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
            try:
                return await self._exchange(_Connection(reader, writer), b"".join(head), body)
            except EOFError as error:
                raise ConnectionError("the SuperLink hung up") from error

    def _pooled(self) -> _Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() - since < _IDLE and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return None

    async def _exchange(self, connection: _Connection, head: bytes, body: bytes) -> Answer:
        reader, writer = connection
        reusable = False
        try:
            writer.write(head + body if len(body) < 65536 else head)
            if len(body) >= 65536:
                writer.write(body)
            await writer.drain()
            status_line, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
            status = int(status_line.split(b" ", 2)[1])
            headers = [
                (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
            ]
            named = dict(headers)
            if b"chunked" in named.get(b"transfer-encoding", b"").lower():
                content = await _chunks(reader)
            else:
                content = await reader.readexactly(int(named[b"content-length"]))
            reusable = b"close" not in named.get(b"connection", b"").lower()
            return Answer(status, headers, content)
        except (ValueError, IndexError, KeyError, asyncio.LimitOverrunError) as error:
            raise ConnectionError("the SuperLink's answer is not HTTP") from error
        finally:
            if reusable:
                self._idle.append((time.monotonic(), connection))
            else:
                writer.close()

    async def close(self) -> None:
        while self._idle:
            writer = self._idle.pop()[1].writer
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():  # trailers
        pass
    return b"".join(parts)


class Gateway:
    """The proxy as an ASGI app.

    Args:
        upstream: the SuperLink.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._upstream.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if not ((method == "POST" and path in FLEET) or (method == "GET" and path == HEALTH)):
            await _answer(send, 404)
            return
        named = dict(scope["headers"])
        if _length(named.get(b"content-length")) > MAX_BODY:
            await _answer(send, 413, close=True)
            return
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                event = await receive()
                if event["type"] == "http.disconnect":
                    return
                chunk = event.get("body", b"")
                more = event.get("more_body", False)
                chunks.append(chunk)
                size += len(chunk)
                self._held += len(chunk)
                if size > MAX_BODY or self._held > MAX_HELD:
                    await _answer(send, 413 if size > MAX_BODY else 503, close=True)
                    return
            passed = [header for header in scope["headers"] if header[0] not in _NOT_FORWARDED]
            body = b"".join(chunks)
            answer = await self._forward(method, path, passed, body, receive)
        finally:
            self._held -= size
        if answer is not None:
            await _answer(send, answer.status, _kept(answer.headers), answer.body)

    async def _forward(
        self, method: str, path: str, headers: Headers, body: bytes, receive: Receive
    ) -> Answer | None:
        """The SuperLink's answer. None: the node hung up while it was held."""
        # the path is ours, the query is dropped, and the ASGI server has parsed the headers:
        # no byte of a client's reaches the SuperLink unread
        asked = asyncio.ensure_future(self._upstream.request(method, path, headers, body))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            return await asked if asked.done() else None
        except TimeoutError:
            return Answer(504, [], b"")
        except OSError:
            return Answer(503, [], b"")
        finally:
            asked.cancel()
            gone.cancel()


def _kept(headers: Headers) -> Headers:
    return [header for header in headers if header[0] not in _NOT_RETURNED]


def _length(value: bytes | None) -> float:
    """A header's number; 0 where it is none."""
    with contextlib.suppress(ValueError, OverflowError):
        return float(value or 0)
    return 0.0


async def _answer(
    send: Send, status: int, headers: Headers | None = None, body: bytes = b"", *, close: bool = False
) -> None:
    length = (b"content-length", b"%d" % len(body))
    closing = [(b"connection", b"close")] if close else []
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or []), length, *closing]}
    )
    await send({"type": "http.response.body", "body": body})


def create_app(upstream: str, files: Certificates, secret_file: Path) -> Gateway:
    """The gateway before the SuperLink at `upstream` (``host:port``), which was started with `secret_file`.

    Raises:
        InputError: `upstream` is not ``host:port``, the CA's file no certificate, or the secret no secret.
    """
    _split(upstream)
    return Gateway(SuperLinkUpstream(upstream, tls.trusting(files), secret.key(secret_file, "fleet")))


def server(listen: str, upstream: str, files: Certificates, secret_file: Path) -> uvicorn.Server:
    """The gateway as a server with TLS 1.3, not running yet: ``serve()`` it, set ``should_exit`` to stop.

    Raises:
        InputError: `listen` or `upstream` is not ``host:port``; or see `create_app`.
    """
    host, port = _split(listen)
    return tls.server(
        create_app(upstream, files, secret_file),
        files,
        host,
        port,
        log_level="warning",
        access_log=False,
        date_header=True,  # by which a node sees that its clock is wrong
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        limit_concurrency=1024,
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def serve(listen: str, upstream: str, files: Certificates, secret_file: Path) -> None:
    """Run the gateway until SIGINT or SIGTERM."""
    server(listen, upstream, files, secret_file).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m foedus.server.gateway``."""
    parser = argparse.ArgumentParser(prog="python -m foedus.server.gateway", description="The nodes' door.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where nodes connect")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="the SuperLink, on loopback")
    parser.add_argument(
        "--certificates", required=True, type=Path, metavar="DIR", help="of server.certificates"
    )
    parser.add_argument("--secret", required=True, type=Path, metavar="FILE", help="of server.secret")
    options = parser.parse_args(arguments)
    try:
        serve(options.listen, options.upstream, load(options.certificates), options.secret)
    except InputError as error:
        parser.exit(error.exit_code, error.diagnostics() + "\n")


if __name__ == "__main__":
    main()

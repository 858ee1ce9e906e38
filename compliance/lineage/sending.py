"""Sending own events to any OpenLineage endpoint: a file of JSON lines, or an HTTP address (Marquez, DataHub …).

What is to be sent is in an outbox inside the store: filled from the store and from nothing else, emptied one event at a
time once the endpoint has it. So nothing is lost while an endpoint is down, whoever is killed, and an event may come twice:
receivers know a run's event by its id and type. An event that the endpoint will not have (an answer 4xx) stays in
the outbox with the reason, and the next ones go on.

Only own events are sent; those taken from others are theirs to send. No event holds personal data (see `facets`).
"""

from __future__ import annotations

import fcntl
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import httpx

from ...errors import InputError, Unreachable
from .store import OWN, Store

BATCH = 200
_FIRST_WAIT, _LONGEST_WAIT = 30.0, 6 * 3600.0  # seconds until an event is tried again; doubled each time
_PASSING = frozenset({408, 425, 429})  # 4xx that mean: later


class Refusal(InputError):
    """The endpoint will never have this event."""


class Endpoint(Protocol):
    """Where events go. `send` returns once they are there, all of them."""

    name: str
    batch: int

    def send(self, lines: Sequence[bytes]) -> None:
        """Hand over events, a line each.

        Raises:
            Unreachable: not now. InputError: not at all as things stand. Refusal: not these.
        """


class FileEndpoint:
    """A file of JSON lines that is appended to and synced. A last line that a crash cut off is taken away first."""

    batch = BATCH

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, f"file:{path.resolve()}"

    def send(self, lines: Sequence[bytes]) -> None:
        try:
            with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = _whole(file)
                try:
                    file.truncate(end)
                    file.seek(end)
                    file.write(b"".join(line + b"\n" for line in lines))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise InputError(
                f"{self._path}: {error.strerror or error}",
                remedy="what was not written is still in the outbox",
            ) from error


def _whole(file: Any) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        end = start
    return 0


class HttpEndpoint:
    """An address that takes one event a POST, as OpenLineage's HTTP transport sends it.

    Args:
        url: whole, with its path (Marquez: ``/api/v1/lineage``). Plain http only to this machine.
        token: a bearer token.
        ca: certificates to trust instead of the usual ones.

    Raises:
        InputError: not such an address.
    """

    batch = 1

    def __init__(
        self, url: str, *, token: str | None = None, ca: Path | None = None, timeout: float = 10.0
    ) -> None:
        self.name = _checked(url)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        verify: Any = True if ca is None else _trusting(ca)
        self._client = httpx.Client(headers=headers, timeout=timeout, verify=verify, trust_env=False)

    def send(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            try:
                answer = self._client.post(self.name, content=line)
            except httpx.HTTPError as error:
                raise Unreachable(f"{self.name}: {str(error) or type(error).__name__}") from error
            if answer.is_success:
                continue
            said = f"{self.name} answered {answer.status_code}"
            if 400 <= answer.status_code < 500 and answer.status_code not in _PASSING:
                if answer.status_code in (401, 403, 404, 405):  # of the address, not of the event
                    raise InputError(said, remedy="look at the address and at --token-file")
                raise Refusal(f"{said}: {answer.text[:200]}")
            raise Unreachable(said)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{url!r}: not an address ({error})") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{url!r}: not an http or https address")
    if parts.username or parts.password or parts.fragment:
        raise InputError(
            "an address has no user, password or fragment", remedy="give a token with --token-file"
        )
    if parts.scheme == "http" and not _is_here(host):
        raise InputError(f"{url}: plain http to another machine", remedy="use https")
    return url


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{ca}: no certificates to trust ({error})") from error


@dataclass(frozen=True)
class Sent:
    """How a sending went: events sent now, still waiting, refused for good; and what went wrong last."""

    sent: int
    waiting: int
    refused: int
    error: str = ""


def send(
    store: Store,
    endpoint: Endpoint,
    *,
    retries: int = 3,
    pause: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
    at_once: bool = True,
) -> Sent:
    """Send what the endpoint has not got, oldest first.

    1. Own events that it was never asked to take come into its outbox.
    2. They are sent in order. Where the endpoint is away, it is tried again a few times, waiting twice as long each time;
       then all that is left waits for the next call.
    3. An event it refuses is marked, and stays.

    Args:
        at_once: also what was put off by an earlier call.

    Raises:
        InputError: the endpoint can't be used as it is; nothing is lost.
    """
    with _alone(store, endpoint.name):
        _fill(store, endpoint.name)  # 1.
        sent, error = 0, ""
        while True:  # 2.
            due = _due(store, endpoint.name, endpoint.batch, float("inf") if at_once else now())
            if not due:
                break
            numbers, lines = [n for n, _ in due], [line for _, line in due]
            try:
                error = _persist(endpoint, lines, retries, pause)
            except Refusal as refusal:  # 3.
                _mark(store, endpoint.name, numbers, refusal.message, now(), refused=True)
                continue
            except InputError as failure:
                _mark(store, endpoint.name, numbers, failure.message, now())
                raise
            if error:
                _mark(store, endpoint.name, numbers, error, now())
                break
            _drop(store, endpoint.name, numbers)
            sent += len(numbers)
        waiting, refused = outbox(store, endpoint.name)
        return Sent(sent, waiting, refused, error)


def _persist(endpoint: Endpoint, lines: Sequence[bytes], retries: int, pause: Callable[[float], None]) -> str:
    """Send, again if need be. Returns what went wrong the last time, or nothing."""
    for attempt in range(retries + 1):
        try:
            endpoint.send(lines)
        except Unreachable as error:
            said = error.message
            if attempt < retries:
                pause(0.5 * 2**attempt)
        else:
            return ""
    return said


def outbox(store: Store, endpoint: str) -> tuple[int, int]:
    """How many events wait for an endpoint, and how many it has refused."""
    query = "SELECT coalesce(sum(refused = 0), 0), coalesce(sum(refused), 0) FROM outbox WHERE endpoint = ?"
    with store.writing() as db:
        waiting, refused = db.execute(query, (endpoint,)).fetchone()
    return int(waiting), int(refused)


def endpoints(store: Store) -> list[tuple[str, int, int, str]]:
    """Every endpoint that was ever sent to: its name, events waiting, refused, and the last error."""
    found = []
    with store.writing() as db:
        for (name,) in db.execute("SELECT name FROM endpoint ORDER BY name").fetchall():
            row = db.execute(
                "SELECT coalesce(sum(refused = 0), 0), coalesce(sum(refused), 0), "
                "coalesce((SELECT error FROM outbox WHERE endpoint = ?1 AND error <> '' ORDER BY event LIMIT 1), '') "
                "FROM outbox WHERE endpoint = ?1",
                (name,),
            ).fetchone()
            found.append((str(name), int(row[0]), int(row[1]), str(row[2])))
    return found


def _fill(store: Store, endpoint: str) -> None:
    with store.writing() as db:
        row = db.execute("SELECT upto FROM endpoint WHERE name = ?", (endpoint,)).fetchone()
        since = -1 if row is None else row[0]
        (until,) = db.execute("SELECT coalesce(max(seq), -1) FROM event").fetchone()
        db.execute(
            "INSERT INTO outbox SELECT ?, seq, 0, 0, '', 0 FROM event WHERE seq > ? AND seq <= ? AND origin = ?",
            (endpoint, since, until, OWN),
        )
        db.execute("REPLACE INTO endpoint VALUES (?, ?)", (endpoint, until))


def _due(store: Store, endpoint: str, most: int, now: float) -> list[tuple[int, bytes]]:
    query = (
        "SELECT seq, body FROM outbox JOIN event ON seq = event "
        "WHERE endpoint = ? AND refused = 0 AND due <= ? ORDER BY seq LIMIT ?"
    )
    with store.writing() as db:
        return [(seq, body.encode()) for seq, body in db.execute(query, (endpoint, now, most))]


def _mark(
    store: Store, endpoint: str, numbers: Sequence[int], error: str, now: float, *, refused: bool = False
) -> None:
    """Note what went wrong with events, and when they may be tried again."""
    with store.writing() as db:
        for number in numbers:
            query = "SELECT tries FROM outbox WHERE endpoint = ? AND event = ?"
            (tries,) = db.execute(query, (endpoint, number)).fetchone()
            due = now + min(_FIRST_WAIT * 2 ** min(tries, 20), _LONGEST_WAIT)
            db.execute(
                "UPDATE outbox SET tries = ?, due = ?, error = ?, refused = ? WHERE endpoint = ? AND event = ?",
                (tries + 1, due, error[:500], int(refused), endpoint, number),
            )


def _drop(store: Store, endpoint: str, numbers: Sequence[int]) -> None:
    with store.writing() as db:
        db.executemany(
            "DELETE FROM outbox WHERE endpoint = ? AND event = ?", [(endpoint, n) for n in numbers]
        )


@contextmanager
def _alone(store: Store, endpoint: str) -> Iterator[None]:
    """One process at a time sends from a store: two would send everything twice."""
    path = store.path.with_name(f"{store.path.name}.sending")
    try:
        lock = path.open("w")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{endpoint}: another process is sending from {store.path}") from error
        yield

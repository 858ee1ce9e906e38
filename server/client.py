"""The server's API, for the command line, the demo and whoever writes Python.

Errors come back as what they were at the server (`InputError`, `Refused` with its code,
`VerificationError`, `Unreachable`), with its sentence and its remedy.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from ..compliance.auditlog.log import Entry, commitment_in
from ..compliance.auditlog.payloads import Opening, verify_opening
from ..documents import Envelope, canonical, parse_json, unb64
from ..errors import FoedusError, InputError, Refused, Unreachable, VerificationError

_TERMINAL = ("finished", "failed", "stopped")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_MAX_RETRIES = 5  # of following, without an event in between


@dataclass(frozen=True)
class Event:
    """One event of a run; `kind` is ``finished``, ``failed`` or ``stopped`` for the last."""

    id: int
    kind: str
    time: str
    data: Mapping[str, Any]

    @property
    def last(self) -> bool:
        return self.kind in _TERMINAL


class ApiClient:
    """One person's connection to one server.

    Args:
        base_url: ``https://host:port``; plain http is taken on loopback only.
        token: a bearer token.
        ca: PEM file of the authority to trust; the system's if None.

    Raises:
        InputError: an address that would send the token in the clear, or no such CA file.
    """

    def __init__(self, base_url: str, token: str, ca: Path | None = None, *, timeout: float = 60.0) -> None:
        url = urlsplit(base_url)
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
            raise InputError(
                f"{base_url}: not an https address", remedy="a token goes over TLS; http is for 127.0.0.1"
            )
        if not token.isascii() or not token.isprintable():
            raise InputError("the token has characters that no token has")
        try:
            trusted = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"{ca}: not a CA file in PEM") from error
        self._url, self._timeout = base_url, timeout
        headers = {"authorization": f"Bearer {token}"}
        # trust_env: a proxy from the environment must not see the token.
        self._http = httpx.Client(
            base_url=base_url, headers=headers, verify=trusted, timeout=timeout, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    # ── studies ──────────────────────────────────────────────────────────────────────────────────

    def treaty(self) -> Envelope:
        """The server's treaty, not verified."""
        return Envelope.from_json(self._json("GET", "/v1/treaty")["envelope"])

    def submit(self, study: Envelope) -> dict[str, Any]:
        """Submit a signed study; its summary."""
        return self._json("POST", "/v1/studies", study.dumps())

    def studies(self) -> list[dict[str, Any]]:
        """Every study's summary, newest first."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/studies")["studies"]
        return found

    def study(self, digest: str) -> dict[str, Any]:
        """One study: summary, ``price``, ``envelope``, ``approvals``, ``runs``."""
        return self._json("GET", f"/v1/studies/{_part(digest)}")

    def approve(self, digest: str, decision: Envelope) -> dict[str, Any]:
        """File a signed approval or rejection; the study's summary after it."""
        return self._json("POST", f"/v1/studies/{_part(digest)}/approvals", decision.dumps())

    # ── runs ─────────────────────────────────────────────────────────────────────────────────────

    def start(self, digest: str) -> dict[str, Any]:
        """Run an approved study; the run, with its ``id``."""
        return self._json("POST", f"/v1/studies/{_part(digest)}/run")

    def run(self, run: str) -> dict[str, Any]:
        """A run's ``status`` and times."""
        return self._json("GET", f"/v1/runs/{_part(run)}")

    def stop(self, run: str) -> dict[str, Any]:
        """Stop an active run."""
        return self._json("POST", f"/v1/runs/{_part(run)}/stop")

    def follow(self, run: str, *, after: int = 0) -> Iterator[Event]:
        """The events of a run with an id beyond `after`, as they come, to the last.

        A connection that breaks is opened again where it broke.

        Raises:
            Unreachable: five times in a row nothing came.
        """
        failures = 0
        while True:
            try:
                for event in self._events(run, after):
                    after, failures = event.id, 0
                    yield event
                    if event.last:
                        return
                if self.run(run)["status"] != "running":
                    # Between our last event and that answer the end may have been noted: read once more.
                    yield from self._events(run, after)
                    return
                failures += 1  # ended early, without an error: a proxy, or a server that shuts down
                problem = Unreachable(f"{self._url} ends the stream of run {run} early")
            except Unreachable as error:
                failures, problem = failures + 1, error
            if failures >= _MAX_RETRIES:
                raise problem
            time.sleep(0.2 * 2**failures)

    def _events(self, run: str, after: int) -> Iterator[Event]:
        path = f"/v1/runs/{_part(run)}/events"
        # The server sends a heartbeat every 10 s: 30 s of silence is a dead connection.
        timeout = httpx.Timeout(self._timeout, read=30.0)
        try:
            with self._http.stream(
                "GET", path, headers={"last-event-id": str(after)}, timeout=timeout
            ) as answer:
                if answer.status_code != HTTPStatus.OK:
                    answer.read()
                    self._check(answer)
                    return
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        found = parse_json(line.removeprefix("data: "))
                        yield Event(found["id"], found["kind"], found["time"], found["data"])
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    # ── results ──────────────────────────────────────────────────────────────────────────────────

    def results(self, digest: str) -> list[dict[str, Any]]:
        """The files a study released: ``name``, ``kind``, ``sha256``, ``size``…"""
        found: list[dict[str, Any]] = self._json("GET", f"/v1/studies/{_part(digest)}/results")["results"]
        return found

    def download(self, digest: str, name: str) -> bytes:
        """One released file."""
        return self._send("GET", f"/v1/studies/{_part(digest)}/results/{_part(name)}").content

    def save_result(self, digest: str, listed: Mapping[str, Any], directory: Path) -> Path:
        """Fetch a file of `results` into `directory`, which is made; an existing file is not overwritten.

        Raises:
            VerificationError: its name is no plain file name, or its bytes are not those listed.
        """
        name, wanted = str(listed["name"]), str(listed["sha256"])
        if not _FILE_NAME.fullmatch(name):  # a server must not choose where a file goes
            raise VerificationError(f"{name!r} is not the name of a file")
        content = self.download(digest, name)
        if hashlib.sha256(content).hexdigest() != wanted:
            raise VerificationError(f"{name}: the bytes received are not those that were listed")
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        return path

    # ── the audit log ────────────────────────────────────────────────────────────────────────────

    def checkpoint(self) -> str:
        """The log's signed head of now, a note to open with `auditlog.checkpoint.open_checkpoint`."""
        return self._send("GET", "/v1/log/checkpoint").text

    def cosigned_checkpoint(self) -> str | None:
        """The newest head that a quorum of the nodes has cosigned, with their lines; None if there is none yet."""
        return self._send("GET", "/v1/log/checkpoint/cosigned").text or None

    def log_entries(self, start: int = 0, end: int | None = None) -> Iterator[Entry]:
        """Entries [start, end), to the log's size of now by default; read in pages."""
        while end is None or start < end:
            query = f"?start={start}" if end is None else f"?start={start}&end={min(end, start + 1000)}"
            page = self._json("GET", f"/v1/log/entries{query}")
            end = page["size"] if end is None else end
            for found in page["entries"]:
                yield Entry(found["index"], found["body"].encode())
            start = page["end"]

    def payload(self, entry: Entry) -> dict[str, Any] | None:
        """What an entry has sealed, checked against its commitment; None if it was shredded.

        Raises:
            VerificationError: the server shows something else.
        """
        commitment = commitment_in(entry.record)
        if commitment is None:
            raise InputError(f"entry {entry.index} has no sealed payload")
        found = self._json("GET", f"/v1/log/payload?index={entry.index}")
        try:
            if found["shredded"]:
                return None
            opening = Opening(unb64(found["salt"], what="salt"), dict(found["payload"]))
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise VerificationError("the server's answer is not what an entry has sealed") from error
        verify_opening(commitment, opening)
        return opening.payload

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """That the log of `old` entries is a prefix of that of `new`."""
        return _hashes(self._json("GET", f"/v1/log/proof/consistency?old={old}&new={new}"))

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """That entry `index` is in the log of `size` entries."""
        return _hashes(self._json("GET", f"/v1/log/proof/inclusion?index={index}&size={size}"))

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────

    def create_token(self, name: str, role: str, days: int = 90) -> dict[str, Any]:
        """A new token: its ``prefix`` and, this once, its ``token``."""
        return self._json("POST", "/v1/tokens", canonical({"name": name, "role": role, "days": days}))

    def tokens(self) -> list[dict[str, Any]]:
        """Every token there was, without secrets."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/tokens")["tokens"]
        return found

    def revoke_token(self, prefix: str) -> None:
        """Revoke a token."""
        self._send("DELETE", f"/v1/tokens/{_part(prefix)}")

    # ── the wire ─────────────────────────────────────────────────────────────────────────────────

    def _json(self, method: str, path: str, content: bytes | None = None) -> dict[str, Any]:
        found = parse_json(self._send(method, path, content).content)
        if not isinstance(found, dict):
            raise VerificationError(f"{self._url}: {method} {path} answers with no object")
        return found

    def _send(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        headers = {"content-type": "application/json"} if content is not None else None
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._check(answer)
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(f"{self._url}: {error or type(error).__name__}", remedy="is the server running?")

    def _check(self, answer: httpx.Response) -> None:
        """Raise what the server raised, if it did."""
        if answer.is_success:
            return
        try:
            problem = parse_json(answer.content)["error"]
            code, message, remedy = (str(problem[key]) for key in ("code", "message", "remedy"))
        except (InputError, KeyError, TypeError):
            raise Unreachable(
                f"{self._url} answers {answer.status_code}, and not as a foedus server would"
            ) from None
        raise _ours(answer.status_code, code, message, remedy)


def _ours(status: int, code: str, message: str, remedy: str) -> FoedusError:
    if status in (401, 403, 409):
        return Refused(code, message, remedy=remedy)
    if status == HTTPStatus.BAD_REQUEST:
        return VerificationError(message, remedy=remedy)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return Unreachable(message, remedy=remedy)
    if 400 <= status < 500:
        return InputError(message, remedy=remedy)
    return FoedusError(message, remedy=remedy)


def _hashes(answer: dict[str, Any]) -> list[bytes]:
    return [unb64(text, length=32, what="a proof's hash") for text in answer["proof"]]


def _part(text: str) -> str:
    """One segment of a path, whatever `text` is."""
    return quote(text, safe="")

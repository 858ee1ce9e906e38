"""One-time codes: who can read what is sent to a customer is the customer (NIST SP 800-63B, section 3.1.3, out of band).

All in memory: a restart forgets every code, and nobody else has a copy. A code has 8 digits from the operating system, is kept
as a keyed hash, belongs to the browser that asked, lasts ten minutes, takes five attempts and works once. Whether
somebody is a customer makes no difference here: a code is made all the same, and goes nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import Refused

SECONDS = 600
ATTEMPTS = 5
MOST = 10_000
"""Codes that wait at a time; the oldest give way."""
_LIMITS = {"subject": (3, 900.0), "address": (20, 3600.0), "wrong": (30, 3600.0)}
"""So many within so many seconds: codes for a subject, codes for an address, wrong codes from an address."""


@dataclass
class _Waiting:
    subject: str
    mac: bytes
    until: float
    left: int = ATTEMPTS


class Codes:
    """The codes of one portal; threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._key, self._lock = clock, secrets.token_bytes(32), threading.Lock()
        self._waiting: dict[bytes, _Waiting] = {}
        self._seen: dict[tuple[str, str], deque[float]] = {}

    def issue(self, subject: str, address: str) -> tuple[str, str]:
        """A fresh code, and the ticket of the browser that asked for it.

        Raises:
            Refused: ``TOO_MANY``.
        """
        with self._lock:
            self._count("address", address)
            self._count("subject", subject)
            code, ticket = f"{secrets.randbelow(10**8):08d}", secrets.token_urlsafe(32)
            while len(self._waiting) >= MOST:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[self._mac(ticket)] = _Waiting(
                subject, self._mac(ticket + code), self._clock() + SECONDS
            )
        return code, ticket

    def check(self, ticket: str, code: str, address: str) -> str | None:
        """The subject, if the code is the one that was sent for this ticket; it works once.

        Raises:
            Refused: ``TOO_MANY`` wrong ones from this address.
        """
        with self._lock:
            self._count("wrong", address, add=False)
            name = self._mac(ticket)
            waiting = self._waiting.get(name)
            right = hmac.compare_digest(waiting.mac if waiting else b"", self._mac(ticket + code.strip()))
            if waiting is None or waiting.until < self._clock():
                self._waiting.pop(name, None)
                self._count("wrong", address)
                return None
            if right:
                del self._waiting[name]
                return waiting.subject
            waiting.left -= 1
            if not waiting.left:
                del self._waiting[name]
            self._count("wrong", address)
            return None

    def _mac(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode(errors="replace"), hashlib.sha256)

    def _count(self, what: str, who: str, *, add: bool = True) -> None:
        most, seconds = _LIMITS[what]
        now = self._clock()
        times = self._seen.setdefault((what, who), deque())
        while times and times[0] <= now - seconds:
            times.popleft()
        if len(times) >= most:
            raise Refused("TOO_MANY", "too many attempts", remedy="try again later")
        if add:
            times.append(now)
        if len(self._seen) > 10 * MOST:
            for key in [k for k, found in self._seen.items() if not found or found[-1] <= now - 3600]:
                del self._seen[key]

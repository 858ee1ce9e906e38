"""Who has signed in: a random token in a cookie, what it stands for in this process' memory, and nothing on disk."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

IDLE = 15 * 60.0
LONGEST = 2 * 3600.0
MOST = 10_000


@dataclass
class Session:
    """`csrf` is asked back with every form."""

    subject: str
    began: float
    last: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class Sessions:
    """The sessions of one portal; they end after 15 idle minutes, after two hours, or when somebody signs out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._live: dict[bytes, Session] = {}

    def begin(self, subject: str) -> tuple[str, Session]:
        """A session under a token that was never used before."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            while len(self._live) >= MOST:
                del self._live[next(iter(self._live))]
            found = self._live[_name(token)] = Session(subject, now, now)
        return token, found

    def find(self, token: str) -> Session | None:
        """The live session of a token; it lives on."""
        now = self._clock()
        with self._lock:
            found = self._live.get(_name(token))
            if found is None:
                return None
            if now - found.last > IDLE or now - found.began > LONGEST:
                del self._live[_name(token)]
                return None
            found.last = now
            return found

    def end(self, token: str) -> None:
        with self._lock:
            self._live.pop(_name(token), None)

    def end_all(self, subject: str) -> None:
        """Every session of a subject."""
        with self._lock:
            for name in [n for n, s in self._live.items() if s.subject == subject]:
                del self._live[name]


def _name(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()

"""Group commit: what callers hand in at the same time goes to disk together, under one fsync.

The first caller commits its own item; whatever others hand in meanwhile is the next batch, which the first of
*them* commits. Where a commit is slow, it first waits an eighth of one for those who were just served: they hand in
again, and else would go by turns with the others, in batches half as large. A lone caller pays nothing for it. No thread is kept for the writing: it would have to be started,
closed and made again after a fork, and a lone caller would wait for it.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ...errors import FoedusError, InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
_SLOW = 0.004  # s; a faster commit is over before those it served are awake
_PAUSE = 0.0002  # s


class _Turn(Generic[Item, Result]):
    """An item on its way, and what its caller sleeps on."""

    __slots__ = ("asleep", "error", "item", "leads", "result")

    def __init__(self, item: Item) -> None:
        self.item, self.leads = item, False
        self.result: Result | None = None
        self.error: FoedusError | None = None
        self.asleep = threading.Lock()
        self.asleep.acquire()  # released by whoever ends the wait


class GroupCommit(Generic[Item, Result]):
    """Hands items to `commit` in batches, in the order in which they came.

    Args:
        commit: makes a batch durable, all or nothing; returns a result for each item.
        most: items in a batch; a batch is one wait for everybody in it.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result]], *, most: int = 256) -> None:
        self._commit, self._most = commit, most
        self._mutex = threading.Lock()
        self._waiting: list[_Turn[Item, Result]] = []
        self._busy = False
        self._crowd, self._patience = 0, 0.0  # callers seen at once, and how long to wait for them, s

    def __call__(self, item: Item) -> Result:
        """Returns once the item is on disk.

        Raises:
            FoedusError: what `commit` raised for the batch; nothing of it was written.
        """
        turn = _Turn[Item, Result](item)
        with self._mutex:
            self._waiting.append(turn)
            turn.leads = not self._busy
            self._busy = True
        if not turn.leads:
            turn.asleep.acquire()
        if turn.leads:
            self._lead()
        if turn.error is not None:
            raise turn.error
        return turn.result  # type: ignore[return-value]

    def _lead(self) -> None:
        """Commit what is waiting, oneself first; then wake the others, one of the next batch to lead it."""
        until = time.monotonic() + self._patience
        while len(self._waiting) < min(self._crowd, self._most) and time.monotonic() < until:
            time.sleep(_PAUSE)
        start = time.monotonic()
        with self._mutex:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        failure: FoedusError | None = InputError(
            "the append was interrupted: look into the log whether the entry is in it"
        )
        try:
            for turn, result in zip(batch, self._commit([turn.item for turn in batch]), strict=True):
                turn.result = result
            failure = None
        except FoedusError as error:
            failure = error
        finally:
            took = time.monotonic() - start
            with self._mutex:
                self._crowd = len(batch) + len(self._waiting)
                self._patience = took / 8 if took > _SLOW else 0.0
                self._busy = bool(self._waiting)
                heir = self._waiting[0] if self._waiting else None
            if heir is not None:  # before the others: the disk should not idle while they wake up
                heir.leads = True
                heir.asleep.release()
            for turn in batch:
                if failure is not None:  # a traceback each, and the same cause
                    turn.error = copy.copy(failure)
                    turn.error.__cause__ = failure.__cause__
                if not turn.leads:
                    turn.asleep.release()

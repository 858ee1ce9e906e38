"""What a log needs of the place that its entries and tree lie in: `sqlite`, a file; `postgres`, a database.

A store adds rows and never changes one. It knows nothing of hashes: that a tree is right is `log`'s business, so both
give the same roots and proofs, and one test suite runs on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ...errors import VerificationError
from .merkle import GetNode
from .payloads import Rows

Place = tuple[int, int]
"""``(level, index)`` of a node of the tree."""


class Grown(NamedTuple):
    """What one commit adds: ``(index, body)`` of entries and ``(level, index, hash)`` of the nodes they complete."""

    entries: Sequence[tuple[int, bytes]]
    nodes: Sequence[tuple[int, int, bytes]]


class Held(NamedTuple):
    """How much a store holds: the number after its last entry, and how many entries and nodes there are."""

    size: int
    entries: int
    nodes: int


class Make(Protocol):
    """What to add to a log of `size` entries, of which `last` is the last one's body (empty: there is none)."""

    def __call__(self, size: int, last: bytes, get_node: GetNode) -> Grown: ...


class Store(Protocol):
    """Threads and processes may share one; every method raises InputError where the place can't be reached."""

    @property
    def name(self) -> str:
        """What the place is called in messages; no password is in it."""

    @property
    def payloads(self) -> Rows:
        """Where sealed payloads lie: beside the entries."""

    def size(self) -> int:
        """The number of entries."""

    def append(self, make: Make) -> None:
        """Add what `make` gives for the log of now, in one transaction that no other writer is in; on disk on return.

        Raises:
            VerificationError: a row that is there already, or leaves a gap.
        """

    def nodes(self, wanted: Iterable[Place]) -> dict[Place, bytes]:
        """The hashes of those of them that are there."""

    def bodies(self, low: int, high: int) -> list[tuple[int, bytes]]:
        """``(index, body)`` of entries [low, high), in order; those that are there."""

    def completed(self, low: int, high: int) -> dict[Place, bytes]:
        """The nodes whose last leaf is one of [low, high)."""

    def examine(self) -> Held:
        """Look at the place itself, not at what is kept of it: in order, and of the right form?

        Raises:
            VerificationError: damaged, or its tables or triggers were changed.
        """


def missing(name: str, place: Place) -> VerificationError:
    """A node that should be there is not."""
    return VerificationError(f"{name}: tree node {place[0]}/{place[1]} is missing")


def damaged(name: str, problem: object) -> VerificationError:
    return VerificationError(f"{name}: damaged: {problem}", remedy="restore it from a backup")

"""What the secure sum knows of witnesses: one head a trip for all silos, and what they cosign of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Witnesses(Protocol):
    """Collects the cosignatures of heads of the log (`server.cosigned`)."""

    def one_head(self) -> AbstractContextManager[object]:
        """While it is open every silo is shown the same head: those of different heads add up to no quorum."""

    def take(self, silo: str, size: int, line: str) -> None:
        """A silo's cosignature of the head of `size` entries.

        Raises:
            FoedusError: it does not hold.
        """

    def shown(self) -> str | None:
        """The newest head that a quorum has cosigned, with their lines."""

    def reached(self, size: int) -> bool:
        """Whether that is the head of `size` entries."""

    def keep(self) -> None:
        """Put that head on disk."""


class Nobody:
    """No witnesses: a secure sum on its own, without a log."""

    def one_head(self) -> AbstractContextManager[object]:
        return nullcontext()

    def take(self, silo: str, size: int, line: str) -> None:
        pass

    def shown(self) -> str | None:
        return None

    def reached(self, size: int) -> bool:
        return False

    def keep(self) -> None:
        pass

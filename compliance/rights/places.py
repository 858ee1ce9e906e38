"""The one map of where personal data is: access, correction, erasure, retention and holds all read it.

What access shows, erasure removes, because both walk the same list. A place that names nobody says so and why; a
place that must be kept says for which duty, and what becomes of the name in it. Whatever is not in the map is
refused, never reported as done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...errors import InputError
from ..consent.notices import Language


class Errand(StrEnum):
    """What became of one place in an erasure."""

    PLANNED = "planned"  # found, and not touched yet
    ERASED = "erased"  # nothing of the subject is left
    PSEUDONYMISED = "pseudonymised"  # kept by duty, under a keyed pseudonym
    ORDERED = "ordered"  # the silo's people must do it; until they have, a gate keeps the data from use
    EMPTY = "empty"  # nothing was there


@dataclass(frozen=True)
class Outcome:
    """What became of a place: how many records, and in one sentence why if they were not simply erased."""

    errand: Errand
    count: int
    why: str = ""


Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """A text in both languages."""

    en: str
    zh: str

    def in_(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class Choice:
    """What a subject can say about one purpose: state is ``given``, ``withdrawn``, ``expired`` or ``never asked``."""

    purpose: str
    state: str
    categories: tuple[str, ...] = ()
    notice: str | None = None
    since: str | None = None
    until: str | None = None


def _nothing(_: str) -> list[Row]:
    return []


@dataclass(frozen=True)
class Place:
    """Where personal data is, and how a right is done there.

    Args:
        name: unique, e.g. ``orders``, ``consents``.
        files: of the node's directory that belong to it; ``*`` matches as in a shell.
        what: what it holds. why: its purpose. category: fideslang keys, or empty where it names nobody.
        column: what holds the subject.
        clock: ``personal`` (erased after the treaty's days at most), ``record`` (kept three years at least), or
            ``none`` (it names nobody).
        kept: why a pseudonymised rest stays; empty if nothing stays.
        read: subject -> their records, portable (JSON).
        erase: removes them; called again after a crash, it does the rest.
        correct: subject, field, value, and which value it replaces -> how many records were corrected. None: a record
            here can't be corrected, and `uncorrectable` says why and what to do instead.
        held: a legal hold keeps it from purge and erasure.
    """

    name: str
    files: tuple[str, ...]
    what: Told
    why: Told
    category: tuple[str, ...]
    column: str
    clock: str
    read: Callable[[str], list[Row]] = field(default=_nothing, repr=False)
    erase: Callable[[str], Outcome] | None = field(default=None, repr=False)
    correct: Callable[[str, str, str, str | None], int] | None = field(default=None, repr=False)
    uncorrectable: str = "it is a record of what was said or done; say it anew, and a new record is made"
    kept: str = ""
    held: bool = True

    @property
    def personal(self) -> bool:
        """Whether it names anybody."""
        return self.erase is not None


@dataclass(frozen=True)
class DataMap:
    """All places of one silo."""

    places: tuple[Place, ...]

    def __post_init__(self) -> None:
        names = [place.name for place in self.places]
        if len(set(names)) != len(names):
            raise InputError("two places of the data map have one name")

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def place(self, name: str) -> Place:
        """The place of this name.

        Raises:
            InputError: there is none: nothing is reported of a place that nobody declared.
        """
        for place in self.places:
            if place.name == name and place.personal:
                return place
        raise InputError(
            f"{name!r} is no place of personal data here",
            remedy=f"the map has {', '.join(p.name for p in self.places if p.personal)}",
        )

"""The tables of ``server.db``. Rows are written once; only runs, tokens and node heads change a column.

A study's status is not a column: it follows from its approvals and runs, and a copy could disagree.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

# The kinds of run event after which no other can come; each is also the run's status from then on.
TERMINAL = ("finished", "failed", "stopped")


def now() -> str:
    """The time, as RFC 3339 in UTC to the millisecond: text sorts as time does."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(MappedAsDataclass, DeclarativeBase):
    """Rows are plain dataclasses; they leave the store detached and are only read."""


class TokenRow(Base):
    """A bearer token, known by its public prefix; of its secret only the SHA-256 is kept."""

    __tablename__ = "tokens"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True, repr=False)
    name: Mapped[str]
    role: Mapped[str]
    expires: Mapped[str]
    created: Mapped[str] = mapped_column(default_factory=now)
    revoked: Mapped[str | None] = mapped_column(default=None)


class StudyRow(Base):
    """A submitted study: its signed envelope, word for word."""

    __tablename__ = "studies"

    digest: Mapped[str] = mapped_column(primary_key=True)
    envelope: Mapped[str] = mapped_column(repr=False)
    author: Mapped[str]
    title: Mapped[str]
    submitted_by: Mapped[str]
    submitted_at: Mapped[str] = mapped_column(default_factory=now)


class ApprovalRow(Base):
    """One approver's signed decision on one study; the latest of an approver is the one in force."""

    __tablename__ = "approvals"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    study: Mapped[str] = mapped_column(ForeignKey("studies.digest"), index=True)
    approver: Mapped[str]
    level: Mapped[str]
    party: Mapped[str | None]
    decision: Mapped[str]
    expires: Mapped[str]
    envelope: Mapped[str] = mapped_column(repr=False)
    received: Mapped[str] = mapped_column(default_factory=now)


class RunRow(Base):
    """A run of a study; its id is Flower's, an unsigned 64-bit number, hence text."""

    __tablename__ = "runs"
    # At most one active run in all, whoever inserts it: the database itself says no to a second.
    __table_args__ = (
        Index("one_active_run", "status", unique=True, sqlite_where=text("status = 'running'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.digest"), index=True)
    status: Mapped[str] = mapped_column(default="running")
    started: Mapped[str] = mapped_column(default_factory=now)
    finished: Mapped[str | None] = mapped_column(default=None)


class AttemptRow(Base):
    """A later attempt at a run, after the process that carried it died: another run to Flower.

    The first attempt has no row: its id is the run's.
    """

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    flower: Mapped[str] = mapped_column(unique=True)
    started: Mapped[str] = mapped_column(default_factory=now)


class RunEvent(Base):
    """One thing that happened in a run; ids only grow, so a follower resumes after the last it saw."""

    __tablename__ = "run_events"
    __table_args__ = (Index("events_of_a_run", "run", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    kind: Mapped[str]
    data: Mapped[str]
    time: Mapped[str] = mapped_column(default_factory=now)


class ReleaseRow(Base):
    """A file a study released; `path` is relative to the server's `evidence` directory."""

    __tablename__ = "releases"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.digest"), index=True)
    kind: Mapped[str]
    path: Mapped[str]
    sha256: Mapped[str]
    size: Mapped[int]
    released: Mapped[str] = mapped_column(default_factory=now)


class NodeHead(Base):
    """The audit-log size a party's node last acknowledged."""

    __tablename__ = "node_heads"

    party: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    time: Mapped[str]

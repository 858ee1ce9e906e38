"""A log in a PostgreSQL database: the same entries, tree and duty as in a file.

``postgresql://app@host/database#schema``, with libpq's parameters; the schema is ``foedus_log`` by default, and holds one
log. Whoever owns the database makes it once, with the statements of `postgres_schema`::

    foedus server log-sql --role foedus_app > log.sql
    psql --dbname foedus --file log.sql

- The role that writes owns nothing and may SELECT and INSERT, nothing else; a role that may more is refused. Triggers,
  enabled ALWAYS, refuse UPDATE, DELETE and TRUNCATE of the owner's, too, as well as rows out of order. That stops accidents,
  not the owner or a superuser: evidence against them is what others hold (checkpoints).
- One writer at a time: each commit holds an advisory lock, under which size and right edge are read anew.
- ``synchronous_commit`` is on for our sessions, and a server with ``fsync`` or ``full_page_writes`` off is refused.
- The URL may hold a password: keep it in a file of mode 0600. No message shows it.

psycopg is the extra ``postgres``.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...errors import FoedusError, InputError, Unreachable, VerificationError
from .payloads import Sealed
from .postgres_schema import (
    BODIES,
    COLUMNS,
    DEFAULT_SCHEMA,
    FUNCTIONS,
    KEYS,
    NAME,
    PRIMARY,
    ROLE,
    TABLES,
    TRIGGERS,
    triggers,
)
from .store import Held, Make, Place, damaged, missing

if TYPE_CHECKING:
    import psycopg

LOCK_SECONDS = 30
CONNECT_SECONDS = 10
_IDLE_SECONDS = 0.2  # after which a session is asked whether it is there


def is_database(place: object) -> bool:
    """Whether this names a database, not a file."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


class _Link:
    """One open session, used by one thread at a time, made anew when it is lost, and after a fork."""

    def __init__(self, url: str, name: str, schema: str) -> None:
        self._url, self._name, self._schema = url, name, schema
        self._db: psycopg.Connection[Any] | None = None
        self._lock, self._pid, self._used = threading.Lock(), os.getpid(), 0.0

    @contextmanager
    def __call__(self) -> Iterator[psycopg.Connection[Any]]:
        """The session, in autocommit. If the block raises it is closed, which rolls back."""
        import psycopg

        if self._pid != os.getpid():
            _of_a_parent.append(self._db)  # not closed: that would end the parent's session
            self._db, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            try:
                yield self._current()
                self._used = time.monotonic()
            except psycopg.Error as error:
                self.close()
                raise self._ours(error) from error
            except BaseException:
                self.close()
                raise

    def _current(self) -> psycopg.Connection[Any]:
        """The session kept, if it still answers: the server may have been started anew meanwhile."""
        import psycopg

        if self._db is not None and time.monotonic() - self._used > _IDLE_SECONDS:
            try:
                self._db.execute("SELECT 1")
            except psycopg.Error:
                self.close()
        if self._db is None or self._db.closed:
            self._db = self._open()
        return self._db

    def _open(self) -> psycopg.Connection[Any]:
        import psycopg

        db = psycopg.connect(
            self._url, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="foedus log"
        )
        db.execute(f"SET synchronous_commit = on; SET lock_timeout = '{LOCK_SECONDS}s'; SET search_path = ''")
        db.execute("SET idle_in_transaction_session_timeout = '60s'")
        for setting in ("fsync", "full_page_writes"):
            row = db.execute(f"SHOW {setting}").fetchone()
            if row != ("on",):
                db.close()
                raise InputError(
                    f"{self._name}: the database server runs with {setting} off: a power cut would take entries that "
                    "were acknowledged",
                    remedy=f"set {setting} = on in its configuration",
                )
        return db

    def _ours(self, error: psycopg.Error) -> FoedusError:
        """What PostgreSQL says, in our words."""
        import psycopg

        told = (error.diag.message_primary or str(error)).strip().split("\n")[0]
        match error:
            case psycopg.errors.LockNotAvailable():
                return InputError(
                    f"{self._name}: another session has held the log's lock for {LOCK_SECONDS} s",
                    remedy="see who it is in pg_stat_activity and pg_locks (locktype advisory), and end it if it hangs",
                )
            case psycopg.errors.InsufficientPrivilege():
                return InputError(
                    f"{self._name}: the role may not do this: {told}",
                    remedy=f"connect as the role that schema {self._schema} was made for (`foedus server log-sql --role`)",
                )
            case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName():
                return InputError(f"{self._name}: no audit log is there: {told}", remedy=_MAKE)
            case psycopg.errors.DiskFull():
                return InputError(
                    f"{self._name}: the database's disk is full; nothing was written",
                    remedy="free some space on the database server, and try again",
                )
            case psycopg.errors.IntegrityError():
                return VerificationError(
                    f"{self._name}: damaged or tampered with ({told})", remedy="restore it from a backup"
                )
            case psycopg.errors.DataCorrupted() | psycopg.errors.IndexCorrupted():
                return damaged(self._name, told)
            case psycopg.OperationalError():
                return Unreachable(
                    f"{self._name}: the database can't be reached, or the session was lost: {told}",
                    remedy="see that the server runs and that the URL and the role's password are right; if an entry was "
                    "being appended, look into the log whether it is in it",
                )
        return InputError(f"{self._name}: {told}")

    def close(self) -> None:
        if self._db is not None:
            with suppress(Exception):
                self._db.close()
            self._db = None

    def __del__(self) -> None:
        if self._pid == os.getpid():
            self.close()
        elif self._db is not None:
            _of_a_parent.append(self._db)


_of_a_parent: list[Any] = []
_MAKE = "have its owner run what `foedus server log-sql --role ROLE` prints"


class PostgresStore:
    """`Store` in a database.

    Args:
        url: see above.
        create: whether an empty schema may become the log of `origin`.

    Raises:
        InputError: no psycopg; a URL that isn't one; no log there, or of another origin; a role that may more than read
            and insert. Unreachable: no answer. VerificationError: its tables or triggers were changed.
    """

    def __init__(self, url: str, origin: str, *, create: bool) -> None:
        base, _, schema = url.partition("#")
        self._schema, self._statements = schema or DEFAULT_SCHEMA, dict[str, Any]()
        if not is_database(url) or not NAME.fullmatch(self._schema):
            raise InputError(
                "the log's database is no postgresql://ROLE@HOST/DATABASE, with #SCHEMA in lower-case letters, digits "
                "and underscores if it is another than foedus_log"
            )
        self.name = _named(base, self._schema)
        self._lock_key = int.from_bytes(
            hashlib.sha256(f"foedus {self._schema}".encode()).digest()[:8], "big", signed=True
        )
        self._reading, self._writing = (_Link(base, self.name, self._schema) for _ in range(2))
        self.payloads = _PayloadRows(self)
        with self._reading() as db:
            self._check_form(db)
            self._check_role(db)
            found = db.execute(self._sql("SELECT origin FROM {}.log")).fetchone()
        if found is None and create:
            with self._writing() as db, db.transaction():
                self._take_lock(db)
                db.execute(
                    self._sql("INSERT INTO {0}.log SELECT %s WHERE NOT EXISTS (SELECT 1 FROM {0}.log)"),
                    (origin,),
                )
                found = db.execute(self._sql("SELECT origin FROM {}.log")).fetchone()
        if found is None:
            raise InputError(f"{self.name}: no such audit log: the schema is empty")
        if found != (origin,):
            raise InputError(f"{self.name}: the log of {found[0]}, not of {origin}")

    def _sql(self, text: str) -> Any:
        """A statement of ours with the schema's name put in for ``{}`` or ``{0}``."""
        if text not in self._statements:
            from psycopg import sql

            name = sql.Identifier(self._schema)
            self._statements[text] = sql.SQL(text).format(*[name] * max(1, text.count("{}")))
        return self._statements[text]

    def _take_lock(self, db: psycopg.Connection[Any]) -> None:
        db.execute("SELECT pg_advisory_xact_lock(%s)", (self._lock_key,))

    # ── the store ────────────────────────────────────────────────────────────────────────────────

    def size(self) -> int:
        with self._reading() as db:
            row = db.execute(self._sql("SELECT coalesce(max(seq) + 1, 0) FROM {}.entry")).fetchone()
        return 0 if row is None else int(row[0])

    def append(self, make: Make) -> None:
        with self._writing() as db, db.transaction():
            self._take_lock(db)
            query = self._sql("SELECT seq, body FROM {}.entry ORDER BY seq DESC LIMIT 1")
            last = db.execute(query, binary=True).fetchone()
            size = 0 if last is None else int(last[0]) + 1
            edge = [(level, (size >> level) - 1) for level in range(size.bit_length()) if size >> level & 1]
            kept = self._nodes(db, edge)

            def get(level: int, index: int) -> bytes:
                if (level, index) not in kept:
                    raise missing(self.name, (level, index))
                return kept[level, index]

            grown = make(size, b"" if last is None else last[1], get)
            for table, columns, rows in (
                ("entry", "seq, body", grown.entries),
                ("node", "level, idx, hash", grown.nodes),
            ):
                if rows:
                    copy = self._sql(f"COPY {{}}.{table} ({columns}) FROM STDIN (FORMAT binary)")
                    with db.cursor() as cursor, cursor.copy(copy) as out:
                        out.set_types([kind for _, kind, _ in TABLES[table]])
                        for row in rows:
                            out.write_row(row)

    def nodes(self, wanted: Iterable[Place]) -> dict[Place, bytes]:
        with self._reading() as db:
            return self._nodes(db, list(wanted))

    def bodies(self, low: int, high: int) -> list[tuple[int, bytes]]:
        query = self._sql("SELECT seq, body FROM {}.entry WHERE seq >= %s AND seq < %s ORDER BY seq")
        with self._reading() as db:
            return db.execute(query, (low, high), binary=True).fetchall()

    def completed(self, low: int, high: int) -> dict[Place, bytes]:
        query = self._sql("SELECT idx, hash FROM {}.node WHERE level = %s AND idx >= %s AND idx < %s")
        with self._reading() as db:
            return {
                (level, index): value
                for level in range(high.bit_length())
                for index, value in db.execute(query, (level, low >> level, high >> level), binary=True)
            }

    def examine(self) -> Held:
        query = self._sql(
            "SELECT (SELECT coalesce(max(seq) + 1, 0) FROM {0}.entry), (SELECT count(*) FROM {0}.entry), "
            "(SELECT count(*) FROM {0}.node)"
        )
        with self._reading() as db:
            self._check_form(db)
            row = db.execute(query).fetchone()
        if row is None:
            raise damaged(self.name, "it has no size")
        return Held(*map(int, row))

    def _nodes(self, db: psycopg.Connection[Any], places: Sequence[Place]) -> dict[Place, bytes]:
        if not places:
            return {}
        query = self._sql(
            "SELECT n.level, n.idx, n.hash FROM unnest(%s::smallint[], %s::bigint[]) AS w (level, idx) "
            "JOIN {}.node AS n ON n.level = w.level AND n.idx = w.idx"
        )
        levels, indices = zip(*places, strict=True)
        rows = db.execute(query, (list(levels), list(indices)), binary=True).fetchall()
        return {(level, index): value for level, index, value in rows}

    # ── its form ─────────────────────────────────────────────────────────────────────────────────

    def _check_form(self, db: psycopg.Connection[Any]) -> None:
        """Raise unless tables, triggers and their functions are those of `postgres_schema.ddl`."""
        columns: dict[str, list[tuple[str, str, bool]]] = {}
        for table, *column in db.execute(COLUMNS, (self._schema,)).fetchall():
            columns.setdefault(table, []).append((column[0], column[1], column[2]))
        if not set(TABLES) <= set(columns):
            raise InputError(f"{self.name}: no audit log is in schema {self._schema}", remedy=_MAKE)
        wanted = {
            (table, trigger, "A", when.format(f"{self._schema}.{table}"), function)
            for (table, trigger), (when, function) in triggers().items()
        }
        found = {(t, g, e, d, f) for t, g, e, d, f in db.execute(TRIGGERS, (self._schema,)).fetchall()}
        bodies = dict(db.execute(BODIES, (self._schema,)).fetchall())
        keys = dict(db.execute(PRIMARY, (self._schema,)).fetchall())
        if (
            {table: tuple(columns[table]) for table in columns} != TABLES
            or found != wanted
            or bodies != {name: body.format(schema=self._schema) for name, body in FUNCTIONS.items()}
            or keys != {table: key.split(", CHECK")[0] for table, key in KEYS.items()}
        ):
            raise VerificationError(
                f"{self.name}: the tables or triggers of an audit log were changed",
                remedy="compare the schema with what `foedus server log-sql` prints: its owner, or a superuser, changed it",
            )

    def _check_role(self, db: psycopg.Connection[Any]) -> None:
        row = db.execute(ROLE, (self._schema, self._schema)).fetchone()
        role, superuser, owner, more = row or ("nobody", True, True, True)
        if superuser or owner or more:
            why = "is a superuser" if superuser else "owns the log" if owner else "may change entries"
            raise InputError(
                f"{self.name}: the role {role} {why}; the log is written by one that may SELECT and INSERT, nothing else",
                remedy=f"{_MAKE}, and connect as that role",
            )


class _PayloadRows:
    """`payloads.Rows` beside the entries."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    @property
    def place(self) -> str:
        return self._store.name

    def add(self, commitment: bytes, sealed: Sealed) -> None:
        with self._store._writing() as db:
            db.execute(self._store._sql("INSERT INTO {}.payload VALUES (%s, %s, %s)"), (commitment, *sealed))

    def get(self, commitments: Iterable[bytes]) -> dict[bytes, Sealed]:
        query = self._store._sql(
            "SELECT commitment, key_id, sealed FROM {}.payload WHERE commitment = ANY(%s)"
        )
        with self._store._reading() as db:
            rows = db.execute(query, (list(commitments),), binary=True).fetchall()
        return {commitment: (key_id, sealed) for commitment, key_id, sealed in rows}

    def count(self, key_id: str) -> int:
        with self._store._reading() as db:
            row = db.execute(
                self._store._sql("SELECT count(*) FROM {}.payload WHERE key_id = %s"), (key_id,)
            ).fetchone()
        return 0 if row is None else int(row[0])


def _named(base: str, schema: str) -> str:
    """A URL for messages: without password and parameters, whatever else is wrong with it.

    Raises:
        InputError: it is no URL that libpq takes, or there is no psycopg.
    """
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise InputError(
            "a log in PostgreSQL needs psycopg", remedy="pip install 'foedus[postgres]'"
        ) from error
    try:
        parts = conninfo_to_dict(base)
    except psycopg.Error:  # its message may quote the password
        raise InputError("the log's database is not given by a URL that PostgreSQL takes") from None
    host = parts.get("host") or "localhost"
    return f"postgresql://{host}/{parts.get('dbname') or parts.get('user') or ''}#{schema}"

"""A PostgreSQL of one's own: a throwaway cluster in a temporary folder, on a unix socket, no port open.

postgres refuses root, so root runs it as the user ``postgres`` or ``nobody``. It ends with the block, by its process id.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from foedus.compliance.auditlog import postgres_schema
from foedus.compliance.auditlog.log import AuditLog

from . import log_attacks

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_numbers = count(1)


def missing() -> str:
    """Why there can be no cluster here; "" if there can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (extra `postgres`)"
    return "" if _tool("initdb") is not None else "no PostgreSQL: initdb was not found"


def _tool(name: str) -> Path | None:
    found = shutil.which(name)
    places = [Path(found)] if found else [folder / name for folder in reversed(_DEBIAN)]
    return next((place for place in places if place.exists()), None)


class Cluster:
    """A running server. ``owner`` is its superuser, ``app`` the role that logs are written by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = next(
            (pwd.getpwnam(n) for n in ("postgres", "nobody") if os.getuid() == 0 and _known(n)), None
        )
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, role: str = "app", schema: str = "") -> str:
        return f"postgresql://{role}@/postgres?host={self.folder}" + (f"#{schema}" if schema else "")

    def make(self) -> None:
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        data = self.folder / "data"
        self._run(
            ["initdb", "-D", str(data), "-U", "owner", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        )
        self.start()
        self.execute("CREATE ROLE app LOGIN")

    def start(self) -> None:
        arguments = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-c", "listen_addresses="]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_tool("postgres")), *arguments, "-c", "max_connections=100"],
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        import psycopg

        for _ in range(300):
            try:
                psycopg.connect(self.url("owner")).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: fast; SIGQUIT: at once, as if it crashed."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def execute(self, *statements: str) -> None:
        """As the owner, who may do anything."""
        import psycopg

        with psycopg.connect(self.url("owner"), autocommit=True) as db:
            for statement in statements:
                db.execute(statement.encode())

    def log(self) -> str:
        """The URL of a new, empty log."""
        schema = f"log_{next(_numbers)}"
        self.execute(postgres_schema.ddl("app", schema))
        return self.url(schema=schema)

    def _run(self, command: Sequence[str]) -> None:
        whole = [str(_tool(command[0])), *command[1:]]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, **self._as_user())
        if done.returncode:
            raise RuntimeError(done.stderr)

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": [], "cwd": self.folder}


class Ground:
    """`log_attacks.Ground` in a database: one log, which its owner makes say what they like."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._url = cluster, cluster.log()
        self._schema = self._url.partition("#")[2]
        AuditLog(self._url, log_attacks.ORIGIN)

    def lay(self, base: log_attacks.Base, folder: Path) -> Path | str:
        self.write(base.bodies, log_attacks.tree(base.bodies), "rebuilt")
        return self._url

    def write(self, bodies: log_attacks.Bodies, nodes: Sequence[log_attacks.Node], depth: str) -> None:
        import psycopg
        import psycopg.sql

        entry, node = (psycopg.sql.Identifier(self._schema, table) for table in ("entry", "node"))
        with psycopg.connect(self._cluster.url("owner")) as db, db.cursor() as cursor:
            for table in (entry, node):
                cursor.execute(psycopg.sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(table))
            cursor.execute(psycopg.sql.SQL("DELETE FROM {}").format(entry))
            insert = psycopg.sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(entry)
            cursor.executemany(insert, list(enumerate(bodies)))
            if depth != "rows":
                whole = depth == "rebuilt"
                cursor.execute(psycopg.sql.SQL("DELETE FROM {} WHERE level = 0 OR %s").format(node), (whole,))
                insert = psycopg.sql.SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(node)
                cursor.executemany(insert, [n for n in nodes if whole or n[0] == 0])
            for table, name in (
                (table, name)
                for table in (entry, node)
                for name in ("_insert", "_change", "_truncate")
                if (table, name) != (node, "_insert")
            ):
                trigger = psycopg.sql.Identifier(("entry" if table is entry else "node") + name)
                cursor.execute(
                    psycopg.sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, trigger)
                )


@contextmanager
def cluster(place: Path | None = None) -> Iterator[Cluster]:
    """A running cluster; in memory by default, if there is a /dev/shm, where fsync costs nothing.

    Args:
        place: a directory on the disk that it should use.
    """
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=place or (memory if memory.is_dir() else None)) as name:
        made = Cluster(Path(name))
        try:
            made.make()
            yield made
        finally:
            made.stop()


def _known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True

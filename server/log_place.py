"""Where a server's audit log is: ``HOME/audit.db``, or the database that ``HOME/log-database`` names.

The file holds one line, the URL of a PostgreSQL database (`auditlog.postgres`), and is of mode 0600: there may be a
password in it. Several processes of a server write to the log; all of them find it here. The keys of sealed payloads are in
``HOME/audit-keys`` in either case: beside the database's own backups they would outlive their shredding.
"""

from __future__ import annotations

from pathlib import Path

from ..compliance.auditlog.log import AuditLog
from ..compliance.auditlog.postgres import is_database
from ..documents import read_private_file, write_private_file
from ..errors import InputError

FILE = "log-database"


def open_log(home: Path, origin: str, *, create: bool = True) -> AuditLog:
    """The server's log.

    Raises:
        InputError, Unreachable, VerificationError: as `AuditLog`; or the file is readable by others, or holds no URL.
    """
    place: Path | str = home / "audit.db"
    if (home / FILE).exists():
        place = read_private_file(home / FILE).decode(errors="replace").strip()
        if not is_database(place):
            raise InputError(f"{home / FILE}: not the URL of a database, postgresql://…")
    return AuditLog(place, origin, create=create, keys=home / "audit-keys")


def choose(home: Path, url: str, origin: str) -> None:
    """Let the log of `home` be in this database from its first entry on. The same again is no error.

    Raises:
        InputError: there is a log already, in a file or another database; or as `AuditLog`.
    """
    if not is_database(url):
        raise InputError("the log's database is given as postgresql://ROLE@HOST/DATABASE")
    file = home / FILE
    if file.exists():
        if read_private_file(file).decode(errors="replace").strip() != url:
            raise InputError(
                f"{file}: names another database", remedy="a log stays where it began; make another directory"
            )
        return
    if (home / "audit.db").exists():
        raise InputError(
            f"{home / 'audit.db'}: the log is in this file",
            remedy="a log stays where it began; make another directory",
        )
    AuditLog(url, origin, keys=home / "audit-keys")  # it works, before anything is written
    write_private_file(file, f"{url}\n".encode())

"""``foedus watch``: the rules over an audit log, alerts at a terminal, and what an officer decides about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from ..compliance.anomalies.alerts import Alert
    from ..compliance.anomalies.book import Book, Sink
    from ..compliance.anomalies.policy import Policy
    from ..compliance.auditlog.log import AuditLog, Entry

watch_app = typer.Typer(no_args_is_help=True, help="Watch an audit log for what is unusual.")

Source = Annotated[
    Path,
    typer.Argument(help="A node's directory, an audit.db, or an evidence.zip.", show_default=False),
]
BookFile = Annotated[
    Path | None, typer.Option("--book", help="The watch's book.", show_default="watch.db beside the log")
]
Officer = Annotated[str, typer.Option(help="Your name.", show_default=False)]
Why = Annotated[str, typer.Option("--reason", help="Why; it is logged.", show_default=False)]


@watch_app.command()
def run(
    source: Source,
    book: BookFile = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="Time zone, rules that block, webhook; YAML.", show_default="watch.yaml beside"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the alerts as JSON.")] = False,
) -> None:
    """Go on watching where the last call ended, and show every alert that nobody has acknowledged.

    Exits 4 if there are any. Alerts go into the log they are about, and to the webhook of watch.yaml.
    Of an evidence.zip the signatures are not checked here: foedus verify does that.

    Example: foedus watch run node --json
    """
    from ..errors import VerificationError

    found = _open(source, book)
    policy, sinks = _configured(
        found, settings or (source if source.is_dir() else source.parent) / "watch.yaml", settings is not None
    )
    found.book.turn(policy, found.silo, found.entries, [s.name for s in sinks])
    wrong = found.book.deliver(sinks, datetime.now(UTC))
    alerts = found.book.alerts(open_only=True)
    if as_json:
        typer.echo(json.dumps([a.to_json() for a in alerts], indent=2))
    else:
        _show(alerts, found.book, Console(highlight=False))
    for line in wrong:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"not sent yet: {escape(line)}")
    if alerts:
        raise VerificationError(
            f"{source}: {len(alerts)} alerts that nobody has acknowledged",
            remedy="look at their entries, then foedus watch acknowledge SOURCE ALERT",
        )


@watch_app.command()
def acknowledge(
    source: Source,
    alert: Annotated[str, typer.Argument(help="The alert's id.", show_default=False)],
    officer: Officer,
    reason: Why,
    book: BookFile = None,
) -> None:
    """Say that you have looked at an alert. It releases nobody.

    Example: foedus watch acknowledge node 9f2c51d07be3a846 --officer dora --reason "the yearly report"
    """
    found = _open(source, book)
    told = {"officer": officer, "reason": reason}
    found.book.acknowledge(alert, officer, reason, record=found.record("anomaly.acknowledged", alert, told))
    typer.echo(f"{alert} is acknowledged")


@watch_app.command()
def release(
    source: Source,
    actor: Annotated[str, typer.Argument(help="Who is blocked, as alerts name them.", show_default=False)],
    officer: Officer,
    reason: Why,
    book: BookFile = None,
) -> None:
    """Let somebody go on whom an alert has blocked. A later alert blocks them again.

    Example: foedus watch release node alice --officer dora --reason "called her: it was her"
    """
    found = _open(source, book)
    told = {"officer": officer, "reason": reason}
    found.book.release(actor, officer, reason, record=found.record("anomaly.released", actor, told))
    typer.echo(f"{actor} may go on")


@dataclass(frozen=True)
class _Found:
    """What there is to watch: the entries, the log they are in (None: an export), the book, caps by purpose."""

    silo: str
    entries: Callable[[int], Iterable[Entry]]
    log: AuditLog | None
    book: Book
    caps: dict[str, float]

    def record(self, action: str, subject: str, told: dict[str, str]) -> Callable[[], object]:
        return lambda: self.log and self.log.append("watch", action, subject, told)


def _open(source: Path, book: Path | None) -> _Found:
    """Raises: InputError: none of the three."""
    from ..compliance import evidence, treaty
    from ..compliance.anomalies.book import Book
    from ..compliance.auditlog.log import AuditLog, Entry, origin_of
    from ..documents import Envelope
    from .home import Home

    if source.suffix == ".zip":
        _, files = evidence.read(source)
        lines = files.get("log/entries.jsonl", b"").splitlines()
        exported = [Entry(i, line) for i, line in enumerate(lines)]
        content = treaty.parse(Envelope.loads(files["treaty.json"]))
        caps = {terms.purpose: terms.epsilon for terms in content.purposes}
        place = book or source.with_suffix(".watch.db")
        return _Found("coordinator", lambda start: exported[start:], None, Book(place), caps)
    caps = {}
    if source.is_dir():
        party = Home.load(source).party
        path, silo, origin = source / "audit.db", party, f"foedus node {party}"
        if (source / "treaty.json").exists():
            _, content = treaty.load(source / "treaty.json")
            caps = {terms.purpose: terms.epsilon for terms in content.purposes}
    else:
        path, origin = source, origin_of(source)
        silo = origin.removeprefix("foedus node ") if origin.startswith("foedus node ") else "coordinator"
    log = AuditLog(path, origin, create=source.is_dir())
    return _Found(silo, log.entries, log, Book(book or path.with_name("watch.db")), caps)


def _configured(found: _Found, file: Path, must: bool) -> tuple[Policy, list[Sink]]:
    from ..compliance.anomalies.settings import WatchSettings
    from ..compliance.anomalies.sinks import AuditSink

    settings = WatchSettings.load(file) if must or file.exists() else WatchSettings()
    sinks: list[Sink] = [AuditSink(found.log)] if found.log is not None else []
    return settings.policy(found.caps), sinks + settings.webhooks(file.parent)


def _show(alerts: list[Alert], book: Book, out: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{len(alerts)} alerts to look at", title_justify="left")
    for column in ("id", "time (UTC)", "actor", "rule", "what", "entries"):
        table.add_column(column, no_wrap=column == "id")
    for alert in alerts:
        held = "\nblocked" if book.blocked(alert.actor) is not None else ""
        entries = " ".join(map(str, alert.evidence[:5])) + (" …" if len(alert.evidence) > 5 else "")
        time = alert.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(alert.id, time, escape(alert.actor) + held, alert.rule, alert.sentence, entries)
    out.print(table if alerts else "nothing to look at")

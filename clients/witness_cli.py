"""``foedus node witness``: which heads of the server's log this node holds, and what an officer does about a fork."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from .guard import Guard

SETTLED = "log.settled"


def witness(
    directory: Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)],
    settle: Annotated[
        str | None,
        typer.Option(
            help="You have looked into the contradiction: why the node may go on.", show_default=False
        ),
    ] = None,
) -> None:
    """Show the heads of the server's log that this node keeps, who cosigned them, and contradictions it has seen.

    Once two heads contradict each other the node takes part in nothing, until --settle with a reason, which goes into
    its own audit log. Compare heads with the other parties before: the files hold both, as the server signed them.
    The head kept stays what it is, and so a log that does not continue it is refused again.

    Exits 4 if there is a contradiction that nobody has looked into.

    Example: foedus node witness node --settle "dora and bela compared: the server was restored from a backup"
    """
    from ..errors import InputError, VerificationError
    from .guard import Guard
    from .home import Home

    guard = Guard(Home.load(directory))
    _show(guard, Console(highlight=False, soft_wrap=True))
    found = guard.heads.evidence
    if settle is None:
        if found:
            raise VerificationError(
                f"the log {guard.treaty.coordinator.origin} contradicts itself: {len(found)} proofs are kept",
                remedy="compare heads with the other parties; then foedus node witness NODE --settle REASON",
            )
        return
    if not settle.strip():
        raise InputError("--settle needs a reason", remedy="say what you found out, and with whom")
    if not found:
        raise InputError("there is no contradiction to settle")
    told = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    guard.audit.append(guard.home.party, SETTLED, "", {"reason": settle.strip(), "files": told})
    for path in guard.heads.settle():
        typer.echo(f"settled: {path}")
    typer.echo("The node goes on; restart it if it is running and its disk was full.")


def _show(guard: Guard, out: Console) -> None:
    from ..compliance.auditlog.cosignature import cosigners
    from ..documents import read_text

    head, treaty = guard.heads.head, guard.treaty
    if head is None:
        out.print("no head of the log was seen yet")
        return
    out.print(f"kept      {head.size} entries, root {head.root.hex()}")
    file = guard.home.path / "log-head.cosigned"
    if file.exists():
        note = read_text(file)
        by = cosigners(note, treaty.witnesses)
        size = guard.heads.compare(note).size
        times = ", ".join(f"{name} {_when(time)}" for name, time in sorted(by.items()))
        out.print(f"cosigned  {size} entries, by {len(by)} of {len(treaty.parties)} parties: {escape(times)}")
    else:
        out.print(f"cosigned  none was shown yet under {treaty.quorum} parties' cosignatures")
    for path in guard.heads.evidence:
        out.print(f"[bold red]CONTRADICTION[/] {escape(_reason(path))}: {escape(str(path))}")


def _when(time: int) -> str:
    """A witness's time as text; any number may stand there."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"at {time} s"


def _reason(path: Path) -> str:
    from ..documents import parse_json
    from ..errors import InputError

    try:
        value: Any = parse_json(path.read_bytes())
        return str(value["reason"])
    except (OSError, InputError, KeyError, TypeError):
        return "can't be read"

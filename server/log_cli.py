"""``foedus log``: the server's audit log, read by somebody who does not trust the server.

All entries are fetched and hashed before the first is shown: they must give the head that the
coordinator of the reader's own treaty signed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Annotated

import typer

from ..compliance import treaty as treaties
from ..compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from ..compliance.auditlog.cosignature import require_quorum
from ..compliance.auditlog.log import Entry, commitment_in
from ..compliance.auditlog.merkle import root_from_leaves
from ..compliance.treaty import Coordinator, Treaty
from ..errors import InputError, VerificationError
from ..federation.log_table import WIDTH, table, with_sealed
from .client import ApiClient
from .study_cli import DEFAULT_SERVER, Ca, Server, TokenFile, TreatyFile, connect

log_app = typer.Typer(no_args_is_help=True, help="Read the server's audit log, verified.")


@log_app.callback()
def group() -> None:
    """Read the server's audit log, verified."""


@log_app.command()
def show(
    treaty: TreatyFile,
    study: Annotated[
        str | None, typer.Option(help="Only this study's entries: 8 digits or more.", show_default=False)
    ] = None,
    since: Annotated[int, typer.Option(help="Only entries from this index on.", min=0)] = 0,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Show the audit log, once all of it hashes to the head that the treaty's coordinator signed; and who cosigned it.

    Exits 4 if it does not, or is not the log that the parties' nodes have cosigned. --study and --since choose what is printed;
    everything is checked. What an entry has sealed is shown if it hashes to the entry's commitment, or as shredded.

    Example: foedus log show --treaty treaty.json --study 3f2a9c01 --token-file dora.token --ca ca.crt
    """
    _, content = treaties.load(treaty)
    with connect(server, token_file, ca) as client:
        head, entries = verified(client, content.coordinator)
        note = client.cosigned_checkpoint()
        seen = None if note is None else cosigned(note, content, [entry.leaf for entry in entries])
        if since > head.size:
            raise InputError(f"the log has {head.size} entries: there is no entry {since}")
        chosen = [
            (e.index, with_sealed(record, client.payload(e)) if commitment_in(record) else record)
            for e in entries[since:]
            if (record := e.record) and (study is None or record["subject"].startswith(study))
        ]
    if study is not None and not chosen:
        raise InputError(f"the log has no entry about study {study}", remedy="`foedus study list` shows all")
    for line in table(chosen):
        typer.echo(line)
    typer.echo(f"{head.size} entries hash to the head signed by {head.origin}:")
    typer.echo(head.root.hex())
    if seen is None:
        typer.echo("No head of it is cosigned yet: nodes cosign while a study runs.")
    else:
        size, by = seen
        said = f"Its first {size} entries are cosigned by {len(by)} of {len(content.parties)}: {', '.join(sorted(by))}"
        for line in textwrap.wrap(said, WIDTH, break_on_hyphens=False):
            typer.echo(line)


def cosigned(note: str, treaty: Treaty, leaves: list[bytes]) -> tuple[int, Mapping[str, int]]:
    """The size of a head of this very log, and who has cosigned it when, a quorum of the treaty or more.

    Raises:
        VerificationError: not signed, a cosignature that does not hold, or the head of another log than `leaves`.
        Refused: ``NO_QUORUM``.
    """
    coordinator = treaty.coordinator
    head = open_checkpoint(note, coordinator.origin, coordinator.signing_key)
    by = require_quorum(note, treaty.witnesses, treaty.quorum)
    if head.size > len(leaves) or root_from_leaves(leaves[: head.size]) != head.root:
        raise VerificationError(
            f"the head of {head.size} entries that {', '.join(sorted(by))} cosigned is not of the log that the server "
            "shows",
            remedy="keep what you see, and compare heads with the other partners' officers",
        )
    return head.size, by


def verified(client: ApiClient, coordinator: Coordinator) -> tuple[Checkpoint, list[Entry]]:
    """The log's signed head and all of its entries, which hash to it.

    Raises:
        VerificationError: another log's head, another key's signature, or other entries.
    """
    head = open_checkpoint(client.checkpoint(), coordinator.origin, coordinator.signing_key)
    if head.origin != coordinator.origin:
        raise VerificationError(f"a head of the log {head.origin}, not of {coordinator.origin}")
    entries: list[Entry] = []
    try:
        for entry in client.log_entries(0, head.size):
            if entry.index != len(entries):
                raise VerificationError(f"entry {len(entries)} was asked for, the server sends {entry.index}")
            entries.append(entry)
    except (KeyError, TypeError, AttributeError) as error:
        raise VerificationError("the server's answer is not a page of a log") from error
    if len(entries) != head.size or root_from_leaves([e.leaf for e in entries]) != head.root:
        raise VerificationError(
            f"the {len(entries)} entries that the server shows do not hash to the head of {head.size} that "
            f"{coordinator.origin} signed",
            remedy="keep what you see, and compare heads with the other partners' officers",
        )
    return head, entries

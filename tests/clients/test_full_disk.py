"""A node whose disk is full refuses, leaves nothing half-written, and works again when there is space."""

from __future__ import annotations

import shutil
from pathlib import Path

from flwr.app import Message
from support.disks import small_disk
from support.nodes import Rehearsal

from foedus.compliance.auditlog.log import AuditLog
from foedus.durable import disk_full
from foedus.federation import messages as m
from foedus.privacy.ledger import Ledger

NODE = "aster-music"


def answered(play: Rehearsal, content: m.Content, data: bytes) -> bool:
    """Whether the node answers; if not, its process logs that the disk is full."""
    message = Message(
        content.record(data),
        dst_node_id=100 + play.silos.index(NODE),
        message_type=f"query.{content.action}",
    )
    app = play.grid._apps[message.metadata.dst_node_id]
    try:
        reply = app(message, None)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - of whichever of its registers was first
        assert disk_full(error), repr(error)
        return False
    refusal = m.refusal_in(reply)
    assert refusal is None, refusal
    return True


def registers(play: Rehearsal) -> tuple[int, list[str]]:
    """Both are whole; the audit log's size, and what the ledger's lines are."""
    log = AuditLog(play.home(NODE) / "audit.db", f"foedus node {NODE}", create=False)
    log.check()
    ledger = Ledger(play.home(NODE) / "ledger.db")
    kinds = [line.kind for line in ledger.lines()]  # raises where the chain is broken
    assert ledger.head.size == len(kinds)
    return log.size, kinds


def test_nothing_is_half_written(play: Rehearsal, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        home = disk.path / "node"
        shutil.copytree(play.home(NODE), home)
        play.world.homes[NODE] = home
        play.restart(NODE)
        play.set_up()
        failures, size = 0, registers(play)[0]
        for leave in range(0, 1 << 17, 4096):  # it ends at one step or another of the answer
            vector = play.vector_request(NODE, 1, boxes=not leave)  # which a node takes once
            disk.fill(leave)
            done = answered(play, vector, play.weights)
            disk.free()
            longer, kinds = registers(play)
            assert longer >= size
            if done:
                break
            failures, size = failures + 1, longer
        assert done and failures >= 3
        # a round that was reserved and failed costs budget, and never privacy
        assert kinds.count("reserve") - kinds.count("abort") >= 1
        assert play.spent(NODE) > 0

"""A server with two histories of its log, each shown to some of the nodes; silos in league with it cosign both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from support.nodes import Rehearsal, Said

from foedus.clients.home import Home
from foedus.compliance.auditlog.checkpoint import Checkpoint
from foedus.compliance.auditlog.cosignature import cosign
from foedus.compliance.auditlog.log import SEALED, AuditLog
from foedus.documents import Envelope, SigningKey
from foedus.errors import FoedusError
from foedus.federation import messages as m
from foedus.server.case import Case

TIME = 1_790_000_000


def other_history(play: Rehearsal, name: str = "other.db") -> AuditLog:
    """The same entries at other times: the roots differ from the first entry on, and each says that the run began."""
    log = AuditLog(play.world.root / name, play.case.origin)
    for entry in play.case.log.entries():
        record = entry.record
        open_to_all = {name: told for name, told in record["details"].items() if name != SEALED}
        log.append(record["actor"], record["action"], record["subject"], open_to_all)
    return log


class TwoFaced:
    """Set-up and round 1 with `left` shown one history and everybody else another.

    Args:
        colluders: silos whose keys the server has: they cosign whatever helps.
    """

    def __init__(self, play: Rehearsal, left: Collection[str], *, colluders: Collection[str] = ()) -> None:
        self.play, self.colluders = play, colluders
        right = replace(
            play.case,
            log=other_history(play),
            heads={},
            log_cosigned=None,
            batches=[],
            sums=[],
            told=frozenset(),
        )
        self.sides: dict[str, Case] = {s: play.case if s in left else right for s in play.silos}
        self.refused: dict[str, str] = {}  # silo -> why it deals no shares
        self.vectors: list[str] = []  # silos that gave one

    def shown(self, silo: str) -> str:
        """All cosignatures of the silo's history that the server can get, however few."""
        case = self.sides[silo]
        size = case.log.size
        for name in self.colluders:
            head = Checkpoint(case.origin, size, case.log.root())
            case.cosigned.take(name, size, cosign(head, name, self._key(name), TIME))
        return case.cosigned.whole(size)

    def _key(self, silo: str) -> SigningKey:
        return Home.load(self.play.world.homes[silo]).identity()

    def attack(self) -> None:
        """Keys, shares, and as many vectors as the nodes give."""
        play = self.play
        for silo in play.silos:
            case = self.sides[silo]
            said = play.ask(silo, case.keys_request(silo, 0, play.rounds))
            reply, _ = m.KeysReply.read(said.message)
            case.seen(silo, reply.log_size)
            case.cosigned.take(silo, reply.log_size, reply.cosignature)
            play.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
        for silo in play.silos:
            request = play.shares_request().model_copy(update={"cosigned": self.shown(silo)})
            said = play.ask(silo, request)
            if said.refusal is not None:
                self.refused[silo] = said.refusal.code
                continue
            answer, _ = m.SharesReply.read(said.message)
            play.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))
        for silo in play.silos:
            if self.vector(silo).refusal is None:
                self.vectors.append(silo)

    def vector(self, silo: str) -> Said:
        case, play = self.sides[silo], self.play
        try:
            boxes: dict[str, str] | None = m.boxes_to_json(play.aggregator.boxes_for(silo))
        except FoedusError:
            boxes = None
        request = m.VectorRequest(
            run="1", batch=0, round=1, boxes=boxes, log=case.head(silo), cosigned=self.shown(silo)
        )
        return play.ask(silo, request, play.weights)

"""``/v1/log``: the audit log's head, entries and proofs, for whoever wants to check it themselves."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse

from ...documents import b64
from ...errors import InputError
from .. import cosigned
from ..auth import Role, require
from ..desk import DeskOf

router = APIRouter(prefix="/log", dependencies=[Depends(require(Role.OFFICER, Role.PARTNER, Role.SCIENTIST))])
MAX_ENTRIES = 1000
Count = Annotated[int, Query(ge=0, le=2**53)]


@router.get("/checkpoint")
def checkpoint(desk: DeskOf) -> PlainTextResponse:
    """The log's head of now, signed by the server (C2SP tlog-checkpoint)."""
    return PlainTextResponse(desk.log.checkpoint(desk.log.origin, desk.key))


@router.get("/checkpoint/cosigned")
def cosigned_checkpoint(desk: DeskOf) -> PlainTextResponse:
    """The newest head that a quorum of the parties' nodes has cosigned, with their lines (C2SP tlog-cosignature).

    Empty as long as there is none: nodes cosign heads while a study runs.
    """
    return PlainTextResponse(cosigned.read(desk.home / cosigned.FILE) or "")


@router.get("/entries")
def entries(desk: DeskOf, start: Count = 0, end: Count | None = None) -> dict[str, Any]:
    """Entries [start, end), at most 1000. `body` is the text that was hashed, to the byte."""
    size = desk.log.size
    end = min(size, start + MAX_ENTRIES) if end is None else end
    if not start <= end <= size:
        raise InputError(f"no entries {start} to {end} in a log of {size}")
    if end - start > MAX_ENTRIES:
        raise InputError(f"at most {MAX_ENTRIES} entries at once", remedy="read them in pages")
    found = [{"index": e.index, "body": e.body.decode()} for e in desk.log.entries(start, end)]
    return {"start": start, "end": end, "size": size, "entries": found}


@router.get("/proof/consistency")
def consistency(desk: DeskOf, old: Count, new: Count) -> dict[str, Any]:
    """That the log of `old` entries is a prefix of the log of `new`."""
    return {"old": old, "new": new, "proof": [b64(node) for node in desk.log.consistency_proof(old, new)]}


@router.get("/proof/inclusion")
def inclusion(desk: DeskOf, index: Count, size: Count) -> dict[str, Any]:
    """That entry `index` is in the log of `size` entries."""
    return {
        "index": index,
        "size": size,
        "proof": [b64(node) for node in desk.log.inclusion_proof(index, size)],
    }


@router.get("/payload")
def payload(desk: DeskOf, index: Count) -> dict[str, Any]:
    """What entry `index` has sealed: ``salt`` and ``payload``, which hash to its commitment; or ``shredded``."""
    opening = desk.log.open_payload(index)
    if opening is None:
        return {"index": index, "shredded": True}
    return {"index": index, "shredded": False, "salt": b64(opening.salt), "payload": opening.payload}

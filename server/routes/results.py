"""``/v1/studies/{digest}/results``: what a study released, as files."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from ...errors import VerificationError
from ...federation.counting import CountStudy
from ..auth import Principal, Role, require
from ..desk import DeskOf
from ..problems import Forbidden, NotFound
from ..store import ReleaseRow

router = APIRouter(prefix="/studies/{digest}/results")
Reader = Annotated[Principal, Depends(require(Role.SCIENTIST, Role.OFFICER, Role.PARTNER))]


@router.get("")
def index(digest: str, caller: Reader, desk: DeskOf) -> dict[str, Any]:
    """The files a study released."""
    row = desk.registry.find(digest)
    fields = ("name", "run", "kind", "sha256", "size", "released")
    return {
        "study": row.digest,
        "results": [
            {name: getattr(r, name) for name in fields}
            for r in desk.store.releases(row.digest)
            if _may_see(r, row.digest, caller, desk)
        ],
    }


@router.get("/{name}")
def download(digest: str, name: str, caller: Reader, desk: DeskOf) -> Response:
    """One released file.

    1. The name is looked up among the study's releases; it is never part of a path. Evidence of a count, in which
       cells that did not pass the gate can be read, is for those who verify it.
    2. The registered path stays inside ``evidence/``, links followed.
    3. The bytes are those that were released; the reading is in the audit log before they leave.
    """
    study = desk.registry.find(digest).digest
    # 1.
    release = next((r for r in desk.store.releases(study) if r.name == name), None)
    if release is None:
        raise NotFound(
            f"study {study[:12]} has released no such file", remedy="`foedus study results` lists them"
        )
    if not _may_see(release, study, caller, desk):
        raise Forbidden(
            "EVIDENCE_OF_A_COUNT",
            "the evidence of a count has the noisy sums of suppressed cells, too: it is for officers and partners",
            remedy="fetch table.json; an officer verifies the evidence",
        )
    # 2.
    evidence = (desk.home / "evidence").resolve()
    path = (evidence / release.path).resolve()
    if not path.is_relative_to(evidence) or not path.is_file():
        raise NotFound(f"{release.name} is no longer on the server")
    # 3.
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != release.sha256:
        raise VerificationError(
            f"{release.name} is not what was released: it was changed on the server",
            remedy="restore it from a backup",
        )
    desk.log.append(caller.name, "result.read", study, {"name": release.name, "sha256": release.sha256})
    headers = {
        "content-disposition": f'attachment; filename="{release.name}"',
        "x-foedus-sha256": release.sha256,
    }
    return Response(content, media_type="application/octet-stream", headers=headers)


def _may_see(release: ReleaseRow, study: str, caller: Principal, desk: DeskOf) -> bool:
    """Whether a caller may have a file: cells that did not pass the gate can be read in the evidence of a count."""
    if release.kind != "evidence" or caller.role is not Role.SCIENTIST:
        return True
    return not isinstance(desk.registry.study(desk.registry.find(study)), CountStudy)

"""`foedus audit-privacy` on orders dealt to made-up partners, or on the silos of a trial."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..clients import audit_cli
from ..clients.privacy_audit import Report
from ..clients.rehearsal import Silo
from ..errors import InputError
from ..federation.study import load_draft
from . import data
from .world import build


def run_audit(
    study: Path,
    *,
    orders: Path | None,
    trial: Path | None,
    silos: int,
    canaries: int,
    delta: float | None,
    out: Path | None,
) -> Report:
    """Audit a draft on `orders` (CDNOW if None), or a draft or signed study on the silos of `trial`.

    Raises:
        InputError: both were given, or the study does not fit the orders.
        VerificationError: a claim was refuted.
    """
    if trial is not None:
        if orders is not None:
            raise InputError("--orders and --dir: give one of them")
        found, treaty, homes = audit_cli.load_trial(trial, study)
        return audit_cli.run(found, treaty, homes, canaries=canaries, delta=delta, out=out)
    draft, dealt = load_draft(study), data.cdnow() if orders is None else data.from_file(orders)
    if draft.split.by == "column" and draft.split.column not in dealt.frame.columns:
        raise InputError(
            f"{study}: the study splits by the column {draft.split.column!r}, which {dealt.source} has not",
            remedy="give the study `split: {by: hash}`",
        )
    with tempfile.TemporaryDirectory(prefix="foedus-audit-") as scratch:
        world = build(Path(scratch) / "world", dealt, draft, silos=silos)
        resolved, _ = world.sign_study(draft)
        homes = {name: Silo.of_home(path, resolved, world.treaty) for name, path in world.homes.items()}
        return audit_cli.run(resolved, world.treaty, homes, canaries=canaries, delta=delta, out=out)

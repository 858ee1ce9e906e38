"""Rows that one silo may let out because the union has k of their kind, as a count over all silos has shown.

A silo may hold four customers of a cell, and others another eight: 4 + 4 + 4 pass k = 10. Who could be told from nobody in the
union need not be left out by each silo for itself. What vouches for it is the evidence of the counting study, re-checked here:
every party's signature on the treaty, the sum that more nodes than may collude have checked, the gate recomputed.

1. The evidence holds, under this node's own treaty. The count is this node's as well, its noise no server's word, and not old.
2. The cohort is who consents to the study's purpose now. Each one's cell is worked out as in the count.
3. Rows of cells that passed are kept, their quasi-identifiers as the cell's labels; nothing that names a customer is.
4. The gate: one release of each version of the data, in the log first (`release_gate`).

k holds of the rows of all silos together. Whoever knows *at which* silo somebody is a customer has a smaller class before
them: how small the smallest is, is told. Consents withdrawn since the count make classes smaller, too: hence its age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from ..compliance.masking.columns import suggest
from ..compliance.masking.files import write_table
from ..compliance.masking.measures import Classes
from ..compliance.masking.roles import Role
from ..errors import InputError, Refused
from ..federation.counting import CountStudy
from ..federation.verification import Report, verify
from . import uses
from .cohort import Cohorts, ask_of
from .counter import labelled
from .home import Home
from .release_gate import ReleaseGate

MAX_AGE = timedelta(days=30)


@dataclass(frozen=True)
class Exported:
    """What was let out.

    Attributes:
        rows, left_out: of customers.
        alone: rows of cells in which this silo has fewer than k itself.
        smallest: rows of the smallest class within this silo.
        versions: other versions of the data that were released from before.
    """

    rows: int
    left_out: int
    alone: int
    smallest: int
    k: int
    versions: int


def export(
    home: Home, evidence: Path, out: Path, *, keep: Sequence[str] = (), now: datetime | None = None
) -> Exported:
    """Write the rows of this node's customers whose cells passed on the union.

    Args:
        keep: further columns of the table, as they are.

    Raises:
        VerificationError: the evidence does not hold. InputError: a column that is not there or names people; `out` exists.
        Refused: ``NOT_COUNTED``, ``COUNT_TOO_OLD``, ``NOTHING_PASSED``, or the gate's.
    """
    if out.exists():
        raise InputError(f"{out}: exists already", remedy="choose another name, or move it away")
    moment = datetime.now(UTC) if now is None else now
    # 1.
    report = verify(evidence, own_treaty=home.path / "treaty.json")
    study = _vouched(report, home.party, moment)
    # 2.
    from ..compliance.consent import ConsentRegister

    ask = ask_of(home, study.purpose, order_log=study.reads_orders)
    uses.of_union(bool(keep), ask.categories, report.treaty)
    cohort = Cohorts(ConsentRegister(home.path / "consent.db")).of(ask, moment)
    if set(keep) & {key.called for key in study.count.by}:
        raise InputError(f"{', '.join(keep)}: a column that the study groups by is exported as its groups")
    found = labelled(home, study, cohort.frame, report.treaty.retention_days, keep)
    # 3.
    shown = np.array([cell["count"] is not None for cell in report.metrics["table"]["cells"]])
    kept = shown[found.cells]
    if not kept.any():
        raise Refused("NOTHING_PASSED", "no customer of this silo is in a cell that passed the gate")
    labels = study.count.labels()
    rows = pd.DataFrame(
        {
            key.called: [labels[cell][place] for cell in found.cells[kept]]
            for place, key in enumerate(study.count.by)
        }
    )
    rows = pd.concat([rows, found.others[kept].reset_index(drop=True)], axis=1)
    naming = [s.column for s in suggest(rows[list(keep)]) if s.role is Role.IDENTIFYING] if keep else []
    if naming:
        raise InputError(
            f"{', '.join(naming)}: seems to name people", remedy="leave it out; `foedus columns` says why"
        )
    rows = rows.sort_values(list(rows.columns), ignore_index=True)  # the table's order would tell who is who
    # 4.
    quasi = [key.called for key in study.count.by]
    sizes = Classes.of(rows, quasi)
    gate = ReleaseGate(home)
    versions = gate.record(
        found.source,
        rows,
        {"what": "union", "study": report.study_digest, "run": report.run, "k": study.k, "by": quasi},
    )
    write_table(rows, out)
    own = sizes.size[sizes.of_row]
    return Exported(
        len(rows), int((~kept).sum()), int((own < study.k).sum()), int(own.min()), study.k, versions
    )


def _vouched(report: Report, party: str, now: datetime) -> CountStudy:
    """The study whose table vouches for the union."""
    study = report.study
    if not isinstance(study, CountStudy):
        raise InputError(
            f"{study.title!r} trains a model: it says nothing of how many customers are in a cell"
        )
    if study.privacy.mode.unsafe:
        raise Refused("NOT_COUNTED", "the noise of that count, and so its sum, is the server's word")
    if party not in report.survivors[1]:
        raise Refused("NOT_COUNTED", f"{party} had no part in that count: its customers are not in the sum")
    if not now - MAX_AGE <= report.started <= now + timedelta(minutes=5):
        raise Refused(
            "COUNT_TOO_OLD",
            f"the count is of {report.started.date()}: who has withdrawn since is still in it",
            remedy=f"count anew: a count vouches for {MAX_AGE.days} days",
        )
    return study

"""What a demo found, as values: `screen` prints them, `report` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..compliance.treaty import Treaty
from ..federation.study import Study
from ..federation.verification import Check
from .reference import Row


@dataclass(frozen=True)
class Partner:
    """One partner's own view, read in its own directory after the run; none of it went to the server.

    Args:
        customers: in its table. consenting: of them, with consent in force for the purpose.
        excluded: why the others are out: "withdrawn", "expired", "never asked" -> customers.
        epsilon: spent, by its ledger, at the study's δ. cap: the treaty's.
        sent: kind of message -> (messages, bytes) that left the silo.
        lost_in: the round it was killed in, or None.
    """

    name: str
    customers: int
    consenting: int
    excluded: Mapping[str, int]
    epsilon: float
    cap: float
    sent: Mapping[str, tuple[int, int]]
    lost_in: int | None


@dataclass(frozen=True)
class Round:
    """One secure sum: who is in it, ε so far, and (train) the exact test AUC of the model after it.

    The exact AUC is the demo's own, from all silos' tables together, which no party of a federation has.
    """

    number: int
    task: str
    survivors: tuple[str, ...]
    epsilon: float
    seconds: float
    auc: float | None


@dataclass(frozen=True)
class Result:
    """Everything shown at the end of a demo.

    Args:
        source: name of the data. rows: the table, the federated model first.
        dp_auc, dp_auc_error: what the study itself released: AUC from the noisy histogram, and the noise's standard error.
        roc: name -> (false positive rates, true positive rates).
        checks: what `foedus verify` checked on the bundle.
        lineage: (kind, name) nodes, and edges between them.
        phases: (name, seconds), in order. files: label -> path.
    """

    source: str
    study: Study
    study_digest: str
    treaty: Treaty
    treaty_digest: str
    epsilon: float
    rows: Sequence[Row]
    dp_auc: float
    dp_auc_error: float
    partners: Sequence[Partner]
    rounds: Sequence[Round]
    roc: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    checks: Sequence[Check]
    lineage: tuple[Sequence[tuple[str, str]], Sequence[tuple[tuple[str, str], tuple[str, str]]]]
    phases: Sequence[tuple[str, float]]
    files: Mapping[str, Path]

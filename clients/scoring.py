"""A released model in a partner's own hands: its own consenting customers, scored on its own machine.

Nothing leaves the silo, and no ε is spent: the model is released already. What is trusted is the
directory of the node. In this order:

1. The release is signed by the coordinator of the node's own treaty, which permits its purpose.
2. The customers are those who consent to that purpose now.
3. Features, by the node's SQL engine, from orders before the day of scoring.
4. The node's own audit log and its lineage note it, and `rights.db` where the file is; then it is written, readable by
   its owner only. Scores by a model that was retired are refused.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, ValidationError, field_validator

from ..compliance import treaty as treaties
from ..compliance.auditlog.log import AuditLog
from ..compliance.consent import ConsentRegister
from ..compliance.rights import Erasures, Outputs
from ..compliance.treaty import Document, Per, Treaty, explain
from ..documents import Envelope
from ..errors import InputError, Refused
from ..federation import models
from ..federation.modes import ModeField
from ..federation.schema import TAGS, AnyFeature, ChurnLabel, ColumnLabel, Label, Split, Table, question
from ..federation.study import Digest, Model, Scaling
from ..federation.tasks import statistics
from . import sources, uses
from .cohort import ask_of
from .features import CUSTOMER, columns, history, last_order, measured, written
from .home import Home
from .lineage import note_scoring

KIND = "release"
SUFFIXES = (".csv", ".parquet")


class ReleasedModel(Document):
    """The content of model.json."""

    what: Literal["model"]
    study: Digest
    run: str
    epsilon: float
    delta: float
    per: Per
    mode: ModeField
    purpose: str
    table: Table
    model: Model
    features: tuple[AnyFeature, ...] = Field(min_length=1)
    scaling: Scaling
    learned: tuple[float, ...] = Field(description="bounds of learned scales, weights of labels")
    label: Label
    weights: tuple[float, ...]

    @field_validator("features", "weights", "learned", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("epsilon", "delta", "weights", "learned", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """JSON writes 1.0 as 1."""
        if isinstance(value, tuple):
            return tuple(cls._numbers(v) for v in value)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class Scored:
    """A silo's customers and what the model says of them; never leaves it.

    `frame` has the columns ``customer`` and ``score``, the probability of what `meaning` says, as known
    `as_of` that day, sorted from the highest. `latest` is the day of the last order read, if orders were.
    """

    frame: pd.DataFrame
    purpose: str
    as_of: date
    meaning: str
    latest: date | None


def load_model(path: Path, treaty: Treaty) -> tuple[Envelope, ReleasedModel]:
    """A release of a model that the treaty's coordinator signed, for a purpose that the treaty permits.

    Raises:
        InputError: not a file of a release, or not of a model.
        VerificationError: not signed by this treaty's coordinator, or altered since.
        Refused: the treaty does not permit its purpose.
    """
    envelope = Envelope.load(path)
    envelope.check(KIND, treaty.coordinator.origin, treaty.coordinator.signing_key)
    what = envelope.payload.get("what")
    if what != "model":
        raise InputError(f"{path}: a release of {what}, not of a model", remedy="give model.json")
    try:
        released = ReleasedModel.model_validate(envelope.payload)
    except ValidationError as error:
        raise explain(error, str(path), tags=TAGS) from error
    treaty.terms(released.purpose)
    return envelope, released


def score(home: Home, released: ReleasedModel, as_of: date, treaty: Treaty) -> Scored:
    """Score the customers who consent to the model's purpose now, as known before `as_of`.

    Raises:
        InputError: `as_of` is in the future, or the table has no order in the horizon before it; no table,
            column, register or customer to score.
    """
    if as_of > date.today():
        raise InputError(f"{as_of} has not come yet", remedy="score as of today, or of an earlier day")
    register = home.path / "consent.db"
    if not register.exists():
        raise InputError(f"{register}: no such file", remedy="foedus consent import takes consents in")
    names, label = released.table, released.label
    ask = ask_of(home, released.purpose, order_log=not isinstance(label, ColumnLabel))
    uses.of_scores(released.purpose, ask.categories, treaty)
    cohort = ConsentRegister(register).cohort(ask, datetime.now(UTC))
    latest: date | None = None
    with home.orders(names, written(released.features)) as found:
        if isinstance(label, ColumnLabel):
            frame = columns(found, names, released.features, cohort)
        else:
            sources.check_columns(found, names, Split())
            told = history(found, names, as_of, cohort, treaty.retention_days)
            frame = told.to_pyarrow().to_pandas().rename(columns={"customer": CUSTOMER})
        if frame.empty:
            raise InputError(
                f"no customer with an order before {as_of} consents to {released.purpose}"
                if isinstance(label, ChurnLabel)
                else f"no customer in the table consents to {released.purpose}",
                remedy="look at --as-of, and at `foedus consent counts`",
            )
        if isinstance(label, ChurnLabel):
            latest = _latest(found, released, label, as_of)
    values, codes = measured(frame, released.features, names)
    learned = np.array(released.learned, dtype=np.float64)
    inputs = statistics.inputs(values, codes, released.features, learned)
    logits = models.scores(released.model, np.array(released.weights, dtype=np.float64), inputs)
    scored = pd.DataFrame({"customer": frame[CUSTOMER].astype("str"), "score": _probability(logits)})
    if isinstance(label, ColumnLabel):  # a customer may have several rows
        scored = scored.groupby("customer")["score"].mean().reset_index()
    scored = scored.sort_values(["score", "customer"], ascending=[False, True], ignore_index=True)
    return Scored(scored, released.purpose, as_of, _meaning(label), latest)


def _latest(orders: ibis.Table, released: ReleasedModel, label: ChurnLabel, as_of: date) -> date:
    latest = last_order(orders, released.table, as_of)
    if latest < as_of - timedelta(days=label.horizon_days):
        raise InputError(
            f"the last order before {as_of} is of {latest}: everybody would look gone for {label.horizon_days} days or more",
            remedy="bring the table up to date, or score as of an earlier day",
        )
    return latest


def _meaning(label: ChurnLabel | ColumnLabel) -> str:
    """What a score is the probability of."""
    if isinstance(label, ColumnLabel):
        return question(label)
    return f"no order in {label.horizon_days} days"


def score_to(home: Home, model: Path, as_of: date, out: Path) -> Scored:
    """Score with a released model into a new .csv or .parquet file; an existing one is not overwritten.

    Raises:
        InputError, VerificationError, Refused: see `load_model` and `score`; then nothing is written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: not a {' or '.join(SUFFIXES)} file")
    if out.exists():
        raise InputError(f"{out}: exists already", remedy="choose another --out, or move it away")
    treaty_envelope, treaty = treaties.load(home.path / "treaty.json")
    treaty.party(home.party)
    envelope, released = load_model(model, treaty)
    _require_in_use(home, released)
    scored = score(home, released, as_of, treaty)
    AuditLog(home.path / "audit.db", f"foedus node {home.party}").append(
        home.party,
        "scored",
        released.study,
        {"model": envelope.digest, "as_of": as_of.isoformat(), "customers": len(scored.frame)},
    )
    note_scoring(home, treaty_envelope.digest, envelope, scored.frame["customer"].tolist())
    Outputs(home.path / "rights.db").note(out, "customer", released.purpose, datetime.now(UTC))
    _write(scored.frame, out)
    return scored


def _require_in_use(home: Home, released: ReleasedModel) -> None:
    rights = home.path / "rights.db"
    if rights.exists() and Erasures(rights).retired(released.study, released.run):
        raise Refused(
            "MODEL_RETIRED",
            f"the model of run {released.run} was retired: a customer it was trained on had their data erased",
            remedy="use the model that was trained again: foedus rights models",
        )


def _probability(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def _write(frame: pd.DataFrame, out: Path) -> None:
    """The file names customers: mode 0600."""
    buffer = io.BytesIO()
    if out.suffix.lower() == ".csv":
        frame.to_csv(buffer, index=False)
    else:
        frame.to_parquet(buffer, index=False)
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error

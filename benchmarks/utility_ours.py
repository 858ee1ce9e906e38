"""foedus' side of the utility benchmark: real studies, rehearsed in one process; the only file here that knows our API.

A rehearsal adds up the same integers as the secure sum: same clipping, rounding, noise shares and ring. The
distributed arm is a study with every default; ε covers scaling, curvature, training and evaluation. The
federated arm is the same without noise and without clipping, given more rounds: what federation alone costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from utility_data import Floats, Integers, Problem, Side

from foedus.clients.rehearsal import Outcome, Silo, rehearse
from foedus.compliance.treaty import Approver, Coordinator, Overlap, Party, Person, PurposeTerms, Treaty
from foedus.documents import SigningKey
from foedus.federation import models
from foedus.federation.fitting import resolve
from foedus.federation.pricing import price
from foedus.federation.schema import AnyFeature, CategoryColumn, ColumnLabel, NumberColumn, Split, Table
from foedus.federation.study import Draft, DraftPrivacy, Model, Study, Training
from foedus.federation.tasks import statistics
from foedus.privacy.noise import Keystream

PURPOSE = "dpv:CustomerRelationshipManagement"
DELTA = 1e-5
_NAMES = {"LR": "logistic_regression", "MLP": "mlp"}
_OPTIMISERS = {"LR": "fixed_hessian", "MLP": "adam"}
_FREE = {"LR": {"rounds": 40, "clip": 1.0, "curvature_clip": 1.0}, "MLP": {"rounds": 250, "clip": 10.0}}
"""Without noise: logistic gradients and rows never reach √(inputs + 1); the MLP's not ten times that."""


def treaty(silos: int) -> Treaty:
    """Partners of which one may collude with the server, and one may fall silent (where three or more are left)."""
    names = [f"silo-{i:02}" for i in range(silos)]
    return Treaty(
        name="utility",
        version=1,
        parties=tuple(
            Party(name=n, signing_key=SigningKey.generate().public, node_key=f"none: {n}") for n in names
        ),
        coordinator=Coordinator(origin="coordinator.example/log", signing_key=SigningKey.generate().public),
        scientists=(Person(name="dana", signing_key=SigningKey.generate().public),),
        approvers=(Approver(name="bianca", signing_key=SigningKey.generate().public, level="business"),),
        approval_chain=("business",),
        purposes=(PurposeTerms(purpose=PURPOSE, epsilon=100.0, delta=DELTA),),
        min_silos=max(3, silos - 1),
        min_cohort=1,
        max_cohort=20_000,
        colluders=1,
        overlap=Overlap(max_partners_per_customer=1, attestation="every customer is dealt to one silo"),
    )


def _column(name: str) -> str:
    return name.replace(".", "_")


def draft(problem: Problem, kind: str, epsilon: float, seed: int, **training: Any) -> Draft:
    """A study of the problem in which all but the optimiser is left at its default."""
    features: tuple[AnyFeature, ...] = (
        *(NumberColumn(column=_column(name)) for name in problem.numbers),
        *(CategoryColumn(column=_column(name), levels=levels) for name, levels in problem.levels.items()),
    )
    return Draft(
        title=problem.name,
        author="dana",
        purpose=PURPOSE,
        table=Table(name="customers"),
        split=Split(by="column"),
        label=ColumnLabel(column="label of it", positive="1"),
        features=features,
        model=Model.model_validate({"kind": _NAMES[kind], "seed": seed}),
        training=Training.model_validate({"optimiser": _OPTIMISERS[kind], **training}),
        privacy=DraftPrivacy(epsilon=epsilon, delta=DELTA),
    )


def silos(problem: Problem, study: Study, agreed: Treaty) -> dict[str, Silo]:
    """A table a silo: customer, panel, label and the raw columns."""
    sides = []
    for panel, side in (("train", problem.train), ("test", problem.test)):
        frame = side.frame.rename(columns=_column).assign(
            **{"panel": panel, "label of it": side.labels.astype(str), "silo of it": side.silos}
        )
        frame["customer"] = [f"{panel}-{i:06}" for i in range(len(frame))]
        sides.append(frame)
    whole = pd.concat(sides, ignore_index=True)
    return {
        party.name: Silo.of_frame(whole[whole["silo of it"] == i].drop(columns="silo of it"), study, agreed)
        for i, party in enumerate(agreed.parties)
    }


def _silent(sigma: int, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
    return np.zeros(size, np.int64)


def _scored(study: Study, outcome: Outcome, tables: dict[str, Silo]) -> tuple[Floats, Side]:
    """Scores of all test customers, and who they are, silo by silo."""
    found, labels, places = [], [], []
    for place, silo in enumerate(tables.values()):
        raw = silo.dataset("test")
        inputs = statistics.inputs(raw.values, raw.codes, study.features, outcome.state.statistics)
        found.append(models.scores(study.model, outcome.weights, inputs))
        labels.append(raw.labels)
        places.append(np.full(len(raw.labels), place, np.int64))
    whole: tuple[Floats, Integers, Integers] = tuple(map(np.concatenate, (found, labels, places)))  # type: ignore[assignment]
    return whole[0], Side(pd.DataFrame(), whole[1], whole[2])


def distributed(problem: Problem, kind: str, epsilon: float, seed: int) -> tuple[Floats, Side, float]:
    """Scores of the test customers, who they are, and what the study costs at most (its least set of silos)."""
    agreed = treaty(problem.silos)
    study = resolve(draft(problem, kind, epsilon, seed), agreed, "0" * 64)
    tables = silos(problem, study, agreed)
    outcome = rehearse(study, agreed, tables)
    spent = price(study, agreed)
    assert spent <= epsilon, f"{spent} was spent where {epsilon} was asked for"
    return *_scored(study, outcome, tables), spent


def federated(problem: Problem, kind: str, seed: int) -> tuple[Floats, Side]:
    """The same sums without noise and without clipping: not private."""
    agreed = treaty(problem.silos)
    study = resolve(draft(problem, kind, 100.0, seed, **_FREE[kind]), agreed, "0" * 64)
    tables = silos(problem, study, agreed)
    return _scored(study, rehearse(study, agreed, tables, sampler=_silent), tables)

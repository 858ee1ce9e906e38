"""The demo's report: one HTML file that a partner's officer can read, print, archive and check against.

It loads nothing and runs nothing: style and drawings are in it, and its policy forbids the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..compliance.treaty import Document
from ..federation.schema import question
from . import plots, screen
from .result import Result, Round

CHECKS = {
    "bundle": "Every file in the evidence is the one the coordinator signed for; none was added or lost.",
    "treaty": "Every partner signed the treaty that the study ran under.",
    "study": "Its author signed the study, and the treaty permits its purpose, ε, δ and noise.",
    "approvals": "Everyone the treaty asks had approved before the start, and nobody their own study.",
    "audit log": "No entry of the log was changed or removed, a quorum of nodes signed its head, and the steps were in the right order.",
    "keys": "The encryption keys are the partners' own, made for this study and this run.",
    "rounds": "In every round enough silos took part, all were told the same, and its sum is in the log.",
    "epsilon": "The privacy cost, recomputed from the noise and the silos there really were, is allowed.",
    "release": "The model and its metrics follow from the noisy sums and from nothing else.",
    "receipts": "Every node that answered at the end states what it paid, and that it saw this very log.",
}
"""Name of a check of `foedus verify` -> what it means that it holds."""


def write(result: Result, path: Path) -> None:
    """Write the report on `result` to `path`, an HTML file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": screen.figure, "amount": screen.amount, "count": lambda n: f"{n:,}"}
    page = environment.get_template("report.html.j2").render(_content(result, path.absolute().parent))
    path.write_text(page, encoding="utf-8")


def _finalize(value: Any) -> Any:
    """Text from elsewhere without control characters; jinja escapes the rest."""
    return screen.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _content(result: Result, home: Path) -> dict[str, Any]:
    kinds = screen.in_order({kind: (0, 0) for p in result.partners for kind in p.sent})
    return {
        "result": result,
        "headline": screen.headline(result),
        "losses": screen.losses(result),
        "alone": screen.alone(result),
        "estimate": screen.estimate(result),
        "rounds_line": screen.rounds(result),
        "privacy_line": screen.privacy(result),
        "unit": result.treaty.unit,
        "cap": result.treaty.terms(result.study.purpose),
        "fate": screen.fate,
        "differences": [screen.difference(row, result.rows) for row in result.rows],
        "reasons": list(screen.exclusions(result.partners)),
        "kinds": [(kind, screen.KINDS.get(kind, "")) for kind in kinds],
        "meaning": _meaning(result),
        "least": _least(result),
        "checks": [(check, CHECKS.get(check.name, "")) for check in result.checks],
        "parameters": _parameters(result),
        "treaty_terms": _treaty(result),
        "absentees": [_absentees(r, [p.name for p in result.partners]) for r in result.rounds],
        "seconds": sum(seconds for _, seconds in result.phases),
        "files": [
            (label, min(os.path.relpath(p, home), str(p), key=len)) for label, p in result.files.items()
        ],
        # SAFETY: plots escapes every name it draws; the rest is its own or matplotlib's.
        "svg": {
            name: Markup(draw(result))  # noqa: S704
            for name, draw in (
                ("learning", plots.learning_curve),
                ("roc", plots.roc),
                ("spending", plots.spending),
                ("lineage", plots.lineage),
            )
        },
    }


def _meaning(result: Result) -> list[str]:
    """ε in three sentences for somebody who has to answer for it."""
    treaty, terms = result.treaty, result.study.privacy
    cap = treaty.terms(result.study.purpose)
    silos = "1 silo" if treaty.colluders == 1 else f"{treaty.colluders} silos"
    bound = (
        "For any one customer, whatever anyone could conclude from what this study released is at most "
        f"e^ε = {math.exp(result.epsilon):.2f} times as likely, plus a chance of δ = {terms.delta:g}, "
        "as it would be had that customer's records not been used."
    )
    reach = (
        f"The bound is for the worst case, against the server and up to {silos} pooling all they know, "
        f"and for {treaty.unit}; what further studies cost is added to it in every node's own ledger, "
        f"which refuses beyond {cap.epsilon:g} {cap.lasting}."
    )
    limit = (
        "It does not say that nothing is learned about customers in general, which is what the model is "
        "for, and it says nothing about what a partner does with its own data."
    )
    return [bound, reach, limit]


def _parameters(result: Result) -> list[tuple[str, str]]:
    study = result.study
    label, model = study.label, study.model
    kind = model.kind.replace("_", " ") + (f", {model.hidden} hidden" if model.kind == "mlp" else "")
    split = f"by {study.split.by}" + (
        f", {study.split.train:g} for training" if study.split.by == "hash" else ""
    )
    plans = {task: study.round(study.tasks.index(task) + 1, result.treaty) for task in study.tasks}
    noise = "; ".join(f"{task} {p.sigma:,} at scale 2^{p.scale_bits}" for task, p in plans.items())
    return [
        ("Title", study.title),
        ("Author", study.author),
        ("Purpose", study.purpose),
        ("Data", result.source),
        ("Question", question(label)),
        ("Test customers", f"apart from the training customers, {split}"),
        (
            "Features",
            ", ".join(f.called + (" (log)" if getattr(f, "log", False) else "") for f in study.features),
        ),
        ("Model", f"{kind}; {study.parameters} weights"),
        ("Training", _settings(study.training)),
        ("Evaluation", _settings(study.evaluation)),
        ("Noise", f"{study.privacy.mode.name}; σ of one noise: {noise}"),
        (
            "Limits",
            f"ε ≤ {study.privacy.epsilon:g} at δ = {study.privacy.delta:g} for {result.treaty.unit}",
        ),
        ("Digest", result.study_digest),
    ]


def _settings(document: Document) -> str:
    """All that a part of the study says, word for word."""
    said = document.model_dump(exclude_none=True).items()
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in said
    )


def _treaty(result: Result) -> list[tuple[str, str]]:
    treaty = result.treaty
    cap = treaty.terms(result.study.purpose)
    return [
        ("Treaty", f"{treaty.name}, version {treaty.version}"),
        ("Parties", ", ".join(p.name for p in treaty.parties)),
        ("Approval chain", ", ".join(treaty.approval_chain)),
        ("Cap for this purpose", cap.budget),
        (
            "Silos",
            f"{_least(result)} at least in every sum, {treaty.colluders} of them may collude",
        ),
        ("Cohort", f"{treaty.min_cohort:,} customers of a silo at least"),
        ("Retention", f"{treaty.retention_days} days"),
        ("Unit of privacy", treaty.basis),
        ("Digest", result.treaty_digest),
    ]


def _least(result: Result) -> int:
    """How many silos must be left for a sum to be opened."""
    return result.treaty.threshold


def _absentees(summed: Round, partners: Sequence[str]) -> str:
    return ", ".join(name for name in partners if name not in summed.survivors)

"""The five reports: which sentences, in which order, under which headings of the law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from . import statements as says
from .answers import judgement
from .sentences import Block, answers, bullets, choices, heading, items, note, paragraph, risks
from .sources import Sources

Answers = Mapping[str, Any]
_RISKS = tuple(
    f"risk.{name}" for name in ("inference", "collusion", "breach", "purpose", "unfair", "consent")
)
_TRIGGERS = tuple(f"art55.{name}" for name in ("sensitive", "automated", "shared", "abroad", "other"))
_CRITERIA = tuple(
    f"wp.{name}"
    for name in (
        *("scoring", "automated", "monitoring", "sensitive", "scale"),
        *("matching", "vulnerable", "innovative", "prevents"),
    )
)


@dataclass(frozen=True)
class Outline:
    """A kind of report: what it asks people, and its blocks."""

    questions: tuple[str, ...]
    blocks: Callable[[Sources, Answers], list[Block]]
    years: int
    """How many years it is to be kept at least."""
    public: bool = False
    """Whether it goes out to others: then it cites no node's own log."""


def _asked(said: Answers, *questions: str) -> Block:
    return answers(*(judgement(question, said) for question in questions))


def _about(s: Sources) -> list[Block]:
    more = [note("marks_node"), note("own_counts")] if s.node else [note("no_node")]
    return [
        says.cover(s),
        heading("about"),
        paragraph(note("how_to_read"), note("verified")),
        paragraph(note("not_shown"), *more),
    ]


def _subject(s: Sources) -> list[Block]:
    return [
        heading("parties", 2),
        paragraph(says.study(s), says.treaty(s), says.coordinator(s)),
        paragraph(*says.run(s)),
    ]


def _data(s: Sources) -> list[Block]:
    return [
        heading("data", 2),
        paragraph(*says.columns(s)),
        paragraph(says.window(s), says.cohort_rule(s), *says.categories(s), *says.at_node(s)),
    ]


def _method(s: Sources) -> list[Block]:
    found = [
        heading("method", 2),
        paragraph(note("how_federated"), note("how_consent")),
        paragraph(says.sums(s)),
        says.sums_by_task(s),
    ]
    if (sent := says.sent(s)) is not None:
        found += [heading("sent", 2), sent]
    found += _used(s)
    return found


def _used(s: Sources) -> list[Block]:
    used = says.scored(s)
    return [] if used is None else [heading("scored", 2), paragraph(note("local_use")), used]


def _approvals(s: Sources) -> list[Block]:
    said, table = says.approvals(s)
    return [heading("approvals", 2), paragraph(note("how_approved"), *said), table]


def _measures(s: Sources) -> list[Block]:
    """What the logs show of protection, in one list."""
    return [
        heading("measures_logged", 2),
        bullets(
            says.threshold(s),
            says.sums(s),
            *says.noise(s),
            says.declared(s),
            says.spent(s),
            *says.unit(s),
            says.budget(s),
            *says.ledger(s),
        ),
        paragraph(note("how_budget"), note("how_log")),
    ]


# ── PIPIA ────────────────────────────────────────────────────────────────────────────────────────


def _pipia(s: Sources, said: Answers) -> list[Block]:
    released = says.released(s)
    shows = {
        "art55.sensitive": says.categories(s),
        "art55.automated": [says.inputs(s)],
        "art55.shared": [says.coordinator(s), says.mode(s), released[0]],
        "art55.abroad": [],
        "art55.other": [],
    }
    return [
        *_about(s),
        paragraph(note("pipl_55"), note("pipl_56"), note("pipl_retention")),
        _asked(said, "controller", "officer", "period", "context"),
        heading("triggers"),
        choices(["case", "evidence", "assessment"], [(judgement(q, said), shows[q]) for q in _TRIGGERS]),
        heading("subject"),
        *_subject(s),
        *_data(s),
        paragraph(note("pipl_minors"), note("masking_not_logged")),
        _asked(said, "people", "categories", "masking"),
        *_method(s),
        heading("necessity_pipl"),
        paragraph(says.purpose(s), says.budget(s)),
        _asked(said, "pipl_basis", "pipl_legitimate", "pipl_necessary"),
        *_approvals(s),
        heading("impact_pipl"),
        paragraph(says.spent(s), *says.unit(s), says.odds(s)),
        paragraph(note("what_epsilon"), note("what_epsilon_is_not"), note("model_is_personal")),
        _asked(said, "pipl_impact"),
        paragraph(note("pipl_risk_scale")),
        risks(*(judgement(q, said) for q in _RISKS)),
        heading("measures_pipl"),
        *_measures(s),
        _asked(said, "rights", "storage", "pipl_effective", "pipl_plan"),
        heading("conclusion"),
        _asked(said, "pipl_conclusion"),
        paragraph(note("keep")),
    ]


# ── DPIA ─────────────────────────────────────────────────────────────────────────────────────────


def _dpia(s: Sources, said: Answers) -> list[Block]:
    shows = {
        "wp.scoring": [says.columns(s)[1]],
        "wp.sensitive": says.categories(s),
        "wp.scale": [says.cohort_rule(s), *says.at_node(s)[1:2]],
        "wp.matching": [says.treaty(s)],
        "wp.innovative": [says.mode(s)],
    }
    return [
        *_about(s),
        paragraph(note("gdpr_35"), note("gdpr_36")),
        _asked(said, "controller", "officer"),
        heading("wp248"),
        paragraph(note("gdpr_wp248")),
        choices(
            ["criterion", "evidence", "assessment"],
            [(judgement(q, said), shows.get(q, [])) for q in _CRITERIA],
        ),
        heading("description_gdpr"),
        _asked(said, "context"),
        heading("purpose", 2),
        paragraph(says.purpose(s), says.budget(s)),
        *_subject(s),
        *_data(s),
        paragraph(note("masking_not_logged")),
        _asked(said, "people", "categories", "masking"),
        *_method(s),
        _asked(said, "storage", "gdpr_processors"),
        heading("necessity_gdpr"),
        _asked(said, "gdpr_basis", "gdpr_necessary", "gdpr_proportionate", "rights"),
        *_approvals(s),
        heading("risks_gdpr"),
        paragraph(says.spent(s), *says.unit(s), says.odds(s)),
        paragraph(note("what_epsilon"), note("what_epsilon_is_not"), note("model_is_personal")),
        risks(*(judgement(q, said) for q in _RISKS)),
        heading("measures_gdpr"),
        *_measures(s),
        _asked(said, "gdpr_measures"),
        heading("advice"),
        _asked(said, "gdpr_advice", "gdpr_views"),
        heading("decision"),
        paragraph(note("gdpr_review")),
        _asked(said, "gdpr_decision", "gdpr_next"),
        paragraph(note("keep")),
    ]


# ── record of processing ─────────────────────────────────────────────────────────────────────────


def _ropa(s: Sources, said: Answers) -> list[Block]:
    def asked(*questions: str) -> list[dict[str, Any]]:
        return [judgement(question, said) for question in questions]

    approved, table = says.approvals(s)
    found = [
        *_about(s),
        paragraph(note("gdpr_30"), note("gdpr_30_pipl")),
        heading("subject"),
        *_subject(s),
        heading("controller"),
        items(
            [
                ("30_1_a", asked("controller", "representative", "officer")),
                ("30_1_b", [says.purpose(s), *asked("context")]),
                (
                    "30_1_c",
                    [
                        *says.columns(s)[:3],
                        *says.categories(s),
                        *says.at_node(s)[1:],
                        *asked("people", "categories"),
                    ],
                ),
                ("30_1_d", [says.coordinator(s), says.treaty(s), says.released(s)[0], *asked("recipients")]),
                ("30_1_e", asked("transfers")),
                ("30_1_f", [says.window(s), *asked("erasure")]),
                (
                    "30_1_g",
                    [
                        says.threshold(s),
                        *says.noise(s)[:1],
                        says.spent(s),
                        *says.unit(s)[:1],
                        *asked("security"),
                    ],
                ),
            ]
        ),
        *_used(s),
        heading("approvals", 2),
        paragraph(note("how_approved"), *approved),
        table,
    ]
    if (sent := says.sent(s)) is not None:
        found += [heading("sent", 2), sent]
    return [
        *found,
        heading("processor"),
        items(
            [
                ("30_2_a", [says.coordinator(s), says.treaty(s), *asked("processor")]),
                ("30_2_b", [note("how_federated"), says.sums(s)]),
                ("30_2_c", [says.mode(s), says.threshold(s), note("how_log"), *asked("processor_security")]),
            ]
        ),
        says.sums_by_task(s),
        paragraph(note("keep")),
    ]


# ── model card ───────────────────────────────────────────────────────────────────────────────────


def _card(s: Sources, said: Answers) -> list[Block]:
    rule, released = says.released(s)
    metrics = says.metrics(s)
    return [
        *_about(s),
        heading("details"),
        paragraph(says.study(s), says.treaty(s)),
        paragraph(*says.model(s), rule),
        *([released] if released else []),
        _asked(said, "owner"),
        heading("intended"),
        paragraph(says.purpose(s), says.columns(s)[1], note("local_use")),
        _asked(said, "use"),
        heading("not_for"),
        paragraph(note("out_of_scope"), note("no_decision_alone")),
        _asked(said, "misuse"),
        heading("training_data"),
        paragraph(*says.columns(s), says.window(s)),
        paragraph(says.cohort_rule(s), says.run(s)[1], note("how_consent"), note("counts_withheld")),
        heading("evaluation"),
        *([metrics, paragraph(note("metrics_noise"))] if metrics else [paragraph(rule)]),
        heading("privacy"),
        bullets(says.spent(s), *says.unit(s), says.odds(s), *says.noise(s), says.threshold(s)),
        paragraph(note("what_epsilon"), note("what_epsilon_is_not"), note("model_is_personal")),
        heading("fairness"),
        paragraph(note("fairness_not_measured")),
        _asked(said, "fairness"),
        heading("caveats"),
        paragraph(note("composes")),
        _asked(said, "upkeep"),
    ]


# ── ε statement ──────────────────────────────────────────────────────────────────────────────────


def _epsilon(s: Sources, said: Answers) -> list[Block]:
    by_party, silent = says.receipts(s)
    return [
        *_about(s),
        _asked(said, "issuer"),
        heading("subject"),
        paragraph(says.study(s), says.treaty(s), says.purpose(s)),
        paragraph(*says.run(s)),
        heading("spent"),
        paragraph(says.spent(s), *says.unit(s)),
        paragraph(says.odds(s)),
        heading("lifetime"),
        paragraph(says.budget(s), says.declared(s), *says.ledger(s), note("composes")),
        heading("by_party"),
        paragraph(silent),
        by_party,
        heading("how_made"),
        paragraph(*says.noise(s), says.threshold(s), says.sums(s)),
        says.sums_by_task(s),
        heading("meaning"),
        paragraph(note("what_epsilon")),
        paragraph(note("what_epsilon_is_not"), note("model_is_personal")),
    ]


OUTLINES = {
    "model-card": Outline(("owner", "use", "misuse", "fairness", "upkeep"), _card, 3, public=True),
    "pipia": Outline(
        (
            *("controller", "officer", "period", "context"),
            *_TRIGGERS,
            *(
                "people",
                "categories",
                "masking",
                "pipl_basis",
                "pipl_legitimate",
                "pipl_necessary",
                "pipl_impact",
            ),
            *_RISKS,
            *("rights", "storage", "pipl_effective", "pipl_plan", "pipl_conclusion"),
        ),
        _pipia,
        3,
    ),
    "dpia": Outline(
        (
            *("controller", "officer"),
            *_CRITERIA,
            *("context", "people", "categories", "masking", "storage", "gdpr_processors", "gdpr_basis"),
            *("gdpr_necessary", "gdpr_proportionate", "rights"),
            *_RISKS,
            *("gdpr_measures", "gdpr_advice", "gdpr_views", "gdpr_decision", "gdpr_next"),
        ),
        _dpia,
        3,
    ),
    "ropa": Outline(
        (
            *("controller", "representative", "officer", "context", "people", "categories", "recipients"),
            *("transfers", "erasure", "security", "processor", "processor_security"),
        ),
        _ropa,
        3,
    ),
    "epsilon": Outline(("issuer",), _epsilon, 3),
}
"""Kind -> outline; questions in the order in which they are asked."""


def outline(kind: str) -> Outline:
    """The outline of a kind.

    Raises:
        InputError: there is no such report.
    """
    if kind not in OUTLINES:
        raise InputError(f"no report {kind!r}", remedy=f"there are: {', '.join(OUTLINES)}")
    return OUTLINES[kind]

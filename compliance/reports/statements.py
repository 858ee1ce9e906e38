"""The facts that reports share: each function reads the entries it needs and states what they say."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import VerificationError
from . import sentences
from .sentences import Block, Reading, Sentence, Value, fact, of, one, rows
from .sources import LEDGER, METRICS, MODEL, STUDY, TREATY, Entry, Path, Sources


def _study(sources: Sources, *path: str | int) -> Value:
    return one(sources.submitted, *path, document=STUDY)


def _treaty(sources: Sources, *path: str | int) -> Value:
    return one(sources.submitted, *path, document=TREATY)


def _place(path: Path, sources: Sources, document: str = TREATY) -> Reading:
    return Reading(sources.submitted, path, document)


def _readings(entries: Sequence[Entry], *path: str | int) -> list[Reading]:
    return [Reading(entry, path) for entry in entries]


# ── what and who ─────────────────────────────────────────────────────────────────────────────────


def cover(s: Sources) -> Block:
    """What the first page names: the study, and the party whose log is cited."""
    lines = {"study": fact(s, "cover_study", title=_study(s, "title"))}
    if accepted := s.own("study.accepted"):
        lines["party"] = fact(s, "cover_party", party=one(accepted[0], "actor"))
    return sentences.cover(lines)


def study(s: Sources) -> Sentence:
    return fact(
        s,
        "study",
        title=_study(s, "title"),
        author=_study(s, "author"),
        study=one(s.submitted, "subject"),
        time=one(s.submitted, "time"),
    )


def treaty(s: Sources) -> Sentence:
    parties = [_place(("parties",), s)]
    return fact(
        s,
        "treaty",
        name=_treaty(s, "name"),
        version=_treaty(s, "version"),
        n=of("length", parties),
        parties=of("names", parties),
    )


def coordinator(s: Sources) -> Sentence:
    return fact(s, "coordinator", origin=_treaty(s, "coordinator", "origin"))


def purpose(s: Sources) -> Sentence:
    return fact(s, "purpose", purpose=_study(s, "purpose"))


def budget(s: Sources) -> Sentence:
    place = [p.purpose for p in s.treaty.purposes].index(str(s.documents[STUDY].payload["purpose"]))
    at = {name: _treaty(s, "purposes", place, name) for name in ("epsilon", "delta", "period")}
    return fact(s, "budget", **at)


def declared(s: Sources) -> Sentence:
    return fact(s, "declared", epsilon=_study(s, "privacy", "epsilon"), delta=_study(s, "privacy", "delta"))


def run(s: Sources) -> list[Sentence]:
    """Its start, its parties, its end."""
    silos = [
        Reading(e, ("details", "survivors", i))
        for e in _sums(s)
        for i in range(len(e.record["details"]["survivors"]))
    ]
    return [
        fact(s, "started", run=one(s.started, "details", "run"), time=one(s.started, "time")),
        fact(s, "took_part", silos=of("each", silos)),
        fact(s, "ended", time=one(s.last, "time")),
    ]


# ── approvals ────────────────────────────────────────────────────────────────────────────────────


def _approved(s: Sources) -> list[tuple[Entry, str]]:
    """The entries of approvals before the start, each with the document whose digest it has."""
    by_digest = {d.digest: name for name, d in s.documents.items() if name.startswith("approval of ")}
    return [
        (entry, by_digest[entry.record["details"]["approval"]])
        for entry in s.mine("study.approved")
        if entry.index < s.started.index and entry.record["details"].get("approval") in by_digest
    ]


def approvals(s: Sources) -> tuple[list[Sentence], Block]:
    """Who had to approve and how many did; and a table of those who did.

    Raises:
        VerificationError: the log has the digest of no approval.
    """
    given = _approved(s)
    if not given:
        raise VerificationError(
            "the log's entries name no approval by its digest",
            remedy="the server is older than this foedus: its reports can't cite approvals",
        )
    who = [Reading(entry, ("approver",), document) for entry, document in given]
    said = [
        fact(s, "chain", levels=of("each", _levels(s))),
        fact(s, "approvals", s.started, n=of("count", who), own=of("same", [_author(s), *who])),
        fact(s, "approved_for", purpose=of("is", [Reading(e, ("purpose",), d) for e, d in given])),
    ]
    lines = [
        fact(
            s,
            "approval",
            **{
                name: one(entry, name, document=document)
                for name in ("approver", "level", "party", "time", "epsilon", "expires")
            },
        )
        for entry, document in given
    ]
    return said, rows(["approver", "level", "party", "signed", "up_to", "until"], lines)


def _author(s: Sources) -> Reading:
    return Reading(s.submitted, ("author",), STUDY)


def _levels(s: Sources) -> list[Reading]:
    return [_place(("approval_chain", i), s) for i in range(len(s.treaty.approval_chain))]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def columns(s: Sources) -> list[Sentence]:
    """Which columns are read, what is predicted, from what, and who is on which side."""
    plan = s.documents[STUDY].payload
    churn = plan["label"]["kind"] == "churn"
    read = ("customer", "date", "amount") if churn else ("customer",)
    found = [
        fact(
            s,
            "columns_orders" if churn else "columns_table",
            table=_study(s, "table", "name"),
            **{name: _study(s, "table", name) for name in read},
        )
    ]
    if churn:
        found.append(
            fact(
                s,
                "label_churn",
                days=_study(s, "label", "horizon_days"),
                train=_study(s, "label", "train_as_of"),
                test=_study(s, "label", "test_as_of"),
            )
        )
    else:
        names = {name: _study(s, "label", name) for name in ("column", "positive")}
        found.append(fact(s, "label_column", **names))
    found.append(inputs(s))
    split = plan["split"]["by"]
    name = {"hash": "train", "column": "column"}[split]
    found.append(fact(s, f"split_{split}", **{name: _study(s, "split", name)}))
    return found


def inputs(s: Sources) -> Sentence:
    features = s.documents[STUDY].payload["features"]
    called = [
        _place(("features", i, "name" if "name" in feature else "column"), s, STUDY)
        for i, feature in enumerate(features)
    ]
    return fact(s, "inputs", n=of("length", [_place(("features",), s, STUDY)]), features=of("each", called))


def window(s: Sources) -> Sentence:
    return fact(s, "window", days=_treaty(s, "retention_days"))


def cohort_rule(s: Sources) -> Sentence:
    return fact(s, "cohort_rule", least=_treaty(s, "min_cohort"), most=_treaty(s, "max_cohort"))


def at_node(s: Sources) -> list[Sentence]:
    """What the node's own log says of the people concerned; nothing without a node."""
    accepted, cohorts = s.own("study.accepted"), s.own("cohort")
    found = []
    if accepted:
        entry = accepted[0]
        found.append(
            fact(
                s,
                "node_accepted",
                party=one(entry, "actor"),
                time=one(entry, "time"),
                epsilon=one(entry, "details", "epsilon"),
            )
        )
    if cohorts:
        sizes = _readings(cohorts, "details", "size")
        found.append(fact(s, "node_cohort", n=of("count", sizes), size=of("range", sizes)))
        held = ("details", "register")
        marks = {name: one(cohorts[-1], *held, name) for name in ("granted", "withdrawn")}
        found.append(fact(s, "node_register", **marks))
    return found


def categories(s: Sources) -> list[Sentence]:
    """The categories of personal data that consent was asked for, as the node's log has them."""
    cohorts = s.own("cohort")
    held = [
        Reading(entry, ("details", "categories", i))
        for entry in cohorts[-1:]
        for i in range(len(entry.record["details"]["categories"]))
    ]
    return [fact(s, "node_categories", categories=of("each", held))] if held else []


def sent(s: Sources) -> Block | None:
    """What the node sent while the run went on, by kind."""
    accepted = s.own("study.accepted")
    if not accepted or s.node is None:
        return None
    by_kind: dict[str, list[Entry]] = {}
    for entry in s.node.entries[accepted[0].index :]:
        if entry.record["action"] == "study.accepted" and entry not in accepted:
            break  # the next run's
        if entry.record["action"] == "sent":
            by_kind.setdefault(str(entry.record["subject"]), []).append(entry)
    if not by_kind:
        return None
    return rows(
        ["message", "messages", "bytes"],
        [
            fact(
                s,
                "node_sent",
                kind=of("is", _readings(entries, "subject")),
                n=of("count", _readings(entries, "subject")),
                bytes=of("sum", _readings(entries, "details", "bytes")),
            )
            for entries in by_kind.values()
        ],
    )


def scored(s: Sources) -> Block | None:
    """How often the released model was used at the node."""
    if s.node is None or not (used := s.node.find("scored", s.study)):
        return None
    return rows(
        ["time", "as_of", "customers"],
        [
            fact(
                s,
                "node_scored",
                time=one(e, "time"),
                as_of=one(e, "details", "as_of"),
                customers=one(e, "details", "customers"),
            )
            for e in used
        ],
    )


# ── protection ───────────────────────────────────────────────────────────────────────────────────


def _sums(s: Sources) -> list[Entry]:
    return s.mine("round.summed")


def threshold(s: Sources) -> Sentence:
    rule = [_place((name,), s) for name in ("parties", "colluders", "min_silos")]
    return fact(s, "threshold", threshold=of("threshold", rule), colluders=_treaty(s, "colluders"))


def sums(s: Sources) -> Sentence:
    survivors = _readings(_sums(s), "details", "survivors")
    return fact(s, "sums", n=of("count", survivors), least=of("fewest", survivors))


def sums_by_task(s: Sources) -> Block:
    by_task: dict[str, list[Entry]] = {}
    for entry in _sums(s):
        by_task.setdefault(str(entry.record["details"]["task"]), []).append(entry)
    lines = [
        fact(
            s,
            "sums_by_task",
            task=of("is", _readings(entries, "details", "task")),
            n=of("count", _readings(entries, "details", "task")),
            least=of("fewest", _readings(entries, "details", "survivors")),
        )
        for entries in by_task.values()
    ]
    return rows(["task", "sums", "least"], lines)


def noise(s: Sources) -> list[Sentence]:
    """Who adds it, how much, and how far one customer's part is bounded."""
    sigma = {task: _study(s, "privacy", f"sigma_{task}") for task in ("train", "evaluate")}
    return [
        fact(s, "mode", mode=_study(s, "privacy", "mode")),
        fact(s, "noise", **sigma),
        fact(s, "clip", clip=_study(s, "training", "clip")),
    ]


def mode(s: Sources) -> Sentence:
    return fact(s, "mode", mode=_study(s, "privacy", "mode"))


# ── ε ────────────────────────────────────────────────────────────────────────────────────────────


def _spent_at(s: Sources) -> tuple[list[Reading], list[Reading]]:
    """Where ε and δ of the run stand: in the releases, or if nothing is released in the receipts."""
    places = [(e, MODEL if e.record["details"]["file"] == "model.json" else METRICS) for e in s.released]
    if not places:
        places = _receipts(s)
    return (
        [Reading(entry, ("epsilon",), document) for entry, document in places],
        [Reading(entry, ("delta",), document) for entry, document in places],
    )


def spent(s: Sources) -> Sentence:
    epsilon, delta = _spent_at(s)
    return fact(s, "spent", epsilon=of("most", epsilon), delta=of("is", delta))


def odds(s: Sources) -> Sentence:
    epsilon, _ = _spent_at(s)
    return fact(s, "odds", odds=of("odds", epsilon[:1]))


def unit(s: Sources) -> list[Sentence]:
    """Whom ε is for, and what the parties attest of it."""
    overlap = ("overlap", "max_partners_per_customer")
    found = [fact(s, "unit", m=_treaty(s, *overlap), n=of("length", [_place(("parties",), s)]))]
    if s.treaty.overlap.attestation.strip():
        found.append(fact(s, "attested", attestation=_treaty(s, "overlap", "attestation")))
    return found


def _receipts(s: Sources) -> list[tuple[Entry, str]]:
    by_digest = {d.digest: name for name, d in s.documents.items() if name.startswith("receipt of ")}
    entries = [e for e in s.mine("receipt") if e.record["details"]["digest"] in by_digest]
    return [(e, by_digest[e.record["details"]["digest"]]) for e in entries]


def receipts(s: Sources) -> tuple[Block, Sentence]:
    """What each node signed; and which parties gave no receipt."""
    found = _receipts(s)
    lines = [
        fact(
            s,
            "receipt",
            silo=one(entry, "silo", document=document),
            epsilon=one(entry, "epsilon", document=document),
            rounds=of("length", [Reading(entry, ("rounds",), document)]),
            lines=one(entry, "details", "ledger", "size"),
        )
        for entry, document in found
    ]
    names = [Reading(entry, ("silo",), document) for entry, document in found]
    silent = fact(s, "no_receipt", silos=of("missing", [_place(("parties",), s), *names]))
    return rows(["silo", "paid", "rounds", "lines"], lines), silent


def ledger(s: Sources) -> list[Sentence]:
    """What the node's customers have paid for the purpose so far; nothing without its ledger."""
    if s.node is None or LEDGER not in s.documents:
        return []
    head = s.node.find("ledger.head")[-1]
    at = {name: one(head, name, document=LEDGER) for name in ("lines", "epsilon", "delta", "purpose")}
    return [fact(s, "node_ledger", party=one(head, "actor"), **at)]


# ── model ────────────────────────────────────────────────────────────────────────────────────────


def _release(s: Sources, document: str) -> Entry | None:
    file = document.removeprefix("release/")
    return next((e for e in s.released if e.record["details"]["file"] == file), None)


def model(s: Sources) -> list[Sentence]:
    """Its kind and size, if it was released, and how it was trained."""
    entry = _release(s, MODEL)
    found = []
    if entry is not None:
        kind = one(entry, "model", "kind", document=MODEL)
        found.append(fact(s, "model", kind=kind, n=of("length", [Reading(entry, ("weights",), MODEL)])))
    trained = [e for e in _sums(s) if e.record["details"]["task"] == "train"]
    found.append(
        fact(
            s,
            "training",
            optimiser=_study(s, "training", "optimiser"),
            n=of("count", _readings(trained, "details", "task")),
        )
    )
    return found


def released(s: Sources) -> tuple[Sentence, Block | None]:
    """The study's rule, and a table of what was released."""
    rule = fact(s, "release_rule", **{name: _study(s, "release", name) for name in ("model", "metrics")})
    lines = [
        fact(
            s,
            "released",
            file=one(e, "details", "file"),
            time=one(e, "time"),
            epsilon=one(e, "details", "epsilon"),
            digest=one(e, "details", "digest"),
        )
        for e in s.released
    ]
    return rule, rows(["file", "time", "paid", "digest"], lines) if lines else None


def metrics(s: Sources) -> Block | None:
    """The released metrics, with the error that the noise makes."""
    entry = _release(s, METRICS)
    if entry is None:
        return None

    def at(name: str) -> Value:
        return one(entry, "metrics", name, document=METRICS)

    lines = [
        fact(s, "auc", auc=at("auc"), error=at("auc_error")),
        fact(s, "pr_auc", value=at("pr_auc")),
        fact(s, "positives", value=at("churn_rate")),
        fact(s, "tested", value=at("customers")),
    ]
    return rows(["metric", "value"], lines)

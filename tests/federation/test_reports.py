"""Reports: what stands in one is in the logs, is said by a named person, or is law; whoever changes that is found."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.orders import make_draft, small_world

from foedus import cli
from foedus.compliance import evidence
from foedus.compliance.reports import OUTLINES, Sources, build, check, page, pdf
from foedus.compliance.reports.answers import checked, form, kind_of
from foedus.compliance.reports.sentences import derive, fact, one, sentences_of
from foedus.compliance.reports.sources import Log
from foedus.compliance.reports.wording import LANGUAGES, catalogue, placeholders, write
from foedus.demo.simulate import simulate
from foedus.documents import Envelope
from foedus.errors import FoedusError, InputError, VerificationError
from foedus.federation.study import DraftPrivacy, Release
from foedus.federation.verification import verify

from .conftest import GoodRun

Report = dict[str, Any]
EVERY = [(kind, language) for kind in OUTLINES for language in LANGUAGES]
DORA = {"name": "Dora Lin", "role": "data protection officer"}
NODE = "aster-music"


def sources_of(good: GoodRun) -> Sources:
    found = verify(good.run.evidence)
    return Sources.of_bundle(evidence.read(good.run.evidence)[1], found.study_digest, found.run)


@pytest.fixture(scope="module")
def sources(good: GoodRun) -> Sources:
    return sources_of(good)


@pytest.fixture(scope="module")
def home(good: GoodRun) -> Path:
    return good.world.homes[NODE]


@pytest.fixture(scope="module")
def both(sources: Sources, home: Path) -> Sources:
    """The bundle and a node's directory."""
    return sources.with_node(home, NODE)


def said(kind: str) -> dict[str, Any]:
    """An answer to each question of a report."""
    forms = {
        "text": "It is so.\nAnd for this reason.",
        "choice": {"answer": True, "reason": "It is so."},
        "risk": {"likelihood": "low", "severity": "high", "residual": "low", "reason": "It is so."},
    }
    answers = {question: forms[kind_of(question)] for question in OUTLINES[kind].questions}
    return {"report": kind, "by": DORA, "answers": answers}


def answered(kind: str) -> dict[str, Any]:
    return checked(said(kind), kind, OUTLINES[kind].questions)


def day(sources: Sources) -> date:
    return sources.ended.date() + timedelta(days=1)


@pytest.fixture(scope="module")
def made(both: Sources, sources: Sources) -> dict[tuple[str, str], tuple[Report, Sources]]:
    """Every report in every language, complete, and what it was made from."""
    found = {}
    for kind, language in EVERY:
        used = sources if OUTLINES[kind].public else both
        found[kind, language] = build(kind, used, answered(kind), language, day(used)), used  # type: ignore[arg-type]
    return found


Made = dict[tuple[str, str], tuple[Report, Sources]]


# ── good reports ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "language"), EVERY)
def test_every_report_passes_its_checker(made: Made, kind: str, language: str) -> None:
    report, used = made[kind, language]
    text = page.html(report)
    found = check(text, used)
    assert (found.kind, found.language, found.missing) == (kind, language, 0)
    assert found.facts > 20 and found.statements == len(OUTLINES[kind].questions)
    assert text == page.html(page.read(text))  # equal reports, equal bytes
    shown = re.sub(r"<style>.*?</style>|<script.*?</script>|<[^>]+>", "", text, flags=re.DOTALL)
    assert not re.search("anonym|匿名", shown.lower())
    assert "http" not in re.sub(r"http-equiv", "", text)  # it loads nothing


@pytest.mark.parametrize("kind", OUTLINES)
def test_both_languages_say_the_same_facts(made: Made, kind: str) -> None:
    english, chinese = (made[kind, language][0] for language in LANGUAGES)
    assert english["blocks"] == chinese["blocks"] and english["entries"] == chinese["entries"]


@pytest.mark.parametrize("kind", OUTLINES)
def test_without_answers_a_report_is_a_draft(sources: Sources, kind: str) -> None:
    report = build(kind, sources, {}, "en", day(sources))
    text = page.html(report)
    assert check(text, sources).missing == len(OUTLINES[kind].questions) == len(report["open"])
    assert "DRAFT" in text and "not to be signed" in text
    asked = [s["id"] for s in sentences_of(report["blocks"]) if s["kind"] == "judgement"]
    assert sorted(set(asked)) == sorted(OUTLINES[kind].questions)  # each question asked has its place


def test_a_report_says_what_the_run_was(made: Made, good: GoodRun) -> None:
    text = page.html(made["epsilon", "en"][0])
    epsilon = verify(good.run.evidence).epsilon
    shown = float(re.search(r"cost a customer ε = ([\d.]+)", text)[1])  # type: ignore[index]
    assert 0 <= shown - epsilon < 1e-4  # never rounded down
    for party in good.world.treaty.parties:
        assert party.name in text
    assert "up to m = 1 of the 4 parties" in text and good.world.treaty.overlap.attestation[:20] in text
    assert "Parties from which no signed receipt is in the evidence: none." in text


def test_own_counts_are_in_the_party_s_reports_only(made: Made, both: Sources) -> None:
    size = both.own("cohort")[0].record["details"]["size"]
    assert f"{size:,} consenting customers" in page.html(made["pipia", "en"][0])
    assert "Confidential" in page.html(made["pipia", "en"][0])
    assert all(e["log"] == "server" for e in made["model-card", "en"][0]["entries"])
    with pytest.raises(InputError, match="no place in it"):
        build("model-card", both, {}, "en", day(both))


def test_it_is_kept_for_three_years(sources: Sources) -> None:
    report = build("pipia", sources, {}, "zh", date(2028, 2, 29))
    assert report["keep_until"] == "2031-03-01"
    assert "2031 年 3 月 1 日" in page.html(report)


def test_a_report_is_not_older_than_its_run(sources: Sources) -> None:
    with pytest.raises(InputError, match="can't be about a run"):
        build("ropa", sources, {}, "en", sources.ended.date() - timedelta(days=1))


@pytest.mark.parametrize(("kind", "language"), [("ropa", "fr"), ("audit", "en")])
def test_unknown_reports_and_languages_are_refused(sources: Sources, kind: str, language: Any) -> None:
    with pytest.raises(InputError, match=r"there are|no report"):
        build(kind, sources, {}, language, day(sources))


def test_a_run_that_released_nothing_and_lost_a_silo(tmp_path: Path) -> None:
    """Local noise, no model, no metrics, and a silo without a receipt: the receipts say what was paid."""
    mode = DraftPrivacy.model_validate({"mode": "local", "epsilon": 4.0})
    draft = make_draft(rounds=1, privacy=mode, release=Release(model=False, metrics=False), trip_seconds=0.5)
    world = small_world(tmp_path / "world", draft)
    last = 100 + len(world.homes) - 1
    run = simulate(world, draft, drop=lambda node, kind, message: node == last and kind == "query.receipt")
    silent = list(world.homes)[-1]
    found = verify(run.evidence)
    sources = Sources.of_bundle(evidence.read(run.evidence)[1], found.study_digest, found.run)
    texts = {kind: page.html(build(kind, sources, {}, "en", day(sources))) for kind in OUTLINES}
    assert all(check(text, sources).facts for text in texts.values())
    assert f"no signed receipt is in the evidence: {silent}." in texts["epsilon"]
    assert (
        "cost a customer ε = " in texts["epsilon"] and "its metrics are released: no" in texts["model-card"]
    )
    assert "AUC" not in texts["model-card"] and "weights" not in re.sub(r"<script.*", "", texts["model-card"])
    assert "enough of it to protect its own contribution alone" in texts["dpia"]


def test_a_study_of_a_table_of_customers(sources: Sources) -> None:
    """The same log about a study whose label is a column."""
    old = sources.documents["study.json"]
    label = {"kind": "column", "column": "left", "positive": "yes"}
    features = [{"column": "income"}, {"column": "plan", "levels": ["a", "b"]}]
    study = Envelope("study", {**old.payload, "label": label, "features": features})
    bodies = [e.body.replace(old.digest, study.digest).encode() for e in sources.server.entries]
    named = {**sources.documents, "study.json": replace(old, digest=study.digest, payload=study.payload)}
    other = Sources(Log.of("server", sources.server.origin, bodies), named, study.digest, sources.run)
    text = page.html(build("model-card", other, {}, "en", day(other)))
    assert check(text, other).facts
    assert "whether the column “left” of a customer holds the value “yes”" in text
    assert (
        "inputs are 2 features: income, plan" in text and "the column “customer” names the customer" in text
    )


# ── changed reports ──────────────────────────────────────────────────────────────────────────────


def caught(text: str, sources: Sources) -> str:
    with pytest.raises((VerificationError, InputError)) as error:
        check(text, sources)
    return error.value.message


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_page_is_found(made: Made, data: st.DataObject) -> None:
    """Any character taken away, put in or changed, wherever on the page."""
    report, used = made["pipia", data.draw(st.sampled_from(LANGUAGES))]
    text = page.html(report)
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from(["", "1", "9", "不", "not ", "<b>", " ", "\u202e", text[at] * 2]))
    assume(put != text[at])
    caught(text[:at] + put + text[at + 1 :], used)


def drawn(report: Report, original: Report) -> str:
    """The page of a forged report; where it can't be drawn, the right page with the forged data in it."""
    try:
        return page.html(report)
    except (FoedusError, LookupError, TypeError, ValueError, AttributeError):
        data = json.dumps(report, ensure_ascii=False).replace("<", "\\u003c")
        right = page.html(original)
        return re.sub(
            r'(id="foedus-report">).*?(</script>)', lambda m: m[1] + data + m[2], right, flags=re.DOTALL
        )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a report's JSON holds a value that is neither object nor list."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    inner = False
    for key, child in children:
        inner = True
        yield from leaves(child, (*path, key))
    if not inner and path:
        yield path


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_forged_report_is_found(made: Made, data: st.DataObject) -> None:
    """Somebody changes any value in the report itself and draws the page anew, so that both agree."""
    original, used = made["dpia", "en"]
    report = copy.deepcopy(original)
    places = list(leaves(report))
    place = data.draw(st.sampled_from(places))
    holder = report
    for step in place[:-1]:
        holder = holder[step]
    old = holder[place[-1]]
    new = data.draw(
        st.sampled_from(
            [old + 1, 0, -old] if type(old) in (int, float) else ["other", "fact", "note", "", None, 1]
        )
    )
    assume(new != old or type(new) is not type(old))
    holder[place[-1]] = new
    # A date of its own, or other words of a person, are another report, no forgery, if all of it agrees.
    assume(place[0] != "made")
    text = drawn(report, original)
    caught(text, used)


Forgery = Callable[[Report], object]


def some(report: Report, name: str) -> dict[str, Any]:
    """A fact of the report, by its name."""
    return next(s for s in sentences_of(report["blocks"]) if s["id"] == name)


def add(report: Report, *sentences: dict[str, Any]) -> None:
    report["blocks"].append({"block": "paragraph", "sentences": list(sentences)})


def uncited(report: Report) -> None:
    add(report, {"kind": "fact", "id": "purpose", "values": some(report, "purpose")["values"], "cites": []})


def other_path(report: Report) -> None:
    """ε is said to be read where another number stands."""
    some(report, "spent")["values"]["epsilon"] = {
        "by": "is",
        "from": [{"cite": 0, "at": ["details", "run"]}],
        "is": "1",
    }


def smaller(report: Report) -> None:
    some(report, "spent")["values"]["epsilon"]["is"] = 0.1


def drop_cite(report: Report) -> None:
    """One sum fewer, with its citation."""
    told = some(report, "sums")
    told["cites"].pop()
    for value in told["values"].values():
        value["from"].pop()
    told["values"]["n"]["is"] -= 1


def leave_out(report: Report) -> None:
    """The sentence on who gave no receipt is gone."""
    for block in report["blocks"]:
        if "sentences" in block:
            block["sentences"] = [s for s in block["sentences"] if s["id"] != "no_receipt"]


def beyond(report: Report) -> None:
    told = some(report, "ended")
    told["cites"][0] = report["entries"][0] | {"index": 10_000}
    report["entries"].append({"log": "server", "index": 10_000, "leaf": "0" * 64, "body": "{}"})


def leaf(report: Report) -> None:
    some(report, "purpose")["cites"][0]["leaf"] = "0" * 64


def note_with_value(report: Report) -> None:
    add(report, {"kind": "note", "id": "keep", "values": {"x": {"by": "is", "from": [], "is": 1}}})


def unsigned(report: Report) -> None:
    answer = next(s for s in sentences_of(report["blocks"]) if s["kind"] == "judgement")
    answer["said"]["by"]["name"] = ""


def words_in_a_mouth(report: Report) -> None:
    answer = next(s for s in sentences_of(report["blocks"]) if s["kind"] == "judgement")
    answer["said"]["text"] = "Nothing can go wrong."


FORGERIES: dict[str, tuple[Forgery, str]] = {
    "a fact that cites nothing": (uncited, "cites no log entry"),
    "a value from another place": (other_path, "sentences were left out, added or moved|can't be written"),
    "a value the entry does not give": (smaller, "is not what the cited entries give"),
    "an entry fewer": (drop_cite, "left out, added or moved"),
    "a sentence left out": (leave_out, "left out, added or moved"),
    "an entry that is not there": (beyond, "is cited, and not in the server's log"),
    "a wrong leaf hash": (leaf, "which is not there"),
    "a note with a value": (note_with_value, "a note with a value"),
    "a statement by nobody": (unsigned, "not what the answers say"),
    "a statement that nobody made": (words_in_a_mouth, "not what the answers say"),
    "a sentence of no catalogue": (lambda r: add(r, {"kind": "note", "id": "trust_us"}), "no 'trust_us'"),
    "an entry reworded": (
        lambda r: r["entries"][0].update(body='{"a":1}'),
        "not as the report reproduces it",
    ),
    "a draft said to be complete": (lambda r: r.update(open=["issuer"]), "left out, added or moved"),
    "kept for too short": (lambda r: r.update(keep_until="2027-01-01"), "left out, added or moved"),
    "of another study": (lambda r: r.update(study="0" * 64), "is about study"),
    "of another edition": (lambda r: r.update(catalogue="0" * 64), "another catalogue"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_named(made: Made, name: str) -> None:
    forge, message = FORGERIES[name]
    report, used = copy.deepcopy(made["epsilon", "en"][0]), made["epsilon", "en"][1]
    forge(report)
    text = drawn(report, made["epsilon", "en"][0])
    assert re.search(message, caught(text, used)), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</main>", "<p>All risks are negligible.</p></main>"),  # prose outside of any sentence
        ("</style>", ".open { display: none; }</style>"),  # hiding what is open
        ("</style>", '.fact::after { content: " (or less)"; }</style>'),
        ("<body", '<body style="color: white"'),
        ("</body>", "<script>1</script></body>"),
        ("DRAFT", "FINAL"),
    ],
)
def test_what_is_put_on_a_page_is_found(sources: Sources, old: str, new: str) -> None:
    text = page.html(build("pipia", sources, {}, "en", day(sources)))
    assert old in text
    assert "of the page is not what its sentences give" in caught(text.replace(old, new, 1), sources)


def test_a_page_carries_one_report(made: Made) -> None:
    report, used = made["epsilon", "zh"]
    text = page.html(report)
    block = re.search(r'<script type="application/json".*?</script>', text, re.DOTALL)[0]  # type: ignore[index]
    assert "0 reports" in caught(text.replace(block, ""), used)
    assert "2 reports" in caught(text.replace(block, block * 2), used)
    assert page.node_log_size(text) == report["logs"][1]["size"]
    for logs in ([], [7], [{"log": "node", "size": "x"}]):
        data = re.sub(r'"logs":\[.*?\]', f'"logs":{json.dumps(logs)}', text, count=1)
        if logs:
            with pytest.raises(VerificationError, match="does not say"):
                page.node_log_size(data)
        caught(data, used)
    assert "not JSON" in caught(text.replace(block, block.replace("{", "", 1)), used)
    caught("", used)


def test_names_from_elsewhere_do_not_become_markup(sources: Sources) -> None:
    answers = said("epsilon")
    answers["answers"]["issuer"] = "</script><script>alert(1)</script>\u202e <b>bold</b>"
    given = checked(answers, "epsilon", OUTLINES["epsilon"].questions)
    text = page.html(build("epsilon", sources, given, "en", day(sources)))
    assert check(text, sources).missing == 0
    assert (
        text.count("<script") == text.count("</script>") == 1 and "<b>" not in text and "\u202e" not in text
    )


# ── sources ──────────────────────────────────────────────────────────────────────────────────────


def test_a_fact_without_a_source_can_not_be_made(sources: Sources) -> None:
    with pytest.raises(InputError, match="cites no log entry"):
        fact(sources, "purpose")
    with pytest.raises(VerificationError, match="no value at"):
        fact(sources, "purpose", purpose=one(sources.submitted, "details", "nothing"))
    with pytest.raises(VerificationError, match="does not hold the digest"):
        fact(sources, "purpose", purpose=one(sources.started, "epsilon", document="release/model.json"))


def test_a_document_is_bound_by_its_digest(sources: Sources) -> None:
    study = sources.documents["study.json"]
    other = replace(study, digest="0" * 64, payload={**study.payload, "purpose": "dpv:Marketing"})
    swapped = replace(sources, documents={**sources.documents, "study.json": other})
    with pytest.raises(VerificationError, match=r"does not hold the digest of"):
        build("ropa", swapped, {}, "en", day(sources))


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home, tmp_path / "node")
    return tmp_path / "node"


def alter(database: Path, *statements: str) -> None:
    with sqlite3.connect(database) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_a_node_s_altered_log_gives_no_report(sources: Sources, copied: Path) -> None:
    alter(
        copied / "audit.db",
        "DROP TRIGGER entry_update",
        "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), '\"size\":', '\"size\":1') AS BLOB) WHERE seq = 3",
    )
    with pytest.raises(VerificationError):
        sources.with_node(copied, NODE)


def test_a_log_rebuilt_with_another_cohort_gives_no_report(sources: Sources, copied: Path) -> None:
    """A whole new log, consistent in itself: the node's signed receipt names its cohorts' entries."""
    from foedus.compliance.auditlog.log import AuditLog

    old = AuditLog(copied / "audit.db", f"foedus node {NODE}", create=False)
    rows = [e.record for e in old.entries()]
    (copied / "audit.db").unlink()
    new = AuditLog(copied / "audit.db", f"foedus node {NODE}")
    for row in rows:
        details = {name: told for name, told in row["details"].items() if name != "sealed"}
        details |= {"size": 1_000_000} if row["action"] == "cohort" else {}
        new.append(row["actor"], row["action"], row["subject"], details)
    with pytest.raises(VerificationError, match="not the one its receipt names"):
        sources.with_node(copied, NODE)


def test_a_ledger_that_went_back_gives_no_report(sources: Sources, copied: Path) -> None:
    (copied / "ledger.db").unlink()
    from foedus.privacy.ledger import Ledger

    Ledger(copied / "ledger.db", NODE)
    with pytest.raises(VerificationError, match="the ledger does not continue"):
        sources.with_node(copied, NODE)


def test_a_node_s_log_may_have_grown_since(made: Made, sources: Sources, copied: Path) -> None:
    """Checked years later: the node has logged and paid more, and the report is about what there was."""
    from foedus.compliance.auditlog.log import AuditLog
    from foedus.privacy.events import Gaussian
    from foedus.privacy.ledger import Cap, Ledger

    report, used = made["epsilon", "en"]
    size = report["logs"][1]["size"]
    ledger, cap = Ledger(copied / "ledger.db", NODE), Cap(1e6, 1e-5)
    purpose = used.documents["study.json"].payload["purpose"]
    ledger.reserve(Gaussian(1.0), purpose=purpose, study="other", label="x", cap=cap, study_cap=cap)
    log = AuditLog(copied / "audit.db", f"foedus node {NODE}")
    head = ledger.head
    log.append(NODE, "ledger.head", "ledger.db", {"hash": head.hash, "size": head.size, "write_offs": 0})
    assert check(page.html(report), sources.with_node(copied, NODE, size)).facts
    now = sources.with_node(copied, NODE)
    assert now.documents["ledger.db"].payload["epsilon"] > used.documents["ledger.db"].payload["epsilon"]
    assert now.documents["ledger.db"].payload["epsilon"] == ledger.epsilon(1e-5, purpose=purpose)
    with pytest.raises(VerificationError, match="the report cites one of"):
        sources.with_node(copied, NODE, 10_000)


def test_a_report_on_a_node_s_log_needs_that_node(made: Made, sources: Sources, good: GoodRun) -> None:
    text = page.html(made["dpia", "en"][0])
    assert "was not given" in caught(text, sources)
    other = sources.with_node(good.world.homes["birch-records"], "birch-records")
    caught(text, other)
    assert "without a node's log" in caught(page.html(made["model-card", "en"][0]), other)


# ── the catalogue ────────────────────────────────────────────────────────────────────────────────


def test_notes_have_no_values_and_facts_no_figures_of_their_own() -> None:
    for name, note in catalogue("notes").items():
        assert set(note) == set(LANGUAGES) and not any(map(placeholders, note.values())), name
    for name, told in catalogue("facts").items():
        assert set(told) == set(LANGUAGES), name
        fields = [sorted(re.findall(r"\{[^}]+\}", told[language])) for language in LANGUAGES]
        assert fields[0] == fields[1] and fields[0], name
        for text in told.values():
            bare = re.sub(r"\{[^}]+\}|L2 |\+ 1\)", "", text)
            assert not re.search(r"\d|anonym|匿名", bare), name
        assert len({text.count(" | ") for text in told.values()}) == 1, name


def test_every_label_and_question_is_in_both_languages() -> None:
    def below(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and set(value) & set(LANGUAGES):
            yield path, value
        elif isinstance(value, dict):
            for key, child in value.items():
                yield from below(child, f"{path}.{key}")

    for name in ("labels", "questions"):
        found = list(below(catalogue(name), name))
        assert found
        for path, value in found:
            assert set(value) - {"kind"} == set(LANGUAGES) and all(
                isinstance(v, str) for v in value.values()
            ), path
    asked = {question for outline in OUTLINES.values() for question in outline.questions}
    assert asked == set(catalogue("questions"))


def test_codes_of_foedus_have_names() -> None:
    from typing import get_args

    from foedus.compliance.consent.vocabulary import PURPOSES
    from foedus.compliance.treaty import Level, Period
    from foedus.federation.rounds import Task
    from foedus.federation.schema import FeatureName

    labels = catalogue("labels")
    assert {f"dpv:{name}" for name in labels["purposes"]} == PURPOSES
    assert set(labels["levels"]) == set(get_args(Level))
    assert set(labels["periods"]) == {*get_args(Period), "life"}
    assert set(labels["tasks"]) == set(get_args(Task))
    assert set(labels["features"]) == set(get_args(FeatureName))


@pytest.mark.parametrize(
    ("spec", "value", "english", "chinese"),
    [
        ("up", 0.80041, "0.8005", "0.8005"),
        ("up", None, "unknown", "未知"),
        ("num", 1e-5, "0.00001", "0.00001"),
        ("n", 12345, "12,345", "12,345"),
        ("pct", 0.8407, "84.1 %", "84.1 %"),
        ("range", [7670, 7670], "7,670", "7,670"),
        ("range", [70, 7670], "70 to 7,670", "70 至 7,670"),
        (
            "time",
            "2026-12-01T12:15:37.8Z",
            "1 December 2026, 12:15:37 UTC",
            "2026 年 12 月 1 日 12:15:37（UTC）",
        ),
        ("list", [], "none", "无"),
        ("list", ["a", "b"], "a, b", "a、b"),
        ("period", None, "for life", "终身有效"),
        ("categories", ["user.other"], "user.other", "user.other"),
        ("text", "a\nb\u202ec", "a b c", "a b c"),
    ],
)
def test_how_values_are_written(spec: str, value: Any, english: str, chinese: str) -> None:
    for language, expected in zip(LANGUAGES, (english, chinese), strict=True):
        assert write(f"{{x:{spec}}}", {"x": value}, language) == expected


@pytest.mark.parametrize(
    ("spec", "value"), [("n", "7"), ("n", True), ("up", "0.1"), ("yes", 1), ("day", "soon")]
)
def test_a_value_of_another_kind_is_not_written(spec: str, value: Any) -> None:
    with pytest.raises(InputError):
        write(f"{{x:{spec}}}", {"x": value}, "en")


@settings(max_examples=50)
@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=20))
def test_what_is_derived_follows_from_what_was_read(read: list[int]) -> None:
    assert derive("count", read) == len(read)
    assert derive("sum", read) == sum(read) and derive("most", read) == max(read)
    assert derive("range", read) == [min(read), max(read)]
    assert sorted(derive("each", read)) == sorted(set(read))
    assert derive("same", [read[0], *read]) == read.count(read[0])
    if len(set(read)) > 1:
        with pytest.raises(VerificationError):
            derive("is", read)


@pytest.mark.parametrize(
    ("by", "read"), [("is", []), ("is", [1, True]), ("odds", [1e9]), ("names", ["x"]), ("guess", [1])]
)
def test_what_can_not_be_derived_is_refused(by: str, read: list[Any]) -> None:
    with pytest.raises(VerificationError):
        derive(by, read)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "language"), EVERY)
def test_the_form_asks_every_question_and_is_empty(kind: str, language: Any) -> None:
    text = form(kind, OUTLINES[kind].questions, language)
    assert checked(yaml.safe_load(text), kind, OUTLINES[kind].questions) == {}
    assert list(yaml.safe_load(text)["answers"]) == list(OUTLINES[kind].questions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(report="dpia"), "not for 'pipia'"),
        (lambda a: a["answers"].update(nonsense="x"), "no questions of a pipia: nonsense"),
        (lambda a: a.update(by={"name": "", "role": ""}), "nobody says so"),
        (lambda a: a.update(by="Dora"), "a name and a role"),
        (
            lambda a: a["answers"].update({"art55.abroad": {"answer": "maybe", "reason": "x"}}),
            "'maybe' is none of",
        ),
        (lambda a: a["answers"].update({"art55.abroad": "no"}), "its answer has answer, reason"),
        (lambda a: a["answers"].update({"risk.breach": {"likelihood": "low"}}), "its answer has likelihood"),
        (lambda a: a["answers"].update(context=7), "not text"),
        (lambda a: a["answers"].update(context="x" * 5000), "longer than"),
        (lambda a: a.update(answers=["x"]), "a mapping"),
        (lambda a: a.pop("by"), "exactly report, by and answers"),
    ],
)
def test_bad_answers_are_refused(change: Callable[[Any], object], message: str) -> None:
    content = said("pipia")
    change(content)
    with pytest.raises(InputError, match=message):
        checked(content, "pipia", OUTLINES["pipia"].questions)


def test_an_answer_without_its_reason_is_none() -> None:
    content = said("pipia")
    content["answers"]["art55.abroad"] = {"answer": "no", "reason": " "}
    assert "art55.abroad" not in checked(content, "pipia", OUTLINES["pipia"].questions)


def test_somebody_else_may_answer() -> None:
    content = said("dpia")
    views = {"text": "Heard.", "by": {"name": "Bo", "role": "customer care"}}
    content["answers"]["gdpr_views"] = views
    found = checked(content, "dpia", OUTLINES["dpia"].questions)
    assert found["gdpr_views"] == views and found["gdpr_advice"]["by"] == DORA


# ── PDF ──────────────────────────────────────────────────────────────────────────────────────────


def pango() -> bool:
    try:
        import weasyprint
    except OSError:
        return False
    return bool(weasyprint)


needs_pango = pytest.mark.skipif(
    not pango(), reason="Pango, a library of the operating system, is not installed"
)


@needs_pango
def test_a_pdf_shows_its_page_and_carries_it(made: Made) -> None:
    import io

    from pypdf import PdfReader

    report, _ = made["epsilon", "en"]
    text = page.html(report)
    data = pdf.pdf(text, report["made"])
    assert pdf.attached(data) == text
    pdf.check(data, text, report["made"])  # set again: equal bytes
    reader = PdfReader(io.BytesIO(data))
    shown = "".join("".join(p.extract_text().split()) for p in reader.pages)
    for sentence in sentences_of(report["blocks"]):
        if sentence["kind"] == "note":
            assert "".join(catalogue("notes")[sentence["id"]]["en"].split()) in shown, sentence["id"]
    assert f"page1of{len(reader.pages)}" in shown
    fonts = [f.get_object() for p in reader.pages for f in p["/Resources"]["/Font"].values()]  # type: ignore[index]
    inner = [f["/DescendantFonts"][0].get_object()["/FontDescriptor"] for f in fonts]
    assert all(set(d) & {"/FontFile", "/FontFile2", "/FontFile3"} for d in inner)  # embedded, every one
    # A page of another report, the same words drawn otherwise, and bytes put behind the end:
    for other in (data.replace(b"%PDF-1.7", b"%PDF-1.6"), data + b"\n%\n"):
        with pytest.raises(VerificationError, match="not what its attached page gives"):
            pdf.check(other, text, report["made"])


@needs_pango
def test_a_character_without_a_font_is_refused(sources: Sources) -> None:
    answers = said("epsilon")
    answers["answers"]["issuer"] = "\U0010fffd"
    given = checked(answers, "epsilon", OUTLINES["epsilon"].questions)
    report = build("epsilon", sources, given, "en", day(sources))
    with pytest.raises(InputError, match=r"no font here has .*U\+10FFFD"):
        pdf.pdf(page.html(report), report["made"])


def test_without_pango_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "weasyprint", None)
    with pytest.raises(InputError, match="Pango") as error:
        pdf.pdf("<p>", "2026-01-01")
    assert "apt install" in error.value.remedy and "fonts-noto-cjk" in error.value.remedy


def test_what_is_no_pdf_is_refused() -> None:
    with pytest.raises(InputError, match="not a PDF"):
        pdf.attached(b"%PDF-1.7 nonsense")


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code: object = 0
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return int(str(code or 0)), said.out + said.err


def test_the_way_from_questions_to_a_checked_report(
    good: GoodRun, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out, answers = good.run.evidence, tmp_path / "pipia.html", tmp_path / "answers.yaml"
    origin = ("--bundle", bundle, "--node", home)
    code, told = run(capsys, "report", "questions", "pipia", "--language", "zh", "--out", answers)
    assert code == 0 and "27 questions" in told
    code, told = run(capsys, "report", "pipia", *origin, "--answers", answers, "--out", out, "--final")
    assert code == 2 and "still to be completed" in told and not out.exists()
    answers.write_text(yaml.safe_dump(said("pipia")), encoding="utf-8")
    code, told = run(
        capsys, "report", "pipia", *origin, "--answers", answers, "--language", "zh", "--out", out, "--final"
    )
    assert code == 0 and "for signature" in told
    code, told = run(capsys, "report", "check", out, *origin)
    assert code == 0 and "every word holds" in told and "DRAFT" not in told
    code, told = run(capsys, "report", "pipia", *origin, "--out", out)
    assert code == 2 and "exists already" in told
    out.write_text(out.read_text(encoding="utf-8").replace("不得公开", "可以公开", 1), encoding="utf-8")
    code, told = run(capsys, "report", "check", out, *origin)
    assert code == 4 and "of the page is not what its sentences give" in told


@needs_pango
def test_a_pdf_is_made_checked_and_taken_apart(
    good: GoodRun, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, treaty = good.run.evidence, home / "treaty.json"
    origin = ("--bundle", bundle, "--treaty", treaty)
    code, told = run(capsys, "report", "model-card", *origin, "--out", tmp_path / "card.pdf")
    assert code == 0 and "DRAFT, 5 still to be completed" in told
    assert run(capsys, "report", "check", tmp_path / "card.pdf", *origin)[0] == 0
    assert run(capsys, "report", "page", tmp_path / "card.pdf", "--out", tmp_path / "card.html")[0] == 0
    assert run(capsys, "report", "check", tmp_path / "card.html", *origin)[0] == 0


def test_no_report_from_a_bundle_that_does_not_hold(
    good: GoodRun, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    altered, out = tmp_path / "evidence.zip", tmp_path / "ropa.html"
    with zipfile.ZipFile(good.run.evidence) as old, zipfile.ZipFile(altered, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"dana"', b'"dora"'))
    code, told = run(capsys, "report", "ropa", "--bundle", altered, "--node", home, "--out", out)
    assert code == 4 and not out.exists(), told
    code, told = run(capsys, "report", "ropa", "--bundle", good.run.evidence, "--out", out)
    assert code == 2 and "your own copy of the treaty" in told
    for wrong in (("--format", "docx"), ("--date", "tomorrow"), ("--language", "fr"), ("--answers", altered)):
        code, told = run(
            capsys, "report", "ropa", "--bundle", good.run.evidence, "--node", home, "--out", out, *wrong
        )
        assert code == 2 and not out.exists(), told

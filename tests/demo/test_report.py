"""What a demo shows: every figure is the Result's, and no text from elsewhere is taken for code."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from rich.console import Console
from support.treaties import make_study, make_treaty

from foedus.compliance.treaty import Overlap, Period
from foedus.demo import plots, report, screen
from foedus.demo.reference import Row
from foedus.demo.result import Partner, Result, Round
from foedus.federation import study as studies
from foedus.federation.study import Training
from foedus.federation.verification import Check

SCRIPT = "<script>alert(1)</script>"
CONTROL = "\x1b[2J\x07[red]"
NAMES = ("aster-music", "birch-records", "cedar-sound", f"dune {SCRIPT}")
CHECKS = (
    "bundle",
    "treaty",
    "study",
    "approvals",
    "audit log",
    "keys",
    "rounds",
    "epsilon",
    "release",
    "receipts",
)
VOID = {"meta", "br", "link", "img", "hr", "input"}


@pytest.fixture
def result() -> Result:
    """A killed partner, rounds and models without an AUC, and hostile text wherever text is free."""
    envelope, treaty, keys = make_treaty(4, name=f"Treaty & {SCRIPT} {CONTROL}")
    signed = make_study(
        envelope, treaty, keys, title=f'Who leaves? "{SCRIPT}" {CONTROL}', training=Training(rounds=8)
    )
    study = studies.parse(signed)
    rows = [
        Row("federated, distributed DP", 0.85312, 0.96341, 0.56251, 17404),
        Row("pooled, no privacy", 0.85363, 0.96382, 0.56324, 17405),
        Row("aster-music alone", 0.85414, 0.96353, 0.56235, 6202),
        Row(f"{NAMES[3]} alone", math.nan, math.nan, math.nan, 17),
        Row("recency alone", 0.83215, 0.95626, 0.44937, 0),
    ]
    sent = {
        "vector": (10, 4321),
        "keys": (1, 1_234_567),
        "answer": (10, 999),
        "shares": (1, 5000),
        f"odd {SCRIPT}": (3, 7),
    }
    partners = [
        Partner(
            NAMES[0],
            8292,
            7671,
            {"withdrawn": 398, "expired": 76, "never asked": 147},
            0.93864,
            8.0,
            sent,
            None,
        ),
        Partner(
            NAMES[1],
            7108,
            6586,
            {"withdrawn": 343, "expired": 64, "never asked": 115},
            0.93865,
            8.0,
            sent,
            None,
        ),
        Partner(NAMES[2], 4711, 4711, {}, 0.93866, 8.0, sent | {"receipt": (1, 2222)}, None),
        Partner(NAMES[3], 3459, 3170, {f"because {SCRIPT}": 289}, 0.51237, 8.0, {"keys": (1, 10)}, 5),
    ]
    rounds = [
        Round(
            number=i,
            task=study.tasks[i - 1],
            survivors=NAMES if i < 5 else NAMES[:3],
            epsilon=0.09 * i + 0.00123,
            seconds=0.25 + i / 100,
            auc=0.84 + i / 1000 if 2 <= i <= 9 else None,
        )
        for i in range(1, study.rounds + 1)
    ]
    data = [
        ("dataset", f"foedus://{n}/{what}")
        for n in NAMES
        for what in ("orders", "consent dpv:ServiceOptimisation")
    ]
    masked = [("dataset", f"foedus://{n}/masked updates 0123456789ab") for n in NAMES]
    jobs = [("job", f"foedus://{n}/node") for n in NAMES]
    total, study_node, model = (
        ("job", "secure sum"),
        ("dataset", f"study {SCRIPT} {CONTROL}"),
        ("dataset", "model"),
    )
    edges = [
        (d, j) for d in data for j in jobs if d[1].rsplit("/orders")[0].startswith(j[1].removesuffix("/node"))
    ]
    edges += [
        *zip(jobs, masked, strict=True),
        *((m, total) for m in masked),
        (study_node, total),
        (total, model),
    ]
    return Result(
        source=f"orders & co {SCRIPT}",
        study=study,
        study_digest=signed.digest,
        treaty=treaty,
        treaty_digest=envelope.digest,
        epsilon=0.93863,
        rows=rows,
        dp_auc=0.84147,
        dp_auc_error=0.01578,
        partners=partners,
        rounds=rounds,
        roc={
            "federated, distributed DP": ([0.0, 0.2, 1.0], [0.0, 0.8, 1.0]),
            "pooled, no privacy": ([0.0, 0.1, 1.0], [0.0, 0.7, 1.0]),
            f"$cost_{{of$ {SCRIPT} 客户": ([0.0, 1.0], [0.0, 1.0]),
        },
        checks=[Check(i, name, f"looked at {i * 11} things {SCRIPT}") for i, name in enumerate(CHECKS, 1)],
        lineage=([*data, *masked, *jobs, total, study_node, model], edges),
        phases=[("Starting four nodes", 4.14), (f"Training {SCRIPT}{CONTROL}", 21.26)],
        files={
            "evidence": Path("out/evidence.zip").absolute(),
            f"model {SCRIPT}": Path("out/model.json").absolute(),
        },
    )


@pytest.fixture
def bare(result: Result) -> Result:
    """As little as a Result can hold."""
    empty: dict[str, Any] = {
        "rounds": [],
        "roc": {},
        "checks": [],
        "lineage": ([], []),
        "phases": [],
        "files": {},
    }
    return replace(result, rows=result.rows[:1], partners=[], dp_auc=math.nan, **empty)


def shown(result: Result, width: int, **options: Any) -> str:
    out = io.StringIO()
    screen.show(result, Console(file=out, width=width, **options))
    return out.getvalue()


def figures(result: Result) -> list[str]:
    """Every figure that both the screen and the report must show."""
    found = [f"{x:.4f}" for r in result.rows[:1] for x in (r.auc, r.pr_auc, r.pr_auc_return)]
    found += [f"{r.auc:.4f}" for r in result.rows if math.isfinite(r.auc)]
    found += [f"{r.customers:,}" for r in result.rows if r.customers]
    found += [
        f"{result.dp_auc:.4f} ± {result.dp_auc_error:.4f}",
        f"ε = {result.epsilon:.4f}",
        "−0.0005",
        "+0.0005",
    ]
    for p in result.partners:
        found += [f"{p.customers:,}", f"{p.consenting:,}", f"{p.epsilon:.4f}"]
    found += [c.detail.removesuffix(SCRIPT).strip() for c in result.checks] + [
        "4.1",
        "21.3",
        "killed in round 5",
    ]
    return found


class Page(HTMLParser):
    """A page's elements, checked for balance as they come, and its tables as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "caption" in self._open:
            self._caption += data
        elif self._rows and self._open and self._open[-1] != "tr" and {"th", "td"} & set(self._open):
            self._rows[-1][-1] += data

    def table(self, caption: str) -> list[list[str]]:
        """The body of the table whose caption begins so."""
        return next(rows[1:] for name, rows in self.tables.items() if name.startswith(caption))


def written(result: Result, path: Path) -> tuple[str, Page]:
    report.write(result, path / "report.html")
    text = (path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.parametrize("width", [80, 110])
def test_the_screen_shows_the_figures_without_colour(result: Result, width: int) -> None:
    text = shown(result, width, color_system=None)
    flat = " ".join(text.split())
    for figure in figures(result):
        assert figure in flat
    assert flat.startswith("Four partners trained a churn model together; no customer record left its silo.")
    assert "only this demo can compute them" in flat
    assert "4 silos in rounds 1–4, 3 silos in rounds 5–10" in flat
    assert "Trained alone, without noise, 1 of 2 partners rank as well as the federation, or better." in flat
    assert "10 checks hold" in flat
    # The whole of what was sent, once: 3 × keys of 1,234,567 B and 10 B.
    assert "keys 4 (3.7 MB)" in flat and "receipt 1 (2.2 kB)" in flat
    assert "foedus verify out/evidence.zip --treaty treaty.json" in text  # on one line, to be copied
    assert "\x1b" not in text and "\x07" not in text
    assert all(len(line) <= width for line in text.splitlines())


def test_the_screen_is_no_longer_than_a_page(result: Result) -> None:
    plain = replace(result, partners=[replace(p, sent={"keys": (1, 10)}) for p in result.partners])
    assert len(shown(plain, 110).splitlines()) <= 62
    assert max(len(line) for line in shown(plain, 300).splitlines()) <= screen.WIDTH


def test_the_screen_takes_no_text_for_markup_or_control(result: Result) -> None:
    text = shown(result, 110, force_terminal=True, color_system="truecolor")
    assert "[red]" in text and "\x1b[2J" not in text and "\x07" not in text


def test_the_least_result_is_shown_and_written(bare: Result, tmp_path: Path) -> None:
    assert "AUC — ±" in " ".join(shown(bare, 80).split())
    text, page = written(bare, tmp_path)
    assert text.count("<svg") == 4 and "no secure sum" in page.text


def test_steps_are_one_line_each_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    steps = screen.Steps(Console(file=out, width=30))
    with steps.step("Starting four nodes, with a name longer than the line"):
        steps.line("node 3 of 4")
    with pytest.raises(ValueError, match="no luck"), steps.step("Training"):
        raise ValueError("no luck")
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(r"✓ Starting four nodes, with a name longer than the line \d+\.\d s", first)
    assert re.fullmatch(r"✗ Training \d+\.\d s", second)
    assert [name for name, _ in steps.phases] == [
        "Starting four nodes, with a name longer than the line",
        "Training",
    ]
    assert all(seconds >= 0 for _, seconds in steps.phases)


def test_a_step_at_a_terminal_shows_what_it_is_at() -> None:
    out = io.StringIO()
    steps = screen.Steps(
        Console(file=out, width=80, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    )
    with steps.step("Training [bold]"):
        steps.line("round 5 of 13 · ε 0.41 [/]")
    assert "round 5 of 13 · ε 0.41 [/]" in out.getvalue()
    assert "✓ Training [bold]" in out.getvalue()
    steps.line("between steps, nothing is said")
    assert "between" not in out.getvalue()


def test_the_report_is_well_formed_and_complete(result: Result, tmp_path: Path) -> None:
    text, page = written(result, tmp_path)
    attributes = Counter(value for _, a in page.tags if (value := a.get("id")) is not None)
    assert set(attributes.values()) == {1}, "an id is used twice"
    referred = {i for _, a in page.tags for i in (a.get("aria-labelledby") or "").split()}
    referred |= set(re.findall(r"url\(#([^)]+)\)", text)) | {
        (a.get("href") or "").removeprefix("#") for t, a in page.tags if t == "use"
    }
    assert referred <= set(attributes)
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.tables) == text.count("<table") == text.count("<caption>")
    assert all(a.get("scope") in ("col", "row") for t, a in page.tags if t == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_the_report_loads_and_runs_nothing(result: Result, tmp_path: Path) -> None:
    text, page = written(result, tmp_path)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))
    assert "http://" not in text and "https://" not in text and "@import" not in text
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_report_escapes_what_others_wrote(result: Result, tmp_path: Path) -> None:
    text, page = written(result, tmp_path)
    assert "<script" not in text and "\x1b" not in text and "\x07" not in text
    assert page.text.count(SCRIPT) >= 20  # still there to be read


def test_the_reports_figures_are_the_results(result: Result, tmp_path: Path) -> None:
    _, page = written(result, tmp_path)
    for figure in figures(result):
        assert figure in page.text

    def number(value: float | None) -> str:
        return "—" if value is None or math.isnan(value) else f"{value:.4f}"

    differences = ["−0.0005", "—", "+0.0005", "—", "−0.0215"]
    assert page.table("Exact figures") == [
        [
            r.name,
            number(r.auc),
            d,
            number(r.pr_auc),
            number(r.pr_auc_return),
            f"{r.customers:,}" if r.customers else "—",
        ]
        for r, d in zip(result.rows, differences, strict=True)
    ]
    reasons = ["withdrawn", "expired", "never asked", f"because {SCRIPT}"]
    assert page.table("Customers, consent") == [
        [p.name, f"{p.customers:,}", f"{p.consenting:,}"]
        + [f"{p.excluded.get(reason, 0):,}" for reason in reasons]
        + [f"{p.epsilon:.4f}", "8", "finished" if p.lost_in is None else f"killed in round {p.lost_in}"]
        for p in result.partners
    ]
    assert [row[:1] + row[2:] for row in page.table("Messages")] == [
        ["keys", "11.2 MB", "11.2 MB", "11.2 MB", "110 B"],
        ["shares", "15.0 kB", "15.0 kB", "15.0 kB", "—"],
        ["vector", "104.3 kB", "104.3 kB", "104.3 kB", "—"],
        ["answer", "10999 B", "10999 B", "10999 B", "—"],
        ["receipt", "—", "—", "12.2 kB", "—"],
        [f"odd {SCRIPT}", "37 B", "37 B", "37 B", "—"],
    ]
    assert page.table("The exact AUC") == [
        [
            str(r.number),
            r.task,
            str(len(r.survivors)),
            "—" if r.number < 5 else NAMES[3],
            f"{r.epsilon:.4f}",
            f"{r.seconds:.2f}",
            number(r.auc),
        ]
        for r in result.rounds
    ]
    assert [(row[0], row[2]) for row in page.table("The 10 checks")] == [
        (f"✓ {c.number} {c.name}", c.detail) for c in result.checks
    ]
    assert result.study_digest in page.text and result.treaty_digest in page.text
    assert f"e^ε = {math.exp(result.epsilon):.2f} times as likely" in page.text
    assert "foedus verify evidence.zip --treaty treaty.json" in page.text


@pytest.mark.parametrize(
    ("m", "period", "lasting"), [(2, "quarter", "a quarter, without a cap for life"), (4, None, "for life")]
)
def test_every_epsilon_says_for_whom_and_of_which_budget(
    result: Result, tmp_path: Path, m: int, period: Period | None, lasting: str
) -> None:
    terms = result.treaty.terms(result.study.purpose).model_copy(update={"period": period})
    overlap = Overlap(max_partners_per_customer=m, attestation="two of us at most" if m < 4 else "")
    treaty = result.treaty.model_copy(update={"overlap": overlap, "purposes": (terms,)})
    found = replace(result, treaty=treaty)
    unit, flat = treaty.unit, " ".join(shown(found, 110).split())
    assert f"m = {m}" in unit
    assert f"for {unit}; the study allows 4, the treaty 8 {lasting}" in flat
    text, page = written(found, tmp_path)
    head, _, rest = text.partition("</header>")
    assert f"{unit}; the treaty's cap: 8 {lasting}" in head
    for section in ("privacy", "partners", "terms"):
        part = rest.partition(f'<section aria-labelledby="{section}">')[2].partition("</section>")[0]
        assert unit in part and lasting in part, section
    spending = next(d for d in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if 'id="spending-title"' in d)
    assert f"for {unit}; the study allows 4, the treaty 8 {lasting}" in spending
    assert (
        f"ε per customer, m = {m}" in spending
        and ("cap, 8 a quarter" if period else "cap, 8 for life") in spending
    )
    assert page.text.count("for life") >= 5 and (period is None) == ("8 for life" in page.text)


def test_every_check_and_kind_of_message_is_explained(result: Result) -> None:
    assert tuple(report.CHECKS) == CHECKS
    assert set(screen.KINDS) >= {"keys", "shares", "vector", "answer", "receipt"}


def test_the_four_drawings_can_be_told_without_eyes(result: Result, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    text, _ = written(result, tmp_path)
    assert dict(matplotlib.rcParams) == before
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert re.match(
            r'<svg viewBox="[\d. -]+" role="img" aria-labelledby="(\w+)-title \1-desc"><title id="\1-title">',
            drawing,
        )
        assert re.search(r'<desc id="\w+-desc">[^<]{20,}</desc>', drawing)
    learning, roc, spending, lineage = drawings
    assert (
        "From 0.8420 after round 2 to 0.8490 after round 9" in learning
        and "Round 5 was the first without" in learning
    )
    assert "federated, distributed DP: AUC 0.8531" in roc and "$cost_{of$" in roc and "客户" in roc
    last = result.rounds[-1]
    assert f"ε reaches {last.epsilon:.4f} after {len(result.rounds)} rounds" in spending
    nodes, edges = result.lineage
    assert lineage.count("<rect") == len(nodes) and lineage.count("marker-end") == len(edges)


def test_lineage_is_drawn_left_to_right_apart_and_in_its_frame(result: Result) -> None:
    _, edges = result.lineage
    places = boxes(plots.lineage(result))
    assert len(set(places.values())) == len(places)
    for (_, a), (_, b) in edges:
        assert left_of(places, a) < left_of(places, b)


def test_a_circle_in_the_lineage_is_drawn_too(result: Result) -> None:
    table, job = ("dataset", "table"), ("job", "update")
    circle = replace(result, lineage=([table, job], [(table, job), (job, table), (table, table)]))
    drawing = plots.lineage(circle)
    assert len(boxes(drawing)) == 2 and drawing.count("marker-end") == 3


def boxes(drawing: str) -> dict[str, tuple[float, float]]:
    """Title of a box -> its corner; within the drawing's frame."""
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0])
    found = re.findall(r'<title>([^<]*)</title><rect x="([\d.]+)" y="([\d.]+)"', drawing)
    places = {title: (float(x), float(y)) for title, x, y in found}
    assert all(0 <= x <= width - plots.BOX and 0 <= y <= height - plots.HEIGHT for x, y in places.values())
    return places


def left_of(places: dict[str, tuple[float, float]], name: str) -> float:

    return next(x for title, (x, _) in places.items() if title.endswith(f": {escape(screen.plain(name))}"))

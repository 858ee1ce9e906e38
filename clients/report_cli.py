"""``foedus report``: what an officer signs, made from verified evidence, and checked against it again."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..compliance.reports import Sources

report_app = typer.Typer(
    no_args_is_help=True,
    help="Make reports in which every sentence of fact cites a log entry, and check them.",
)

Bundle = Annotated[Path, typer.Option(help="The evidence, evidence.zip.", show_default=False)]
OwnTreaty = Annotated[
    Path | None, typer.Option(help="Your own copy of the treaty.", show_default="the node's, with --node")
]
Node = Annotated[
    Path | None, typer.Option(help="The node's directory: its own log is cited, too.", show_default=False)
]
Given = Annotated[
    Path | None,
    typer.Option(
        "--answers", help="What people say, YAML: see `foedus report questions`.", show_default=False
    ),
]
In = Annotated[str, typer.Option("--language", help="en or zh.")]
As = Annotated[str | None, typer.Option("--format", help="html or pdf.", show_default="by the name of --out")]
Out = Annotated[Path, typer.Option(help="Where to write it; an existing file is kept.", show_default=False)]
On = Annotated[
    str | None, typer.Option("--date", help="The date it bears, YYYY-MM-DD.", show_default="today")
]
Final = Annotated[bool, typer.Option("--final", help="Refuse if anything is still to be completed.")]


@report_app.command("model-card")
def model_card(
    bundle: Bundle,
    out: Out,
    treaty: OwnTreaty = None,
    node: Node = None,
    answers: Given = None,
    language: In = "en",
    form: As = None,
    day: On = None,
    final: Final = False,
) -> None:
    """Say what a released model is, what it is for and not for, how good it is and what it cost in ε.

    Example: foedus report model-card --bundle evidence.zip --treaty treaty.json --out card.html
    """
    _make("model-card", bundle, out, treaty, node, answers, language, form, day, final)


@report_app.command()
def pipia(
    bundle: Bundle,
    out: Out,
    treaty: OwnTreaty = None,
    node: Node = None,
    answers: Given = None,
    language: In = "en",
    form: As = None,
    day: On = None,
    final: Final = False,
) -> None:
    """Write a personal information protection impact assessment (PIPL, articles 55 and 56).

    Example: foedus report pipia --bundle evidence.zip --node node --answers answers.yaml --language zh --out pipia.pdf
    """
    _make("pipia", bundle, out, treaty, node, answers, language, form, day, final)


@report_app.command()
def dpia(
    bundle: Bundle,
    out: Out,
    treaty: OwnTreaty = None,
    node: Node = None,
    answers: Given = None,
    language: In = "en",
    form: As = None,
    day: On = None,
    final: Final = False,
) -> None:
    """Write a data protection impact assessment (GDPR, article 35).

    Example: foedus report dpia --bundle evidence.zip --node node --answers answers.yaml --out dpia.pdf
    """
    _make("dpia", bundle, out, treaty, node, answers, language, form, day, final)


@report_app.command()
def ropa(
    bundle: Bundle,
    out: Out,
    treaty: OwnTreaty = None,
    node: Node = None,
    answers: Given = None,
    language: In = "en",
    form: As = None,
    day: On = None,
    final: Final = False,
) -> None:
    """Write the record of processing activities (GDPR, article 30), of the controller and of the coordinator.

    Example: foedus report ropa --bundle evidence.zip --node node --answers answers.yaml --out record.html
    """
    _make("ropa", bundle, out, treaty, node, answers, language, form, day, final)


@report_app.command()
def epsilon(
    bundle: Bundle,
    out: Out,
    treaty: OwnTreaty = None,
    node: Node = None,
    answers: Given = None,
    language: In = "en",
    form: As = None,
    day: On = None,
    final: Final = False,
) -> None:
    """State what a study cost its customers in ε, by party and against the budget, in plain words.

    Example: foedus report epsilon --bundle evidence.zip --treaty treaty.json --out epsilon.html
    """
    _make("epsilon", bundle, out, treaty, node, answers, language, form, day, final)


@report_app.command()
def check(
    report: Annotated[Path, typer.Argument(help="A report, .html or .pdf.", show_default=False)],
    bundle: Bundle,
    treaty: OwnTreaty = None,
    node: Node = None,
) -> None:
    """Check a finished report: every fact against the logs, every other word against its sentence.

    Exits 4 at a fact that cites nothing, a citation that is not in the log, a value that the entry does not
    give, and any text that was changed, added or left out. A PDF must be what the page attached to it gives.

    Example: foedus report check pipia.pdf --bundle evidence.zip --node node
    """
    from ..compliance import reports
    from ..compliance.reports import page, pdf

    data = _read(report)
    text = pdf.attached(data) if data.startswith(b"%PDF") else _text(report, data)
    found = reports.check(text, _sources(bundle, treaty, node, page.node_log_size(text)))
    if data.startswith(b"%PDF"):
        pdf.check(data, text, page.read(text)["made"])
    typer.echo(
        f"{found.kind}, {found.language}: {found.facts} facts from {found.cited} log entries, "
        f"{found.statements} statements by named persons; every word holds"
    )
    typer.echo(f"digest {found.digest}")
    if treaty is None and node is None:
        typer.echo("the treaty was taken from the bundle: give --treaty or --node")
    if found.missing:
        typer.echo(f"DRAFT: {found.missing} statements are still to be completed")


@report_app.command()
def questions(
    kind: Annotated[
        str, typer.Argument(help="model-card, pipia, dpia, ropa or epsilon.", show_default=False)
    ],
    language: In = "en",
    out: Annotated[
        Path | None, typer.Option(help="Write them here; an existing file is kept.", show_default=False)
    ] = None,
) -> None:
    """Print what only a person can say in a report, as a YAML file to fill in.

    Example: foedus report questions pipia --language zh --out answers.yaml
    """
    from ..compliance.reports import answers, outline

    text = answers.form(kind, outline(kind).questions, _language(language))
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text.encode())
        typer.echo(f"{out}: {len(outline(kind).questions)} questions")


@report_app.command("page")
def take_out(
    report: Annotated[Path, typer.Argument(help="A report, .pdf.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where to write the page, .html.", show_default=False)],
) -> None:
    """Take the HTML page out of a report's PDF. It is not checked: check it.

    Example: foedus report page pipia.pdf --out pipia.html
    """
    from ..compliance.reports import pdf

    _write(out, pdf.attached(_read(report)).encode())
    typer.echo(f"{out}: to be checked with foedus report check")


def _make(
    kind: str,
    bundle: Path,
    out: Path,
    treaty: Path | None,
    node: Path | None,
    answers: Path | None,
    language: str,
    form: str | None,
    day: str | None,
    final: bool,
) -> None:
    from ..compliance import reports
    from ..compliance.reports import answers as said
    from ..compliance.reports import page, pdf
    from ..errors import InputError

    form = form or out.suffix.lower().removeprefix(".")
    if form not in ("html", "pdf"):
        raise InputError(f"no reports as {form!r}", remedy="--format html or pdf, or an --out that ends so")
    if out.exists():
        raise InputError(f"{out}: exists already", remedy="choose another --out, or move it away")
    if treaty is None and node is None:
        raise InputError(
            "a report is made from your own copy of the treaty, not from the one in the bundle",
            remedy="--treaty treaty.json, or --node DIR, which has one",
        )
    made = _day(day)
    questions = reports.outline(kind).questions
    given: dict[str, Any] = said.load(answers, kind, questions) if answers is not None else {}
    sources = _sources(bundle, treaty, node)
    report = reports.build(kind, sources, given, _language(language), made)
    if final and report["open"]:
        raise InputError(
            f"{len(report['open'])} statements are still to be completed: {', '.join(report['open'])}",
            remedy=f"foedus report questions {kind} says what is asked; without --final it is a draft",
        )
    text = page.html(report)
    found = reports.check(text, sources)  # what fails here is a fault of foedus: it must not be signed
    _write(out, pdf.pdf(text, report["made"]) if form == "pdf" else text.encode())
    typer.echo(
        f"{out}: {found.facts} facts from {found.cited} log entries, {found.statements} statements"
        + (f"; DRAFT, {found.missing} still to be completed" if found.missing else "; for signature")
    )
    typer.echo(f"keep it with its evidence until {report['keep_until']} at least; digest {found.digest}")


def _sources(bundle: Path, treaty: Path | None, node: Path | None, size: int | None = None) -> Sources:
    """The sources of a report, once the bundle is found to hold; the node's log up to `size` entries.

    Raises:
        VerificationError: it does not, or the node's own records do not.
    """
    from ..compliance import evidence
    from ..compliance.reports import Sources
    from ..federation.verification import verify
    from .home import Home

    home = Home.load(node) if node is not None else None
    if treaty is None and home is not None:
        treaty = home.path / "treaty.json"
    found = verify(bundle, own_treaty=treaty)
    sources = Sources.of_bundle(evidence.read(bundle)[1], found.study_digest, found.run)
    return sources if home is None else sources.with_node(home.path, home.party, size)


def _language(text: str) -> Any:
    from ..compliance.reports.wording import LANGUAGES
    from ..errors import InputError

    if text not in LANGUAGES:
        raise InputError(f"no reports in {text!r}", remedy=f"there are: {', '.join(LANGUAGES)}")
    return text


def _day(text: str | None) -> date:
    from ..errors import InputError

    try:
        return date.today() if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a date, YYYY-MM-DD") from error


def _read(file: Path) -> bytes:
    from ..errors import InputError

    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error


def _text(file: Path, data: bytes) -> str:
    from ..errors import InputError

    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: neither a PDF nor UTF-8 text") from error


def _write(file: Path, data: bytes) -> None:
    """Write a new file, whole or not at all."""
    from ..durable import replace
    from ..errors import InputError

    if file.exists():
        raise InputError(f"{file}: exists already", remedy="choose another --out, or move it away")
    replace(file, data)

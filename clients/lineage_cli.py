"""``foedus lineage``: what a node or a server knows of where its models come from, asked, drawn, taken in and sent on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compliance.lineage import Store, Stored, Touch

lineage_app = typer.Typer(
    no_args_is_help=True, help="See where a model comes from, and what a customer went into."
)

Directory = Annotated[Path, typer.Argument(help="A node's or the server's directory.", show_default=False)]
Study = Annotated[
    str | None, typer.Option(help="Only this study: 8 digits or more of its digest.", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Option(help="A released model: model.json, or 8 digits or more of its digest.", show_default=False),
]


@lineage_app.command()
def show(
    directory: Directory,
    study: Study = None,
    check: Annotated[bool, typer.Option("--check", help="Also read every event anew.")] = False,
) -> None:
    """List studies, their runs and the models that came of them, what failed, and where events were sent.

    Example: foedus lineage show node --check
    """
    from ..compliance.lineage import sending

    store = _store(directory)
    say = _console()
    events = list(store.events(study=study))
    say(
        f"{store.namespace}: {store.size} events" + (f", {store.check()} of them as written" if check else "")
    )
    for line in _studies(events):
        say(line)
    for name, waiting, refused, error in sending.endpoints(store):
        say(f"sent to {name}; waiting {waiting}, refused {refused}" + (f": {error}" if error else ""))


@lineage_app.command()
def query(
    directory: Directory,
    model: Model = None,
    customer: Annotated[
        str | None,
        typer.Option(help="A customer's id, as in the table; a node's own only.", show_default=False),
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Also which column each feature comes from.")
    ] = False,
) -> None:
    """From a model to every table, consent snapshot, approval and release; or from a customer to every model they touched.

    A customer is found by a keyed pseudonym, at their own silo; neither the question nor the answer is kept.

    Example: foedus lineage query server --model model.json

    Example: foedus lineage query node --customer 00042
    """
    from ..compliance.lineage import tracing
    from ..errors import InputError

    if (model is None) == (customer is None):
        raise InputError("ask for --model or for --customer")
    store, say = _store(directory), _console()
    if model is not None:
        found = tracing.trace(store, _digest(model))
        for line in tracing.lines(found):
            say(line)
        for (party, name), told in sorted(found.columns.items()) if columns else ():
            say(f"{party}, {name}")
            for column, sources in told.items():
                say(f"  {column:14} {', '.join(sources) or 'no column'}")
        return
    touched = _touched(directory, str(customer))
    for touch in touched:
        use = touch.use
        models = store.models(use.study, use.run)
        known = (
            f"model {', '.join(models)}"
            if models
            else "no model of it is known here: take the server's events in"
        )
        say(f"{use.what}: study {use.study}, run {use.run}, since {touch.began}: {known}")
    if not touched:
        say("in no study and no scoring that this node knows of")


@lineage_app.command()
def draw(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="The .svg file to write.", show_default=False)],
    model: Model = None,
    study: Study = None,
) -> None:
    """Draw what flows into what, of a model, a study or all there is, as one SVG file for light and dark pages.

    Example: foedus lineage draw node --study 73bfe27a --out lineage.svg
    """
    from ..compliance.lineage import drawing
    from ..compliance.lineage.graph import Graph
    from ..durable import replace
    from ..errors import InputError

    if out.suffix.lower() != ".svg":
        raise InputError(f"{out}: not an .svg file")
    if model is not None and study is not None:
        raise InputError("draw a --model or a --study")
    store = _store(directory)
    if model is not None:
        digest = _digest(model)
        events, title = store.trace(digest), f"Where model {digest[:12]}… comes from"
    else:
        events = list(store.events(study=study))
        title = (
            f"Lineage of study {study[:12]}…"
            if study
            else f"Lineage of {store.namespace.removeprefix('foedus://')}"
        )
    if not events:
        raise InputError(
            f"{store.path}: nothing about study {study}", remedy="foedus lineage show lists what is known"
        )
    replace(out, drawing.svg(Graph.of([s.event for s in events]), title).encode())
    _console()(f"drawn: {out}")


@lineage_app.command()
def take(
    directory: Directory,
    file: Annotated[
        Path,
        typer.Argument(help="Evidence (.zip), or events of a partner as JSON lines.", show_default=False),
    ],
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Whose events they are.", show_default="what the evidence says"),
    ] = None,
) -> None:
    """Take somebody else's events in, all or none: the server's from a bundle of evidence, or a partner's from a file.

    A bundle must be signed by the coordinator of this directory's treaty. Nothing vouches for a plain file but whom you
    have it from, so --from names them. Events in anybody else's name are refused, and those in the name of this
    directory's owner that are not here already.

    Example: foedus lineage take node evidence.zip

    Example: foedus lineage take server aster-music.jsonl --from aster-music
    """
    from ..compliance import evidence
    from ..compliance import treaty as treaties
    from ..compliance.lineage.events import parse_lines, read_events
    from ..errors import InputError

    store, say = _store(directory), _console()
    if file.suffix.lower() == ".zip":
        _, treaty = treaties.load(directory / "treaty.json")
        manifest, files = evidence.read(file)
        signer = treaty.coordinator.origin
        manifest.check(evidence.KIND, signer, treaty.coordinator.signing_key)
        events = parse_lines(files.get("lineage.jsonl", b""), f"{file}, lineage.jsonl")
        party, origin = signer, f"{signer}, signed"
    elif origin is None:
        raise InputError(f"{file}: whose events are these?", remedy="say --from NAME")
    else:
        party, events = origin, read_events(file)
    new = store.take(events, origin, party)
    say(f"{len(events)} events of {origin}: {new} new, {len(events) - new} known already")


@lineage_app.command()
def send(
    directory: Directory,
    to: Annotated[str, typer.Option(help="A file to append to, or an https address.", show_default=False)],
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a bearer token (mode 0600).", show_default=False)
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificates to trust, PEM.", show_default="the usual ones")
    ] = None,
    retries: Annotated[int, typer.Option(help="How often to try again when it is away.", min=0, max=10)] = 3,
) -> None:
    """Send own events to an OpenLineage endpoint: to a file, or to Marquez and the like over HTTP.

    Whatever the endpoint did not take waits in an outbox for the next call, so nothing is lost; an event may come
    twice. Exits 6 if the endpoint was away, 2 if it refused an event. No event holds personal data.

    Example: foedus lineage send node --to lineage.jsonl

    Example: foedus lineage send server --to https://marquez.example/api/v1/lineage --token-file marquez.token
    """
    from ..compliance.lineage.sending import FileEndpoint, HttpEndpoint
    from ..compliance.lineage.sending import send as deliver
    from ..documents import read_private_file
    from ..errors import InputError, Unreachable

    store, say = _store(directory), _console()
    if "://" in to:
        token = None if token_file is None else _token(read_private_file(token_file), token_file)
        with HttpEndpoint(to, token=token, ca=ca) as endpoint:
            found = deliver(store, endpoint, retries=retries)
    elif token_file is not None or ca is not None:
        raise InputError("--token-file and --ca go with an address")
    else:
        found = deliver(store, FileEndpoint(Path(to)), retries=retries)
    say(f"{found.sent} sent to {to}; {found.waiting} waiting, {found.refused} refused")
    if found.waiting:
        raise Unreachable(found.error or f"{to}: away", remedy="what waits is sent by the next call")
    if found.refused:
        raise InputError(f"{to} refused {found.refused} events", remedy="foedus lineage show says why")


def _digest(model: str) -> str:
    """Of a released document in a file, or as it is given."""
    from ..documents import Envelope

    return Envelope.load(Path(model)).digest if Path(model).is_file() else model


def _token(data: bytes, path: Path) -> str:
    from ..errors import InputError

    token = data.decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{path}: not a token on one line")
    return token


def _store(directory: Path) -> Store:
    from ..compliance.lineage import Store as Kept

    return Kept(directory / "lineage.db")


def _touched(directory: Path, customer: str) -> list[Touch]:
    from ..errors import InputError
    from .home import Home
    from .lineage import subjects_of

    if not (directory / "node.yaml").is_file():
        raise InputError(
            f"{directory}: not a node's directory: only a customer's own silo can tell",
            remedy="give the node's directory",
        )
    return subjects_of(Home.load(directory)).touched(customer)


def _studies(events: list[Stored]) -> list[str]:
    """What is known of each study, a few lines each."""
    from ..compliance.lineage import tracing

    groups: dict[tuple[str, str], list[Stored]] = {}
    for stored in events:
        said = stored.event["run"].get("facets", {}).get("foedus_purpose", {})
        groups.setdefault((said.get("study", ""), said.get("run", "")), []).append(stored)
    lines = []
    for (study, run), mine in groups.items():
        found = tracing.of_events("", mine)
        title = f"study {study}, run {run}" if study else "beside studies"
        lines.append(f"{title}: {len(mine)} events, {', '.join(sorted(found.purposes))}".rstrip(", "))
        lines += [f"  {kind} {digest}" for kind, digest in sorted(found.releases)]
        lines += [
            f"  failed: {job.rpartition('/')[2]}: {reason}" for job, reason in sorted(set(found.failures))
        ]
    return lines


def _console() -> Callable[[str], None]:
    out = Console(highlight=False, soft_wrap=True)
    return lambda line: out.print(line, markup=False)

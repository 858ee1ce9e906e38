"""The report's drawings, as inline SVG: three charts by matplotlib, the lineage by a layout of our own.

Each is a complete ``<svg>`` element for a page: no prolog, nothing loaded from elsewhere, text kept as
text, a title and a description for those who can't see it, and ids that no other drawing has.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..compliance.lineage.graph import layers
from .result import Result, Round
from .screen import figure, plain

Node = tuple[str, str]
Edge = tuple[Node, Node]

# Okabe and Ito's palette, told apart with any colour vision; dashes and markers tell the same again.
BLUE, ORANGE, GREEN, RED, INK, GREY = "#0072b2", "#b45f06", "#009e73", "#d55e00", "#1f2933", "#6b7280"
LINES = ((BLUE, "-"), (INK, "--"), (ORANGE, ":"), (GREEN, "-."), (RED, (0, (5, 1, 1, 1))))
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollar signs is still a name
    "font.family": ["DejaVu Sans"],  # it comes with matplotlib; the page's own font takes its place
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e3e7ec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def learning_curve(result: Result) -> str:
    """Exact AUC after every training round, the pooled model's as a line, and where a silo was lost."""
    known = [(r.number, r.auc) for r in result.rounds if r.auc is not None and math.isfinite(r.auc)]
    pooled = next((r.auc for r in result.rows if r.name.startswith("pooled") and math.isfinite(r.auc)), None)
    with _chart() as (canvas, axes):
        if known:
            axes.plot(
                *zip(*known, strict=True), color=BLUE, marker="o", markersize=4, label="federated, with noise"
            )
        if pooled is not None:
            axes.axhline(pooled, color=INK, linestyle="--", linewidth=1.2, label="pooled, without privacy")
        heights = [auc for _, auc in known] + ([] if pooled is None else [pooled])
        if heights:
            # Never less than 0.03 high, or the noise of a good model would look like a drama.
            axes.set_ylim(min(*heights, max(heights) - 0.03) - 0.002, max(heights) + 0.003)
        _mark_losses(axes, result.rounds, 0.5)
        _rounds_axis(axes, result.rounds)
        axes.set_ylabel("exact AUC on the test customers")
        if known or pooled is not None:
            axes.legend(loc="lower right")
    told = "No round has an AUC"
    if known:
        (first, low), (last, high) = known[0], known[-1]
        told = f"From {figure(low)} after round {first} to {figure(high)} after round {last}"
    other = f"the model trained on pooled data without privacy has {figure(pooled)}"
    text = f"{told}; {other}. {_losses(result.rounds)}"
    return _svg(canvas, "learning", "AUC after every round", text)


def roc(result: Result) -> str:
    """True against false positives of each model in the Result."""
    exact = {row.name: row.auc for row in result.rows}
    with _chart() as (canvas, axes):
        axes.plot([0, 1], [0, 1], color="#c3c9d1", linewidth=1)
        for place, (name, (false, true)) in enumerate(result.roc.items()):
            color, dashes = LINES[place % len(LINES)]
            label = plain(name) + (f", AUC {figure(exact[name])}" if name in exact else "")
            axes.plot(false, true, color=color, linestyle=dashes, linewidth=1.7, label=label)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("part of those who stay, taken for churners")
        axes.set_ylabel("part of the churners found")
        if result.roc:
            axes.legend(loc="lower right")
    told = "; ".join(f"{plain(n)}: AUC {figure(exact.get(n))}" for n in result.roc)
    return _svg(canvas, "roc", "ROC curves", told or "No model has one.")


def spending(result: Result) -> str:
    """ε so far after every round, against what the study and the treaty allow."""
    limit = result.study.privacy.epsilon
    terms = result.treaty.terms(result.study.purpose)
    cap, lasting = terms.epsilon, terms.lasting
    numbers, spent = [r.number for r in result.rounds], [r.epsilon for r in result.rounds]
    with _chart(ratio=0.66) as (canvas, axes):
        if numbers:
            axes.step(
                [0, *numbers],
                [0.0, *spent],
                where="post",
                color=BLUE,
                linewidth=1.7,
                label=f"spent so far: {figure(spent[-1])}",
            )
            axes.fill_between([0, *numbers], [0.0, *spent], step="post", color=BLUE, alpha=0.12, linewidth=0)
        axes.axhline(
            limit, color=ORANGE, linestyle="--", linewidth=1.4, label=f"the study's limit, {limit:g}"
        )
        axes.axhline(
            cap,
            color=INK,
            linestyle="-.",
            linewidth=1.4,
            label=f"the treaty's cap, {cap:g} {lasting.partition(',')[0]}",
        )
        top = 1.35 * max([cap, limit, *spent])
        axes.set_ylim(0, top)
        _mark_losses(axes, result.rounds, (limit + cap) / 2 / top)
        _rounds_axis(axes, result.rounds)
        axes.set_ylabel(f"ε per customer, m = {result.treaty.overlap.max_partners_per_customer}")
        axes.legend(loc="upper left")
    told = f"ε reaches {figure(spent[-1])} after {len(spent)} rounds" if spent else "No round was run"
    return _svg(
        canvas,
        "spending",
        "ε spent",
        f"{told}, for {result.treaty.unit}; the study allows {limit:g}, the treaty {cap:g} {lasting}.",
    )


@contextmanager
def _chart(ratio: float = 0.78) -> Iterator[tuple[Figure, Any]]:
    # rc_context puts the caller's settings back; a Figure made without pyplot is kept by nobody.
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(5.6, 5.6 * ratio), layout="constrained", facecolor="none")
        axes = canvas.add_subplot(facecolor="none")
        axes.set_axisbelow(True)
        yield canvas, axes


def _rounds_axis(axes: Any, rounds: Sequence[Round]) -> None:
    axes.set_xlim(0, max([r.number for r in rounds], default=1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")


def _lost(rounds: Sequence[Round]) -> list[tuple[int, list[str]]]:
    """Where silos were lost: round -> who was in the one before and is not in it."""
    return [
        (b.number, gone)
        for a, b in pairwise(rounds)
        if (gone := [s for s in a.survivors if s not in b.survivors])
    ]


def _losses(rounds: Sequence[Round]) -> str:
    return " ".join(
        f"Round {number} was the first without {plain(', '.join(gone))}." for number, gone in _lost(rounds)
    )


def _mark_losses(axes: Any, rounds: Sequence[Round], height: float) -> None:
    place = axes.get_xaxis_transform()  # x in rounds, y in parts of the axis: 0 to 1
    look = {"color": "#a33f00", "rotation": 90, "size": 8, "ha": "right", "va": "center", "transform": place}
    for number, gone in _lost(rounds):
        axes.axvline(number - 0.5, color=RED, linewidth=1, linestyle=":")
        words = f"{plain(', '.join(gone))} lost"
        axes.text(number - 0.55, height, words, **look)


def _svg(canvas: Figure, name: str, title: str, description: str) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's fonts draw the text; a letter that the measuring font lacks is still shown.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.savefig(out, format="svg", metadata=nothing, transparent=True)
    drawing = out.getvalue()
    found = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', drawing, re.DOTALL)
    if found is None:
        raise RuntimeError("matplotlib wrote no SVG")
    box, inner = found.groups()
    # Its style sheet would hold for the whole page; here it is one attribute.
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inner, count=1, flags=re.DOTALL)
    inner = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", inner)
    inner = inner.replace("xlink:href=", "href=")
    return _element(
        name, box, title, description, f'<g stroke-linejoin="round" stroke-linecap="butt">{inner}</g>'
    )


def _element(name: str, box: str, title: str, description: str, inner: str) -> str:
    return (
        f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{inner}</svg>"
    )


# ---------------------------------------------------------------------------------------------------------
# Lineage

BOX, ROW, COLUMN, MARGIN = 180, 50, 224, 8
HEIGHT = 38
LETTERS = 26
"""A box's width and the pitch of rows and columns, in the drawing's units; letters to a line of a box."""


@dataclass(frozen=True)
class _Placed:
    x: float
    y: float


def lineage(result: Result) -> str:
    """Which data went into which job and what came out, left to right."""
    nodes, edges = result.lineage
    columns = layers(list(nodes), list(edges))
    places, width, height = _places(columns)
    arrowhead = (
        '<defs><marker id="lineage-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0.5 8 4 0 7.5z" fill="{GREY}"/></marker></defs>'
    )
    parts = [arrowhead, *(_arrow(places[a], places[b]) for a, b in edges if a in places and b in places)]
    parts += [_node(node, place) for node, place in places.items()]
    jobs = sum(kind == "job" for kind, _ in places)
    text = f"{len(places) - jobs} datasets and {jobs} jobs. " + _told(edges)
    return _element(
        "lineage", f"0 0 {width:g} {height:g}", "Lineage, from tables to model", text, "".join(parts)
    )


def _told(edges: Sequence[Edge]) -> str:
    made: dict[str, tuple[list[str], list[str]]] = {}
    for (kind, name), (other, target) in edges:
        if other == "job":
            made.setdefault(target, ([], []))[0].append(_named(name))
        elif kind == "job":
            made.setdefault(name, ([], []))[1].append(_named(target))
    return " ".join(f"{_named(job)}: from {', '.join(a)} to {', '.join(b)}." for job, (a, b) in made.items())


def _places(layers: Sequence[Sequence[Node]]) -> tuple[dict[Node, _Placed], float, float]:
    """The upper left corner of every box, and the size of the whole."""
    tall = max((len(layer) for layer in layers), default=1)
    places = {}
    for i, layer in enumerate(layers):
        pitch = ROW * tall / len(layer)
        for j, node in enumerate(layer):
            places[node] = _Placed(MARGIN + i * COLUMN, MARGIN + (j + 0.5) * pitch - HEIGHT / 2)
    width = 2 * MARGIN + (len(layers) - 1) * COLUMN + BOX if layers else 2 * MARGIN
    return places, width, 2 * MARGIN + tall * ROW


def _arrow(a: _Placed, b: _Placed) -> str:
    x1, y1, x2, y2 = a.x + BOX, a.y + HEIGHT / 2, b.x, b.y + HEIGHT / 2
    bend = max(abs(x2 - x1) / 2, 24)
    curve = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2 - 2:g} {y2:g}"
    return (
        f'<path d="{curve}" fill="none" stroke="{GREY}" stroke-width="1.2" marker-end="url(#lineage-arrow)"/>'
    )


def _node(node: Node, place: _Placed) -> str:
    kind, name = node
    fill, ink, radius = (INK, "#ffffff", 3) if kind == "job" else ("#e3f0f9", INK, 12)
    lines = _lines(_named(name))
    middle, first = place.x + BOX / 2, place.y + HEIGHT / 2 + 3.5 - 6.5 * (len(lines) - 1)
    text = "".join(
        f'<text x="{middle:g}" y="{first + 13 * i:g}" text-anchor="middle" '
        f'font-size="11" font-family="DejaVu Sans, sans-serif" fill="{ink}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f"<g><title>{escape(plain(f'{kind}: {name}'))}</title>"
        f'<rect x="{place.x:g}" y="{place.y:g}" width="{BOX}" height="{HEIGHT}" rx="{radius}" fill="{fill}" '
        f'stroke="{INK if kind == "job" else BLUE}"/>{text}</g>'
    )


def _named(name: str) -> str:
    return plain(name.removeprefix("foedus://"))


def _lines(name: str) -> list[str]:
    """A name on one line or two, broken after a separator if it has one; the end of a longer one left out."""
    if len(name) <= LETTERS:
        return [name]
    ends = [[i + 1 for i, c in enumerate(name[:LETTERS]) if c in separators] for separators in (" /", ":_-.")]
    cut = next((found[-1] for found in ends if found), LETTERS)
    rest = name[cut:].strip()
    return [name[:cut].strip(), rest if len(rest) <= LETTERS else rest[: LETTERS - 1] + "…"]

"""A graph of lineage as one SVG file: boxes of datasets in columns, left to right; nothing is loaded from elsewhere.

It has a title, a description in words, a legend, and colours for light and dark. Kinds are told apart by
colour, and by the word in the corner of the box. What failed has a dashed frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from .graph import Box, Graph, layers

Key = tuple[str, str]
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 176, 52, 62, 16, 24
_LETTERS = 25
# Hues of Okabe and Ito, told apart with any colour vision; light, dark: fill, frame.
_STYLES: dict[str, tuple[str, tuple[str, str], tuple[str, str]]] = {
    "table": ("source table", ("#e8eef4", "#5b6b7b"), ("#26323d", "#9fb0c0")),
    "register": ("consent register", ("#e2f4ee", "#00785a"), ("#0f332a", "#4fc7a4")),
    "cohort": ("consent snapshot", ("#e2f4ee", "#00785a"), ("#0f332a", "#4fc7a4")),
    "features": ("features", ("#e3f0f9", "#0072b2"), ("#12303f", "#5cb3e6")),
    "update": ("masked update", ("#efe9f6", "#7a4fa3"), ("#2b2238", "#bd9be0")),
    "sum": ("secure sum", ("#efe9f6", "#7a4fa3"), ("#2b2238", "#bd9be0")),
    "study": ("signed study", ("#fdf3dc", "#9a6a00"), ("#382c10", "#e6b450")),
    "approval": ("approvals", ("#fdf3dc", "#9a6a00"), ("#382c10", "#e6b450")),
    "model": ("released", ("#fbe9dd", "#b04a00"), ("#3a2214", "#f2955a")),
    "metrics": ("released", ("#fbe9dd", "#b04a00"), ("#3a2214", "#f2955a")),
    "scores": ("scores", ("#e3f0f9", "#0072b2"), ("#12303f", "#5cb3e6")),
    "masked table": ("masked table", ("#efe9f6", "#7a4fa3"), ("#2b2238", "#bd9be0")),
    "dataset": ("other dataset", ("#f2f2f2", "#6b7280"), ("#2a2d31", "#a3a9b2")),
    "failed": ("failed or aborted", ("#fff0f0", "#b3261e"), ("#3b1c1c", "#ff8a80")),
}


def svg(graph: Graph, title: str) -> str:
    """The picture of a graph, complete; an empty one says so."""
    columns, routes = _routed(graph)
    tall = max((len(column) for column in columns), default=1)
    kinds = [graph.boxes[key].kind for column in columns for key in column if key in graph.boxes]
    legend = _legend(kinds)
    head, foot = MARGIN + 44, 34 + 22 * len(legend)
    width = max(2 * MARGIN + len(columns) * (WIDTH + GAP_X) - GAP_X, 560)
    height = head + tall * (HEIGHT + GAP_Y) + foot
    places = _places(columns, head, tall)
    parts = [_arrow([places[stop] for stop in route]) for route in routes]
    parts += [_box(box, *places[key]) for key, box in graph.boxes.items()]
    if not graph.boxes:
        parts.append(
            f'<text class="ink" x="{MARGIN}" y="{head + 20}" font-size="13">Nothing is known.</text>'
        )
    parts += _legend_rows(legend, head + tall * (HEIGHT + GAP_Y) + 14)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="lineage-title lineage-text" font-family="DejaVu Sans, Noto Sans, sans-serif">'
        f'<title id="lineage-title">{_text(title)}</title><desc id="lineage-text">{_text(words(graph))}</desc>'
        f"{_style()}{_ARROWHEAD}"
        f'<rect class="page" width="{width}" height="{height}"/>'
        f'<text class="ink" x="{MARGIN}" y="{MARGIN + 16}" font-size="16" font-weight="600">{_text(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def words(graph: Graph) -> str:
    """The same in words, for those who can't see it."""
    into: dict[Key, list[str]] = {}
    for a, b in graph.edges:
        into.setdefault(b, []).append(_named(graph.boxes[a]))
    told = [f"{_named(graph.boxes[key])} from {', '.join(sources)}." for key, sources in into.items()]
    return f"{len(graph.boxes)} kinds of data. " + " ".join(told)


def _named(box: Box) -> str:
    return f"{_counted(box)} of {box.party}"


def _counted(box: Box) -> str:
    return f"{len(box.names)} {box.label}" if len(box.names) > 1 and box.kind != "failed" else box.label


def _routed(graph: Graph) -> tuple[list[list[Key]], list[list[Key]]]:
    """Columns, in which an edge over several of them has a free place in each; and every edge as its stops."""
    first = layers(list(graph.boxes), list(graph.edges))
    depth = {key: i for i, column in enumerate(first) for key in column}
    nodes, edges, routes = list(graph.boxes), [], []
    for number, (a, b) in enumerate(graph.edges):
        between = [("", f"{number}/{i}") for i in range(depth[a] + 1, depth[b])]
        route = [a, *between, b]
        nodes += between
        edges += list(pairwise(route))
        routes.append(route)
    return layers(nodes, edges), routes


def _places(columns: Sequence[Sequence[Key]], head: int, tall: int) -> dict[Key, tuple[float, float]]:
    places: dict[Key, tuple[float, float]] = {}
    for i, column in enumerate(columns):
        pitch = tall * (HEIGHT + GAP_Y) / len(column)
        for j, key in enumerate(column):
            places[key] = MARGIN + i * (WIDTH + GAP_X), head + (j + 0.5) * pitch - HEIGHT / 2
    return places


def _arrow(stops: Sequence[tuple[float, float]]) -> str:
    """A curve from the first box through the gaps kept free for it to the last."""
    middle = HEIGHT / 2
    path = f"M{stops[0][0] + WIDTH:g} {stops[0][1] + middle:g}"
    for (x1, y1), (x2, y2) in pairwise(stops):
        start, end = x1 + WIDTH, x2 - (2 if (x2, y2) == stops[-1] else 0)
        bend = max(abs(end - start) / 2, GAP_X / 2)
        path += f"C{start + bend:g} {y1 + middle:g} {end - bend:g} {y2 + middle:g} {end:g} {y2 + middle:g}"
        path += "" if (x2, y2) == stops[-1] else f"h{WIDTH}"
    return f'<path class="edge" d="{path}" marker-end="url(#lineage-head)"/>'


def _box(box: Box, x: float, y: float) -> str:
    known = box.kind if box.kind in _STYLES else "dataset"
    by = f"by {', '.join(sorted(box.jobs))}, " if box.jobs else ""
    if box.jobs and all(job.startswith("silo ") for job in box.jobs):
        by = "as signed by "
    lines = (
        (_STYLES[known][0], 9.5, "soft"),
        (_cut(_counted(box)), 12, "ink"),
        (_cut(f"{by}{box.party}", 31), 9.5, "soft"),
    )
    text = "".join(
        f'<text class="{style}" x="{x + 10:g}" y="{y + 15 + 15.5 * i:g}" font-size="{size:g}">{_text(line)}</text>'
        for i, (line, size, style) in enumerate(lines)
    )
    dashed = ' stroke-dasharray="5 3"' if known == "failed" else ""
    names = sorted(box.names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    title = f"{_named(box)}: {', '.join(names[:5])}{more}"
    return (
        f"<g><title>{_text(title)}</title>"
        f'<rect class="{_class(known)}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"{dashed}/>{text}</g>'
    )


def _legend(kinds: Iterable[str]) -> list[list[str]]:
    """Kinds that occur, each word once, five in a row."""
    found: dict[str, str] = {}
    for kind in kinds:
        known = kind if kind in _STYLES else "dataset"
        found.setdefault(_STYLES[known][0], known)
    known_kinds = list(found.values())
    return [known_kinds[i : i + 4] for i in range(0, len(known_kinds), 4)]


def _legend_rows(rows: Sequence[Sequence[str]], top: float) -> list[str]:
    parts = []
    for i, row in enumerate(rows):
        for j, kind in enumerate(row):
            x, y = MARGIN + j * 130, top + 22 * i
            parts.append(
                f'<rect class="{_class(kind)}" x="{x}" y="{y:g}" width="14" height="12" rx="3"/>'
                f'<text class="soft" x="{x + 20}" y="{y + 10:g}" font-size="10.5">{_text(_STYLES[kind][0])}</text>'
            )
    return parts


def _style() -> str:
    light = "".join(f".{_class(k)}{{fill:{s[1][0]};stroke:{s[1][1]}}}" for k, s in _STYLES.items())
    dark = "".join(f".{_class(k)}{{fill:{s[2][0]};stroke:{s[2][1]}}}" for k, s in _STYLES.items())
    return (
        "<style>.page{fill:#fff}.ink{fill:#1f2933}.soft{fill:#4b5563}.edge{fill:none;stroke:#8a94a0;stroke-width:1.2}"
        f".head{{fill:#8a94a0}}{light}@media (prefers-color-scheme:dark){{.page{{fill:#14181d}}.ink{{fill:#eef2f6}}"
        f".soft{{fill:#b4bec9}}.edge{{stroke:#76828f}}.head{{fill:#76828f}}{dark}}}</style>"
    )


_ARROWHEAD = (
    '<defs><marker id="lineage-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path class="head" d="M0 .5 8 4 0 7.5z"/></marker></defs>'
)


def _class(kind: str) -> str:
    return "k-" + kind.replace(" ", "-")


def _cut(text: str, most: int = _LETTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(text: str) -> str:
    """Text as XML has it; characters that XML can't hold are shown as �."""
    return escape("".join(c if c >= " " and not 0xD800 <= ord(c) < 0xE000 else "�" for c in text))

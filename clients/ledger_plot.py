"""The picture of a ledger: ε spent over time of each purpose, against what the treaty allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from ..compliance.treaty import PurposeTerms, Treaty
from ..errors import InputError
from ..privacy.ledger import Ledger, Line

_BLUE, _ORANGE, _INK, _GREY = "#0072b2", "#b45f06", "#1f2933", "#6b7280"  # Okabe and Ito's, and greys
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a purpose with two dollar signs is still a purpose
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e7ec",
    "text.color": _INK,
    "legend.frameon": False,
}
_POINTS = 400  # questions to the accountant for one curve


@dataclass(frozen=True)
class Curve:
    """ε of one purpose after each of the lines that changed it: within the period, and for life."""

    times: tuple[datetime, ...]
    period: tuple[float, ...]
    life: tuple[float, ...]


def curve(ledger: Ledger, terms: PurposeTerms) -> Curve:
    """How a purpose's ε grew, at its δ: each event counts from its reservation on, at what it cost in the end.

    A write-off is infinite from then on: for life, and in its period.
    """
    reserved = {line.number: line.moment for line in ledger.lines() if line.kind == "reserve"}
    events: list[tuple[datetime, Line | None]] = [
        (reserved[line.ref], line) for line in ledger.standing() if line.purpose == terms.purpose
    ]
    events += [(line.moment, None) for line in ledger.lines() if line.kind == "written-off"]
    events.sort(key=lambda item: item[0])
    starts = [terms.since(moment) for moment, _ in events]
    # The accountant is asked for some points only, and for the last of each period.
    shown = _spread(len(events)) | {i for i, (a, b) in enumerate(pairwise(starts)) if a != b}
    times, period, life = [], [], []
    total, current = ledger.account(), ledger.account()
    lost = lost_now = False
    for place, (moment, line) in enumerate(events):
        if place and starts[place] != starts[place - 1]:
            current, lost_now = ledger.account(), False
        if line is None:
            lost = lost_now = True
        else:
            total.compose(line.cost)
            current.compose(line.cost)
        if place in shown or line is None:
            times.append(moment)
            period.append(math.inf if lost_now else current.epsilon(terms.delta))
            life.append(math.inf if lost else total.epsilon(terms.delta))
    return Curve(tuple(times), tuple(period), tuple(life))


def _spread(count: int) -> set[int]:
    if count <= _POINTS:
        return set(range(count))
    return {round(i * (count - 1) / (_POINTS - 1)) for i in range(_POINTS)}


def borders(terms: PurposeTerms, first: datetime, last: datetime) -> list[datetime]:
    """The starts of the treaty's periods after `first` and up to `last`."""
    found: list[datetime] = []
    day = first
    while day <= last:
        start = terms.since(day)
        if start is not None and start > first and start not in found:
            found.append(start)
        day += timedelta(days=15)  # no period is shorter than 28 days
    end = terms.since(last)
    if end is not None and end > first and end not in found:
        found.append(end)
    return found


def picture(ledger: Ledger, treaty: Treaty, out: Path, *, now: datetime | None = None) -> None:
    """Draw every purpose of the treaty, one above the other, into an .svg or .png file.

    Raises:
        InputError: another kind of file, or it can't be written.
    """
    if out.suffix.lower() not in (".svg", ".png"):
        raise InputError(f"{out}: the picture is an .svg or a .png file")
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    first = min((line.moment for line in ledger.lines()), default=moment - timedelta(days=1))
    span = max(moment - first, timedelta(minutes=2))
    limits = (first - 0.03 * span, moment + 0.04 * span)
    with matplotlib.rc_context(_STYLE):
        rows = len(treaty.purposes)
        canvas = Figure(figsize=(8.0, 0.9 + 2.5 * rows), layout="constrained", facecolor="white")
        for axes, terms in zip(canvas.subplots(rows, 1, squeeze=False)[:, 0], treaty.purposes, strict=True):
            _draw(axes, terms, curve(ledger, terms), limits, moment)
        title = (
            f"ε spent by {ledger.population or 'this silo'}'s customers, until {moment:%Y-%m-%d %H:%M} UTC\n"
            f"for {treaty.unit}"
        )
        canvas.suptitle(title, x=0.01, ha="left", fontsize=11)
        try:
            canvas.savefig(out, dpi=150, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise InputError(f"{out}: {error.strerror or error}") from error


def _draw(
    axes: Any, terms: PurposeTerms, found: Curve, limits: tuple[datetime, datetime], now: datetime
) -> None:
    finite = [e for e in (*found.period, *found.life) if math.isfinite(e)]
    top = 1.25 * max([terms.epsilon, *finite])
    edges = borders(terms, limits[0], now)
    for place, edge in enumerate(edges):
        label = f"a new {terms.period} begins" if not place else None
        axes.axvline(edge, color=_GREY, linewidth=0.9, linestyle=":", label=label)
    spent = _at(found.period, now, found, terms)
    if terms.period is not None:
        life = found.life[-1] if found.life else 0.0
        _steps(axes, found.times, found.life, now, top, color=_GREY, linestyle="--", linewidth=1.3)
        axes.plot([], [], color=_GREY, linestyle="--", linewidth=1.3, label=f"for life: {_figure(life)}")
    ends = [edge for edge in edges if found.times and edge > found.times[0]]
    times, values = _with_resets(found, ends)
    _steps(axes, times, values, now, top, color=_BLUE, linewidth=1.8, fill=True)
    when = f"this {terms.period}" if terms.period else "for life"
    axes.plot([], [], color=_BLUE, linewidth=1.8, label=f"spent {when}: {_figure(spent)}")
    left = max(0.0, terms.epsilon - spent)
    cap = (
        f"cap {f'a {terms.period}' if terms.period else 'for life'}: {terms.epsilon:g}, left: {_figure(left)}"
    )
    axes.axhline(terms.epsilon, color=_ORANGE, linestyle="-.", linewidth=1.5, label=cap)
    lost = [t for t, e in zip(found.times, found.life, strict=True) if math.isinf(e)]
    if lost:
        late = lost[0] > limits[0] + 0.7 * (limits[1] - limits[0])
        axes.annotate(
            "written off",
            (lost[0], 0.92 * top),
            xytext=(-4 if late else 4, 0),
            textcoords="offset points",
            ha="right" if late else "left",
            color=_ORANGE,
        )
    axes.set_title(f"{terms.purpose}, at δ = {terms.delta:g}")
    axes.set_ylim(0, top)
    axes.set_xlim(*limits)
    axes.set_ylabel("ε per customer")
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _at(values: Sequence[float], now: datetime, found: Curve, terms: PurposeTerms) -> float:
    """What is spent now: nothing, if the last line is of an earlier period."""
    if not values or terms.since(found.times[-1]) != terms.since(now):
        return 0.0
    return values[-1]


def _with_resets(found: Curve, edges: Sequence[datetime]) -> tuple[list[datetime], list[float]]:
    points = [*zip(found.times, found.period, strict=True), *((edge, 0.0) for edge in edges)]
    # A line at the very start of a period counts in it: the fall to 0 stands before it.
    points.sort(key=lambda point: (point[0], point[1]))
    return [t for t, _ in points], [e for _, e in points]


def _steps(
    axes: Any,
    times: Sequence[datetime],
    values: Sequence[float],
    now: datetime,
    top: float,
    *,
    fill: bool = False,
    **style: Any,
) -> None:
    """A step curve from 0 to now; what is infinite leaves through the top."""
    if not times:
        return
    xs, ys = [times[0], *times, max(now, times[-1])], [0.0, *values, values[-1]]
    heights = [min(y, 1.1 * top) for y in ys]
    axes.step(xs, heights, where="post", **style)
    if fill:
        axes.fill_between(xs, heights, step="post", color=style["color"], alpha=0.12, linewidth=0)


def _figure(value: float) -> str:
    return "unknown" if math.isinf(value) else f"{value:.3g}"

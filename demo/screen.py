"""What a person sees while a demo runs, and when it is done.

Everything shown at the end comes from a `Result`; the words that `report` shares with it are here too.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from .reference import Row
from .result import Partner, Result

WIDTH = 110
ABSENT = "—"
KINDS = {
    "keys": "signed public keys and commitments, one of each per round",
    "shares": "Shamir shares of the masks' secrets, encrypted for each peer",
    "ready": "a signed statement of who takes part",
    "vector": "masked integers: clipped contributions, noise and masks summed, and their check value",
    "confirm": "a signed statement of whose vectors are in the sum",
    "answer": "parts of what opens the sum of all survivors, and nothing else",
    "receipt": "a signed statement of the ε paid, the sums checked and the audit log seen",
    "witness": "a signature under the head of the audit log that the node has checked",
    "refusal": "the code of the rule that was not met",
}
"""Kind of message that leaves a silo, in the protocol's order -> what is in it."""

EXACT = (
    "These figures are exact, and only this demo can compute them: it owns every partner's table. "
    "In real life nobody does, and there is only what the study itself released, an estimate:"
)
ESTIMATE = (
    "read off one noisy histogram of scores; ± is the standard error of the privacy noise alone, "
    "the test customers' own chance comes on top."
)

_USELESS = 0.1  # a standard error at which an AUC says nothing


def estimate(result: Result) -> str:
    """What the released AUC is worth, for behind the figure."""
    if result.dp_auc_error < _USELESS:
        return ESTIMATE
    return ESTIMATE + " Here it is too large to say anything: too few test customers for this ε."


_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Steps:
    """The phases of a demo as they pass, one at a time: a spinner at a terminal, else a line for each.

    Attributes:
        phases: (name, seconds) of those that ended, well or not.
    """

    def __init__(self, console: Console) -> None:
        self.phases: list[tuple[str, float]] = []
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run the block as the step `name`, time it, and say how it ended."""
        name, begun, done = plain(name), time.monotonic(), False
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._progress = self._live(name)
            self._progress.start()
        try:
            yield
            done = True
        finally:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
            seconds = time.monotonic() - begun
            self.phases.append((name, seconds))
            mark, style = ("✓", "green") if done else ("✗", "red")
            line = Text.assemble((mark, style), f" {name} ", (f"{seconds:.1f} s", "dim"))
            # Not wrapped, so that a log keeps one line for each step.
            self._console.print(line, soft_wrap=True, highlight=False)

    def line(self, text: str) -> None:
        """Say what the current step is at ("round 5 of 13 · ε 0.41"); only a terminal shows it."""
        if self._progress is not None:
            self._progress.update(self._task, detail=plain(text))

    def _live(self, name: str) -> Progress:
        one_line = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[detail]}", style="dim", markup=False, table_column=one_line),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = progress.add_task(name, total=None, detail="")
        return progress


def show(result: Result, console: Console) -> None:
    """Print what the demo found, in at most 110 columns."""
    width = min(console.width, WIDTH)
    wide = width >= 100
    left_out = ", ".join(f"{n:,} {plain(why)}" for why, n in exclusions(result.partners).items()) or "nobody"
    parts: list[RenderableType] = [
        Text(),
        Text(headline(result), style="bold"),
        *(Text(sentence, style="yellow") for sentence in losses(result)),
        Text(plain(f"{result.study.title} · {result.source}"), style="dim"),
        _title("Models", "on the test customers of all partners"),
        _models(result.rows),
        *([Text(alone(result), style="dim")] if alone(result) else []),
        Text(EXACT, style="dim"),
        _estimate(result),
        _title("Partners", "each as read in its own directory"),
        _partners(result.partners, wide=wide),
        *([] if wide else [Text(f"Left out: {left_out}.", style="dim")]),
        Text(f"Left the silos: {left(result.partners)}. A vector is masked integers only.", style="dim"),
        _title("Rounds", rounds(result)),
        Text.assemble(("Privacy", "bold cyan"), "  ", privacy(result)),
        _title("Verified offline", f"{len(result.checks)} checks hold"),
        _checks(result),
        _title("Time", _times(result.phases)),
        _title("Files", ""),
        _files(result),
    ]
    console.print(Group(*parts), width=width, highlight=False)
    # Not wrapped, so that it can be copied.
    command = Text.assemble(("Re-check  ", "bold cyan"), recheck(result))
    console.print(command, soft_wrap=True, highlight=False)


def alone(result: Result) -> str:
    """How many partners' own models rank as well as the federated one: nothing is gained by hiding it."""
    names = {f"{p.name} alone" for p in result.partners}
    own = [r.auc for r in result.rows if r.name in names]
    if not own or not math.isfinite(result.rows[0].auc):
        return ""
    as_good = sum(auc >= result.rows[0].auc for auc in own)
    which = f"{as_good} of {len(own)} partners"
    return f"Trained alone, without noise, {which} rank as well as the federation, or better."


def headline(result: Result) -> str:
    """The demo in one sentence."""
    who = _spelled(len(result.partners), "partner").capitalize()
    return f"{who} trained a {result.study.label.kind} model together; no customer record left its silo."


def losses(result: Result) -> list[str]:
    """A sentence for each partner that was killed."""
    rest = sum(p.lost_in is None for p in result.partners)
    return [
        plain(
            f"The node of {p.name} was killed in round {p.lost_in}; "
            f"{_spelled(rest, 'partner')} finished without it."
        )
        for p in result.partners
        if p.lost_in is not None
    ]


def rounds(result: Result) -> str:
    """All secure sums in a line: what for, how long, how many silos in which rounds."""
    tasks = ", ".join(f"{n} {task}" for task, n in Counter(plain(r.task) for r in result.rounds).items())
    spans = []
    for silos, group in groupby(result.rounds, key=lambda r: len(r.survivors)):
        numbers = [r.number for r in group]
        which = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]}–{numbers[-1]}"
        spans.append(f"{silos} silos in {which}")
    seconds = sum(r.seconds for r in result.rounds)
    return (
        f"{len(result.rounds)} secure sums ({tasks}) in {seconds:.1f} s: {', '.join(spans)}"
        if spans
        else "no secure sum"
    )


def privacy(result: Result) -> str:
    """ε spent against what the study and the treaty allow."""
    terms = result.study.privacy
    cap = result.treaty.terms(result.study.purpose)
    return (
        f"ε = {result.epsilon:.4f} at δ = {terms.delta:g} for {result.treaty.unit}; "
        f"the study allows {terms.epsilon:g}, the treaty {cap.epsilon:g} {cap.lasting}"
    )


def left(partners: Sequence[Partner]) -> str:
    """Every kind of message that left any silo: how many, how large in all."""
    total: dict[str, tuple[int, int]] = {}
    for partner in partners:
        for kind, (messages, size) in partner.sent.items():
            before = total.get(kind, (0, 0))
            total[kind] = (before[0] + messages, before[1] + size)
    found = [f"{plain(k)} {total[k][0]:,} ({amount(total[k][1])})" for k in in_order(total)]
    return ", ".join(found) or "nothing"


def exclusions(partners: Sequence[Partner]) -> dict[str, int]:
    """Why customers are left out, over all partners -> customers."""
    total: Counter[str] = Counter()
    for partner in partners:
        total.update(partner.excluded)
    return dict(total)


def recheck(result: Result) -> str:
    """The command that re-checks the evidence, with the files' own names where they are known."""
    bundle = next((p for p in result.files.values() if p.suffix == ".zip"), Path("evidence.zip"))
    copies = (p if p.name == "treaty.json" else p / "treaty.json" for p in result.files.values())
    treaty = next((p for p in copies if p.is_file()), Path("treaty.json"))
    return f"foedus verify {shlex.quote(short(bundle))} --treaty {shlex.quote(short(treaty))}"


def figure(value: float | None) -> str:
    """Four decimals; a dash for what there is not."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.4f}"


def difference(row: Row, rows: Sequence[Row]) -> str:
    """AUC of a row less that of the pooled one; a dash for the pooled row itself, or if there is none."""
    pooled = next((r for r in rows if r.name.startswith("pooled")), None)
    if pooled is None or row is pooled or not math.isfinite(row.auc - pooled.auc):
        return ABSENT
    return f"{row.auc - pooled.auc:+.4f}".replace("-", "−")


def fate(partner: Partner) -> str:
    """How a partner's node ended."""
    return "finished" if partner.lost_in is None else f"killed in round {partner.lost_in}"


def amount(size: int) -> str:
    """Bytes as a person reads them."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.1f} MB"


def in_order(kinds: Sequence[str] | dict[str, tuple[int, int]]) -> list[str]:
    """Kinds of message in the protocol's order, unknown ones last."""
    known = list(KINDS)
    return sorted(kinds, key=lambda k: (known.index(k) if k in KINDS else len(known), k))


def short(path: Path) -> str:
    """A path relative to here, if that is shorter."""
    return plain(min(os.path.relpath(path), str(path), key=len))


def plain(text: str) -> str:
    """Without control characters: a name can't move the cursor or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _spelled(count: int, noun: str) -> str:
    number = _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
    return f"{number} {noun}{'' if count == 1 else 's'}"


def _title(name: str, what: str) -> Text:
    return Text.assemble("\n", (name, "bold cyan"), "  ", what)


def _table(*columns: Column) -> Table:
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def _number(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def _models(rows: Sequence[Row]) -> Table:
    table = _table(
        Column("", overflow="fold"),
        _number("AUC"),
        _number("AUC vs\npooled"),
        _number("PR-AUC\nchurned"),
        _number("PR-AUC\nreturning"),
        _number("trained on\ncustomers"),
    )
    for place, row in enumerate(rows):
        table.add_row(
            Text(("▸ " if place == 0 else "  ") + plain(row.name)),
            figure(row.auc),
            difference(row, rows),
            figure(row.pr_auc),
            figure(row.pr_auc_return),
            f"{row.customers:,}" if row.customers else ABSENT,
            style="bold green" if place == 0 else "",
        )
    return table


def _estimate(result: Result) -> Text:
    figures = f"▸ AUC {figure(result.dp_auc)} ± {figure(result.dp_auc_error)}"
    return Text.assemble((figures, "bold green"), f", {estimate(result)}")


def _partners(partners: Sequence[Partner], *, wide: bool) -> Table:
    reasons = exclusions(partners)
    caps = {p.cap for p in partners}
    cap = f"of {caps.pop():g}" if len(caps) == 1 else ""
    table = _table(
        Column("", overflow="fold"),
        _number("customers"),
        _number("consenting"),
        *(_number(plain(why).replace(" ", "\n")) for why in reasons if wide),
        *([] if wide else [_number("left\nout")]),
        _number(f"ε spent\n{cap}"),
        _number("sent"),
        Column("node", overflow="fold"),
    )
    for p in partners:
        table.add_row(
            Text(plain(p.name)),
            f"{p.customers:,}",
            f"{p.consenting:,}",
            *(f"{p.excluded.get(why, 0):,}" for why in reasons if wide),
            *([] if wide else [f"{sum(p.excluded.values()):,}"]),
            f"{p.epsilon:.4f}" + ("" if cap else f" of {p.cap:g}"),
            amount(sum(size for _, size in p.sent.values())),
            Text(fate(p), style="yellow" if p.lost_in is not None else ""),
        )
    return table


def _checks(result: Result) -> Table:
    grid = Table.grid(Column(style="green"), Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
    for check in result.checks:
        grid.add_row("✓", Text(f"{check.number:2} {plain(check.name)}"), Text(plain(check.detail)))
    return grid


def _times(phases: Sequence[tuple[str, float]]) -> str:
    parts = [f"{plain(name)} {seconds:.1f}\N{NO-BREAK SPACE}s" for name, seconds in phases]
    return f"{sum(s for _, s in phases):.0f} s: {' · '.join(parts)}" if parts else ABSENT


def _files(result: Result) -> Table:
    grid = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for label, path in result.files.items():
        grid.add_row(Text(plain(label)), Text(short(path)))
    return grid

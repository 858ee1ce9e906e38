"""``make redteam``: run every attack and print what it came to; exit 1 if one succeeds.

Usage, with ``tests`` on PYTHONPATH::

    python tests/redteam/table.py [--quick] [NUMBER ...]

``--quick`` leaves out the checks that start real processes.
"""

from __future__ import annotations

import sys
import time
import warnings

from redteam import (
    altered_attacks,
    answer_attacks,
    fuzz_wire,
    live,
    outsider_attacks,
    split_attacks,
    study_attacks,
    sum_attacks,
)
from redteam.checks import Check, Outcome
from rich.console import Console
from rich.table import Table


def _place(check: Check) -> tuple[int, str]:
    digits = "".join(c for c in check.number if c.isdigit())
    return int(digits), check.number


_MODULES = (
    sum_attacks,
    answer_attacks,
    study_attacks,
    split_attacks,
    altered_attacks,
    fuzz_wire,
    outsider_attacks,
)
CHECKS = sorted((check for module in _MODULES for check in module.CHECKS), key=_place)
_STYLES = {"held": "green", "FELL": "bold red", "VOID": "bold red", "ERROR": "bold red"}


def attempt(check: Check) -> tuple[Outcome, float]:
    """Run a check; one that breaks down has not held."""
    started = time.monotonic()
    try:
        outcome = check.run()
    except Exception as error:  # noqa: BLE001 - the table goes on, and says so
        outcome = Outcome(False, f"the check itself broke: {type(error).__name__}: {error}", False, "-")
    return outcome, time.monotonic() - started


def main(arguments: list[str]) -> int:
    """Print the table; the number of attacks that were not held off (or proved nothing)."""
    warnings.simplefilter("ignore")
    wanted = [a for a in arguments if not a.startswith("-")]
    chosen = [
        c
        for c in CHECKS
        if (c.number in wanted or not wanted) and not ("--quick" in arguments and c.deployment)
    ]
    console = Console(width=None if sys.stdout.isatty() else 170)
    table = Table(title="The red team's attacks on foedus", show_lines=True, expand=True, title_style="bold")
    for column, options in (
        ("#", {"width": 3}),
        ("the attacker …", {"ratio": 2}),
        ("role", {"ratio": 1}),
        ("", {"width": 7}),
        ("what was tried and seen", {"ratio": 6}),
        ("control: where the defence is removed", {"ratio": 3}),
        ("s", {"justify": "right", "width": 4}),
    ):
        table.add_column(column, **options)  # type: ignore[arg-type]
    outcomes: dict[str, str] = {}
    try:
        for check in chosen:
            with console.status(f"{check.number}: {check.title}"):
                outcome, seconds = attempt(check)
            outcomes[check.number] = outcome.word
            style = _STYLES[outcome.word]
            table.add_row(
                check.number, check.title, check.role, f"[{style}]{outcome.word}[/]", _plain(outcome.evidence),
                _plain(outcome.control), f"{seconds:.0f}",
            )  # fmt: skip
    finally:
        live.close()
    console.print(table)
    bad = [number for number, word in outcomes.items() if word != "held"]
    console.print(
        "all held, and every control fell"
        if not bad
        else f"not held: {', '.join(f'{n} ({outcomes[n]})' for n in bad)}"
    )
    return int(bool(bad))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

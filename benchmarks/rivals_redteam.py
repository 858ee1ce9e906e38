"""`make redteam-rivals`: the attacks foedus is tested with, on released secure aggregations.

Every attack runs the package's own code as released, and says FALLS only if what it recovered is the
victim's data, or the wrong result was taken without an objection. Exits non-zero if an attack could not be run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from types import ModuleType

from rich.console import Console
from rich.table import Table
from secagg_rivals.attacks.outcome import Outcome

# key of the attack -> (number of the check, what is tried)
CHECKS = {
    "seed": ("1", "find the mask's seed, or see through the mask, from one upload"),
    "both": ("2", "get both secrets of one node"),
    "split": ("3", "tell two halves two survivor sets"),
    "keys": ("4", "put keys of one's own between two nodes"),
    "threshold": ("5", "lower the threshold"),
    "again": ("6", "ask for the same round again"),
    "clear": ("8", "read counts and metrics beside the vector"),
    "altered": ("12", "hand out an altered sum"),
    "share": ("12", "one node spoils the sum: wrong share, or silence"),
    "overflow": ("12", "honest values too large"),
    "weights": ("12", "honest weights, large or unequal"),
}
# key of the attack -> the check of foedus' own red team that tries the same on foedus (`make redteam`)
FOEDUS: dict[str, str] = {}
RIVALS = {"flower": "Flower SecAgg+", "openfl": "OpenFL", "appfl": "APPFL"}


def load(rival: str) -> ModuleType | str:
    """A rival's attacks, or why it can't be attacked here."""
    try:
        return importlib.import_module(f"secagg_rivals.attacks.{rival}")
    except ImportError as error:
        return f"not installed: {error}"


def run(module: ModuleType, key: str) -> Outcome | None:
    """One attack; None if it broke, which is neither a fall nor a stand."""
    try:
        outcome: Outcome = module.ATTACKS[key]()
        return outcome
    except Exception:  # noqa: BLE001 - whatever broke is shown, and the exit code tells
        traceback.print_exc()
        return None


def cell(outcome: Outcome | None) -> str:
    """What a table says of an outcome."""
    if outcome is None:
        return "[yellow]BROKEN[/]: see the traceback above"
    verdict = {True: "[red]FALLS[/]", False: "[green]holds[/]", None: "–"}[outcome.falls]
    return f"{verdict}  {outcome.told}"


def main() -> int:
    """Run, print, and tell by the exit code whether every attack ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(RIVALS), help="one rival")
    chosen = parser.parse_args().only
    started = time.monotonic()
    modules = {name: load(name) for name in RIVALS if chosen in (None, name)}
    console = Console(width=max(Console().width, 150))
    table = Table(title="Attacks on released secure aggregations", show_lines=True)
    table.add_column("check")
    table.add_column("attack", ratio=2)
    for name, module in modules.items():
        table.add_column(module.NAME if isinstance(module, ModuleType) else RIVALS[name], ratio=3)
    table.add_column("foedus' own check")
    broken = 0
    falls = dict.fromkeys(modules, 0)
    for key, (number, text) in CHECKS.items():
        cells = []
        for name, module in modules.items():
            if isinstance(module, str):
                cells.append(module)
                continue
            outcome = run(module, key)
            broken += outcome is None
            falls[name] += bool(outcome and outcome.falls)
            cells.append(cell(outcome))
        table.add_row(number, text, *cells, FOEDUS.get(key, ""))
    console.print(table)
    ran = [name for name, module in modules.items() if isinstance(module, ModuleType)]
    told = ", ".join(f"{RIVALS[name]} to {falls[name]}" for name in ran)
    console.print(
        f"Of {len(CHECKS)} attacks: {told or 'nobody is installed'}. {time.monotonic() - started:.0f} s."
    )
    return 1 if broken or not ran else 0


if __name__ == "__main__":
    sys.exit(main())

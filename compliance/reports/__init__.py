"""Reports that an officer signs: model card, PIPIA, DPIA, record of processing, statement of ε; English and Chinese.

A report is made from an evidence bundle that was verified (and a node's own log). Each sentence of fact cites
the log entries it rests on, with the place of each value (`sentences`); what people judge is theirs, by name
(`answers`); the rest explains law and method. `check` fails on anything else. The words are in `wording/`.
"""

from .build import build, digest
from .check import Checked, check
from .outlines import OUTLINES, Outline, outline
from .sources import Sources

__all__ = ["OUTLINES", "Checked", "Outline", "Sources", "build", "check", "digest", "outline"]

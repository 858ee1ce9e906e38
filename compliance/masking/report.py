"""The report on a masked table: what it gives away, what was lost, and what neither figure says.

It is made from the released table, the meaning of its labels and the number of rows there were before: not from
anything the method believes to have done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import measures
from .classes import Ints
from .domains import Domain
from .hierarchies import TOP, Hierarchy
from .measures import Classes, Disclosure, Risk
from .policy import Policy

CAUTIONS = (
    "A table that holds k, l or t is still personal data where other knowledge can single people out.",
    "These are properties of this one release: two releases of the same people can be intersected.",
    "k within one silo says nothing of the union of silos.",
)


@dataclass(frozen=True)
class Utility:
    """What was lost.

    Attributes:
        gcp: global certainty penalty, the mean loss over cells, weights counted; 1 for a row that is gone.
        discernibility: Σ size² over classes, and rows² for each suppressed row's share (Bayardo and Agrawal 2005).
        average_class: rows in classes, over classes times k (LeFevre et al. 2006): 1 is best.
        suppressed: the part of the rows that is left out or ``*`` in every quasi-identifier.
        by_column: the mean loss of each column over the released rows.
    """

    gcp: float
    discernibility: float
    average_class: float
    suppressed: float
    by_column: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What is told of a release.

    Attributes:
        rows_in, rows_out, starred: rows before; rows released; those of them with ``*`` in every quasi-identifier.
        k: rows of the smallest class.
        disclosure: of each sensitive column.
        presence: least and greatest probability of being in the table, with a population.
        prosecutor, journalist, marketer: of re-identification; `journalist` needs a population.
    """

    method: str
    asked: Mapping[str, Any]
    rows_in: int
    rows_out: int
    starred: int
    classes: int
    k: int
    disclosure: Mapping[str, Disclosure]
    presence: tuple[float, float] | None
    prosecutor: Risk
    journalist: Risk | None
    marketer: float
    utility: Utility

    @classmethod
    def of(
        cls,
        released: pd.DataFrame,
        classes: Classes,
        policy: Policy,
        domains: Sequence[Domain],
        rows_in: int,
        method: str,
        people: int | None = None,
    ) -> Report:
        """Measure a released table.

        Args:
            classes: those of `released`.
            domains: of its quasi-identifiers.
            people: how many the population has, if there is one.
        """
        starred = all_stars(classes)
        threshold = policy.risk_threshold
        return cls(
            method=method,
            asked=_asked(policy),
            rows_in=rows_in,
            rows_out=len(released),
            starred=int(classes.size[starred].sum()),
            classes=len(classes),
            k=int(classes.size.min()),
            disclosure={
                name: measures.disclosure(classes, name, policy.closeness(name, coded))
                for name, coded in classes.sensitive.items()
            },
            presence=None if people is None else measures.presence(classes, people),
            prosecutor=measures.prosecutor(classes, threshold),
            journalist=measures.journalist(classes, threshold),
            marketer=measures.marketer(classes),
            utility=utility(classes, domains, rows_in),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = dataclasses.asdict(self) | {"cautions": CAUTIONS}
        return {name: _plain(value) for name, value in found.items()}

    def lines(self) -> list[str]:
        """For people, a figure a line."""
        u, gone = self.utility, self.rows_in - self.rows_out
        told = [
            f"method         {self.method}",
            f"rows           {self.rows_out} of {self.rows_in} released; {gone} left out, {self.starred} all *",
            f"classes        {self.classes}; the smallest has k = {self.k}",
        ]
        for name, d in self.disclosure.items():
            told.append(
                f"{name[:14]:14} l = {d.distinct_l} (entropy {d.entropy_l:.3f}), t = {d.t:.4f}, "
                f"α = {d.alpha:.3f}, β = {d.beta:.3f}, δ = {d.delta:.3f}"
            )
        if self.presence is not None:
            told.append("presence       {:.4f} to {:.4f}".format(*self.presence))
        told.append(f"prosecutor     {_risk(self.prosecutor)}")
        if self.journalist is not None:
            told.append(f"journalist     {_risk(self.journalist)}")
        return [
            *told,
            f"marketer       {self.marketer:.4f}",
            f"loss           GCP {u.gcp:.4f}, discernibility {u.discernibility:.4g}, average class {u.average_class:.2f} k",
            f"suppressed     {u.suppressed:.4%}",
            *CAUTIONS,
        ]


def utility(classes: Classes, domains: Sequence[Domain], rows_in: int) -> Utility:
    """What a released table lost, by the meaning of its labels.

    Args:
        domains: of its quasi-identifiers.
        rows_in: rows there were before.
    """
    rows = classes.size.sum()
    by_column = {domain.name: _mean_loss(classes, domain) for domain in domains}
    weights = sum(domain.weight for domain in domains)
    lost = sum(domain.weight * by_column[domain.name] for domain in domains) / weights * rows
    gone = rows_in - rows
    starred = all_stars(classes)
    sizes = classes.size[~starred]
    suppressed = gone + classes.size[starred].sum()
    k = classes.size.min()
    return Utility(
        gcp=float((lost + gone) / rows_in),
        discernibility=float((sizes**2).sum() + suppressed * rows_in),
        average_class=float(sizes.sum() / (len(sizes) * k)) if len(sizes) else float("inf"),
        suppressed=float(suppressed / rows_in),
        by_column=by_column,
    )


def _mean_loss(classes: Classes, domain: Domain) -> float:
    column = classes.quasi[domain.name]
    losses = np.array([domain.label_loss(label) for label in column.values])
    rows = np.bincount(column.codes, minlength=len(losses))
    return float((losses * rows).sum() / rows.sum())


def all_stars(classes: Classes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which classes are ``*`` in every quasi-identifier, shape (classes,)."""
    found = np.ones(len(classes), bool)
    for name, column in classes.quasi.items():
        codes: Ints = classes.labels(name)
        found &= codes == (column.values.index(TOP) if TOP in column.values else -1)
    return found


def _asked(policy: Policy) -> dict[str, Any]:
    content = policy.model_dump(mode="python", exclude_defaults=True)
    for column in content["columns"].values():
        if isinstance(column.get("hierarchy"), Hierarchy):
            column["hierarchy"] = "given in code"
    return {str(name): _plain(value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    """As JSON has it; an infinity as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return value.name  # where it lies is nobody's business
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _risk(risk: Risk) -> str:
    return (
        f"{risk.highest:.4f} at most, {risk.average:.4f} on average; "
        f"{risk.above:.4%} of the records above {risk.threshold:g}"
    )

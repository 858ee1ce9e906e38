"""What foedus' datasets, jobs and runs are called, so that the lineages of silos and server fit together.

::

    foedus://shop-a     orders, consent register ─▶ cohort/… ─▶ features/… ─▶ masked update/STUDY/RUN/ROUND
    foedus://server     study/…, approval/…, those updates ─▶ sum/STUDY/RUN/ROUND ─▶ model/…, metrics/…

Runs of a study have an id that everybody works out from the time of the server's log entry ``run.started``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from . import facets as f
from .events import Dataset, Kind, run_id

ACCOUNTANT = "privacy loss distributions; sums of discrete Gaussians by a comparison with one Gaussian"
_SHORT = 16  # digits of a digest in a name

Parent = tuple[UUID, str, str]


def namespace(party: str) -> str:
    """Of a silo's, or a server's, jobs and datasets."""
    return f"foedus://{party}"


def job(study: str, what: str) -> str:
    """A job of a study: ``study``, ``node``, ``cohort``, ``features``, ``round``, ``secure sum``, ``release`` …"""
    return f"{study[:_SHORT]}/{what}"


def of_study(started: datetime, study: str, run: str, origin: str) -> Parent:
    """The run of a study at the server, of which all others are part."""
    return run_id(started, "study", study, run), namespace(origin), job(study, "study")


def of_treaty(treaty: str, origin: str) -> Parent:
    """What a run of a study is part of; a treaty is no run, but consumers want a parent always."""
    return uuid5(NAMESPACE_URL, f"foedus:treaty:{treaty}"), namespace(origin), f"treaty/{treaty[:_SHORT]}"


def of_node(party: str) -> Parent:
    """What a run at a silo that belongs to no study is part of."""
    return uuid5(NAMESPACE_URL, f"foedus:node:{party}"), namespace(party), "node"


def table(party: str, name: str) -> Dataset:
    """A silo's source table."""
    return Dataset("table", name, namespace(party), tags={"personal-data": "true"})


def register(party: str) -> Dataset:
    """A silo's register of consents."""
    return Dataset("register", "consent register", namespace(party), tags={"personal-data": "true"})


def cohort(party: str, purpose: str, entry: str, **more: Any) -> Dataset:
    """Who consented, by the leaf hash of the entry of the silo's audit log that states it."""
    told = f.Consent.made(purpose=purpose, entry=entry, **more)
    tags = {"purpose": purpose, "consent": entry}
    return Dataset(
        "cohort", f"cohort/{entry[:_SHORT]}", namespace(party), tags=tags, facets={f.Consent.facet: told}
    )


def update(party: str, study: str, run: str, number: int) -> Dataset:
    """What a silo gives to a round: clipped, with its share of the noise, under masks."""
    return Dataset(
        "update", f"masked update/{study[:_SHORT]}/{run}/{number}", namespace(party), tags={"masking": "true"}
    )


def total(origin: str, study: str, run: str, number: int) -> Dataset:
    """A round's opened sum, noise in it."""
    return Dataset("sum", f"sum/{study[:_SHORT]}/{run}/{number}", namespace(origin))


def document(kind: Kind, origin: str, digest: str) -> Dataset:
    """A signed document: study, approval, model or metrics."""
    return Dataset(kind, f"{kind}/{digest[:_SHORT]}", namespace(origin), version=digest)


def purpose(purpose: str, study: str, run: str, treaty: str | None) -> f.Json:
    """The facet of what a run is for."""
    return f.Purpose.made(purpose=purpose, study=study, run=run, treaty=treaty)


def secure_sum(
    number: int, task: str, survivors: Sequence[str], threshold: int, witness: str, digest: str | None = None
) -> f.Json:
    """The facet of a round's sum."""
    return f.SecureSum.made(
        round=number, task=task, survivors=sorted(survivors), threshold=threshold, witness=witness, sum=digest
    )

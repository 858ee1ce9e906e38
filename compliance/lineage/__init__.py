"""Lineage: which tables, consents, approvals, sums, releases and models came from which.

- `events`: OpenLineage 2-0-2; `facets`: what it has no word for.
- `store`: the record, and one query from a model to all it comes from.
- `subjects`: at a silo, from a customer to all they went into.
- `sending`: to any OpenLineage endpoint, from an outbox.
- `tracing`: a trace in words; `drawing`: as a picture.
"""

from __future__ import annotations

from . import names
from .events import Dataset, Event, EventType, new_run_id, read_events, run_id
from .store import Lineage, Store, Stored, pair
from .subjects import Subjects, Touch, Use

__all__ = [
    "Dataset",
    "Event",
    "EventType",
    "Lineage",
    "Store",
    "Stored",
    "Subjects",
    "Touch",
    "Use",
    "names",
    "new_run_id",
    "pair",
    "read_events",
    "run_id",
]

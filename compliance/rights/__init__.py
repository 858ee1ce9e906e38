"""The rights of a silo's customers (PIPL art. 44 to 50, GDPR art. 12 to 22): requests, deadlines, and where their data is.

Nothing here knows a node: `clients.rights` binds the map to a node's files and does what is asked.
"""

from __future__ import annotations

from .deadlines import Calendar
from .erasures import Erasure, Erasures, ModelFate, Step
from .holds import Hold, Holds, Output, Outputs
from .places import Choice, DataMap, Errand, Outcome, Place, Told
from .requests import Kind, Request, Requests, State

__all__ = [
    "Calendar",
    "Choice",
    "DataMap",
    "Erasure",
    "Erasures",
    "Errand",
    "Hold",
    "Holds",
    "Kind",
    "ModelFate",
    "Outcome",
    "Output",
    "Outputs",
    "Place",
    "Request",
    "Requests",
    "State",
    "Step",
    "Told",
]

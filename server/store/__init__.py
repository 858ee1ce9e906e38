"""What the coordinator keeps: tokens, studies, approvals, runs and their events, releases."""

from .store import Store
from .tables import TERMINAL, ReleaseRow, RunEvent, RunRow, StudyRow, TokenRow

__all__ = ["TERMINAL", "ReleaseRow", "RunEvent", "RunRow", "Store", "StudyRow", "TokenRow"]

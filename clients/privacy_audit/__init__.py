"""A study tested against itself: what its claims say, and what an auditor with every means finds.

`audit` rehearses a study many times with canaries among the customers, tries to tell which were there,
and looks at the noise and at the clipping themselves. `runs`, `canaries`, `sensitivity` and `noises` are
its parts, `privacy.audit` its statistics; `foedus audit-privacy` shows it.
"""

from .audit import Line, Report, audit

__all__ = ["Line", "Report", "audit"]

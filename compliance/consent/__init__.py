"""Who permitted which use of their data, when, under which notice; kept at the silo.

`notices` say what was told, `records` what is kept of a consent, `decisions` what it permits; `register` keeps them.
"""

from .decisions import Allowed, Ask, Denied, may_use
from .notices import Notice
from .records import ConsentRecord, Grant, Withdrawal
from .register import Change, ConsentRegister

__all__ = [
    "Allowed",
    "Ask",
    "Change",
    "ConsentRecord",
    "ConsentRegister",
    "Denied",
    "Grant",
    "Notice",
    "Withdrawal",
    "may_use",
]

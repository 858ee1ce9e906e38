"""Who permitted which use of their data, when, under which notice; kept at the silo."""

from .register import ConsentRecord, ConsentRegister, Grant, Withdrawal

__all__ = ["ConsentRecord", "ConsentRegister", "Grant", "Withdrawal"]

"""What is recorded of a consent: the fields of ISO/IEC TS 27560:2023, and what a caller may tell the register.

Clause 6.3 of the standard, and where each field is here:

=====================  ==========================================================================
schema version         `SCHEMA_VERSION`
record id              `ConsentRecord.record_id`, 128 random bits
PII principal id       `ConsentRecord.subject`, as in the silo's table; a keyed pseudonym in receipts
privacy notice         `notice_version`, version and language; its digest is that of the `Notice`
purpose, PII types     `purpose`, `categories` (`vocabulary`)
sensitive PII          `vocabulary.sensitive`; `sensitive`: separately consented to (PIPL art. 29)
lawful basis           `legal_basis`
controller, storage, withdrawal method, rights, jurisdiction: the notice's
recipients             the notice's; `sharing`: separately consented to (PIPL art. 23)
event time, state      `granted_at`, `expires_at`, `withdrawn_at`; `supersedes`
collection method      `method`, `evidence`: SHA-256 of a form, a call or a screen, kept elsewhere
entity                 the subject, or `guardian` (PIPL art. 31)
=====================  ==========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from ...errors import InputError
from .notices import OWN_CONSENT

SCHEMA_VERSION = "https://w3id.org/dpv/schema/dpv-27560#record"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FieldError(InputError):
    """What is wrong with which field; who reads a file adds where."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


@contextmanager
def located(where: str) -> Iterator[None]:
    """A FieldError from inside says where its field stands, and stops being one."""
    try:
        yield
    except FieldError as error:
        raise InputError(f"{where}, column {error.field!r}: {error.problem}") from error


@dataclass(frozen=True)
class Grant:
    """A consent to record; `granted_at` None means now.

    Args:
        notice_version: version and language, ``2026-01/zh``.
        categories: None for all that the notice names for the purpose, of which sensitive ones only if
            `sensitive`.
        sensitive: sensitive data was consented to separately. sharing: recipients consented to separately.
        born: needed under a notice for everybody, and for whom a guardian consents.
        guardian: who consented in the place of one too young to.
        evidence: SHA-256 (hex) of what shows it.
    """

    subject: str
    purpose: str
    notice_version: str
    granted_at: datetime | None = None
    expires_at: datetime | None = None
    method: str = "import"
    categories: tuple[str, ...] | None = None
    sensitive: bool = False
    sharing: tuple[str, ...] = ()
    born: date | None = None
    guardian: str | None = None
    evidence: str | None = None

    def check(self) -> None:
        """Raise FieldError where a field is not of its form."""
        for field in ("subject", "purpose", "notice_version", "method"):
            check_text(field, getattr(self, field))
        for field in ("guardian", "evidence"):
            if getattr(self, field) is not None:
                check_text(field, getattr(self, field))
        if self.evidence is not None and not _DIGEST.fullmatch(self.evidence):
            raise FieldError("evidence", "not a SHA-256 of 64 hexadecimal digits")
        if self.granted_at is not None:
            micros("granted_at", self.granted_at)
        if self.expires_at is not None:
            micros("expires_at", self.expires_at)


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawal to record; `at` None means now."""

    subject: str
    purpose: str
    at: datetime | None = None


@dataclass(frozen=True)
class Terms:
    """What a consent is to; many customers share one."""

    notice_version: str
    purpose: str
    categories: frozenset[str]
    sensitive: bool
    sharing: frozenset[str]


@dataclass(frozen=True)
class ConsentRecord:
    """One grant and what became of it.

    `own_from`: since when the subject can consent themselves, where the date of birth was stated.
    `withdrawn_at`: the first withdrawal at or after the grant.
    """

    record_id: str
    subject: str
    terms: Terms
    granted_at: datetime
    expires_at: datetime | None
    withdrawn_at: datetime | None
    method: str
    own_from: datetime | None = None
    guardian: str | None = None
    evidence: str | None = None
    supersedes: str | None = None

    @property
    def purpose(self) -> str:
        return self.terms.purpose

    @property
    def notice_version(self) -> str:
        return self.terms.notice_version

    @property
    def legal_basis(self) -> str:
        """The DPV term: explicit where something was consented to separately."""
        separate = self.terms.sensitive or bool(self.terms.sharing)
        return "dpv:ExplicitlyExpressedConsent" if separate else "dpv:ExpressedConsent"

    def state(self, at: datetime) -> str:
        """``given``, ``expired``, ``withdrawn`` at `at`, or ``requested`` before the grant."""
        if at < self.granted_at:
            return "requested"
        if self.withdrawn_at is not None and self.withdrawn_at <= at:
            return "withdrawn"
        return "expired" if self.expires_at is not None and self.expires_at <= at else "given"


def own_from(born: date, jurisdiction: str) -> datetime:
    """When one born on that day is old enough to consent alone: the start of the day after the birthday.

    The day after, as Chinese law counts full years; by the jurisdiction's last clock, so never too early.
    """
    years, offset = OWN_CONSENT[jurisdiction]
    year = born.year + years
    try:
        birthday = born.replace(year=year)
    except ValueError:  # 29 February
        birthday = date(year, 3, 1)
    after = birthday + timedelta(days=1)
    return datetime(after.year, after.month, after.day, tzinfo=UTC) - timedelta(hours=offset)


def check_text(field: str, value: object) -> None:
    """Raise FieldError unless it is a printable text."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise FieldError(field, f"{value!r} is not a printable text")


def now() -> int:
    return micros("now", datetime.now(UTC))


def micros(field: str, moment: datetime) -> int:
    """Microseconds since 1970 of an aware time.

    Raises:
        FieldError: it has no timezone.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise FieldError(field, f"{moment} has no timezone")
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


def maybe(value: int | None) -> datetime | None:
    return None if value is None else moment(value)

"""Notices: what a customer was told before they consented, version by version, in Chinese and English.

A consent covers what its notice said and no more: a new purpose, category or recipient needs a new version,
and everybody's consent anew (PIPL art. 14, second paragraph). So a version, once published, never changes.

::

    version: 2026-01
    effective_from: 2026-01-01T00:00:00+08:00
    controller: {name: Shop A, address: "1 Nanjing Road, Shanghai", contact: privacy@shop-a.example}
    jurisdiction: CN
    audience: own_consent
    recipients: [bank-b]
    purposes:
      dpv:CustomerRelationshipManagement: [user.behavior.purchase_history]
    storage: {location: CN, days: 1096}
    withdraw_at: https://shop-a.example/consent
    rights_at: https://shop-a.example/rights
    text: {zh: …, en: …}
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...documents import canonical, digest, read_text
from ...errors import FoedusError, InputError
from . import vocabulary

KIND = "consent.notice"
LANGUAGES = ("zh", "en")
Language = Literal["zh", "en"]

# Until this age a parent or guardian consents, from then on only the person; and the offset from UTC, in
# hours, of the jurisdiction's last clock to reach a new day.
OWN_CONSENT = {
    "CN": (14, 8),  # PIPL art. 31
    "EU": (16, -1),  # GDPR art. 8(1), where no member state's law says less
}

Text = Annotated[str, Field(min_length=1, max_length=100_000)]
Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Controller(_Part):
    """Who decides about the data, and how to reach them (PIPL art. 17, GDPR art. 13)."""

    name: Line
    address: Line
    contact: Line


class Storage(_Part):
    """Where and for how many days data is kept."""

    location: Line
    days: int = Field(ge=1, le=1096, description="at most three years")


class Texts(_Part):
    """The notice as people read it."""

    zh: Text
    en: Text


class Notice(_Part):
    """One version of a notice.

    `audience`: ``own_consent`` addresses people old enough to consent themselves, and says so; under
    ``all`` a consent must state the date of birth.
    """

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    effective_from: datetime
    controller: Controller
    jurisdiction: Literal["CN", "EU"]
    audience: Literal["own_consent", "all"]
    recipients: tuple[Line, ...] = ()
    purposes: dict[str, tuple[str, ...]]
    storage: Storage
    withdraw_at: Line
    rights_at: Line
    text: Texts

    @field_validator("effective_from")
    @classmethod
    def _aware(cls, value: datetime) -> datetime:
        if value.utcoffset() is None:
            raise ValueError("a time without a timezone")
        return value

    @field_validator("purposes")
    @classmethod
    def _known(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if not value:
            raise ValueError("no purpose is named")
        try:
            for purpose, categories in value.items():
                vocabulary.purpose(purpose)
                vocabulary.categories(categories)
        except FoedusError as error:
            raise ValueError(error.message) from error
        return value

    @classmethod
    def checked(cls, content: Any, what: str = "notice") -> Notice:
        """A notice from untrusted fields (times and lists as JSON or YAML has them).

        Raises:
            InputError: a field is missing, unknown or malformed, or a word is not in the vocabulary.
        """
        try:
            return cls.model_validate(content, strict=False)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{what}, {field or 'as a whole'}: {first['msg']}") from error

    @classmethod
    def load(cls, path: Path) -> Notice:
        """Read a notice in YAML.

        Raises:
            InputError: unreadable, or as `checked`.
        """
        try:
            content = yaml.safe_load(read_text(path))
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            raise InputError(f"{path}: not YAML: {error}") from error
        return cls.checked(content, str(path))

    @property
    def payload(self) -> dict[str, Any]:
        """The notice in JSON."""
        content = self.model_dump(mode="json")
        content["effective_from"] = self.effective_from.astimezone(UTC).isoformat()
        return content

    def dumps(self) -> str:
        """Canonical JSON."""
        return canonical(self.payload).decode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the whole notice, both texts included."""
        return digest(KIND, self.payload)

    def text_digest(self, language: Language) -> str:
        """SHA-256 (hex) over the text in UTF-8: what this customer read."""
        return hashlib.sha256(getattr(self.text, language).encode()).hexdigest()


def split_version(name: str) -> tuple[str, Language]:
    """``"2026-01/en"`` -> version and language.

    Raises:
        InputError: no language, or another one.
    """
    version, _, language = name.rpartition("/") if isinstance(name, str) else ("", "", "")
    if not version or language not in LANGUAGES:
        raise InputError(f"{name!r} names no notice and language, such as 2026-01/en or 2026-01/zh")
    return version, "zh" if language == "zh" else "en"

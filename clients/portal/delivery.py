"""How a code reaches the customer: into a folder (for trials), or through a webhook of the partner's, who knows the telephone.

The node has no telephone numbers and sends no messages. A webhook gets ``POST`` with ``{"subject", "code", "language",
"expires_seconds"}`` and the headers ``X-Foedus-Time`` and ``X-Foedus-Signature`` of `compliance.anomalies.sinks`.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Protocol

import httpx
import yaml
from pydantic import Field, ValidationError, model_validator

from ... import durable
from ...compliance.anomalies.sinks import signature
from ...compliance.treaty import Document, explain
from ...documents import canonical, read_text
from ...errors import InputError, Unreachable
from .codes import SECONDS

FILE = "portal.yaml"
OUTBOX = "portal-outbox"


class Delivery(Protocol):
    """Brings a code to a customer."""

    def send(self, subject: str, code: str, language: str) -> None:
        """Raises: FoedusError: it could not be sent."""


class FolderDelivery:
    """A file a code (mode 0600): whoever tries the portal out reads it there. Files of codes that are over go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def send(self, subject: str, code: str, language: str) -> None:
        for old in self._folder.glob("*.json"):
            if old.stat().st_mtime < time.time() - SECONDS:
                old.unlink(missing_ok=True)
        told = {"subject": subject, "code": code, "language": language, "expires_seconds": SECONDS}
        file = self._folder / f"{time.time_ns()}-{secrets.token_hex(4)}.json"
        durable.replace(file, canonical(told))
        file.chmod(0o600)


class WebhookDelivery:
    """The partner's own system sends the message.

    Raises:
        InputError: not https (or http to this machine), or a short secret.
    """

    def __init__(self, url: str, secret: bytes, *, timeout: float = 5.0) -> None:
        if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
            raise InputError(f"{url}: a webhook is https, or http to this machine")
        if len(secret) < 16:
            raise InputError("the webhook's secret has fewer than 16 bytes")
        self._url, self._secret, self._timeout = url, secret, timeout

    def send(self, subject: str, code: str, language: str) -> None:
        told = {"subject": subject, "code": code, "language": language, "expires_seconds": SECONDS}
        body, now = canonical(told), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Foedus-Time": now,
            "X-Foedus-Signature": signature(self._secret, now, body),
        }
        try:
            answer = httpx.post(
                self._url, content=body, headers=headers, timeout=self._timeout, follow_redirects=False
            )
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._url}: {type(error).__name__}") from error
        if not answer.is_success:
            raise Unreachable(f"{self._url}: answers {answer.status_code}")


class Hook(Document):
    """`secret` is a file beside portal.yaml."""

    url: str
    secret: str


class Name(Document):
    """What customers know the company as."""

    en: str = Field(min_length=1, max_length=80)
    zh: str = Field(min_length=1, max_length=80)


class PortalSettings(Document):
    """The content of portal.yaml.

    ::

        name: {en: Aster Music, zh: 阿斯特音乐}
        origin: https://rights.aster.example   # as browsers see it
        delivery: folder                       # for trials; or
        webhook: {url: "https://sms.aster.example/code", secret: portal-webhook.key}
    """

    name: Name
    origin: str = Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")
    delivery: str | None = Field(default=None, pattern="^folder$")
    webhook: Hook | None = None

    @model_validator(mode="after")
    def _one(self) -> PortalSettings:
        if (self.delivery is None) == (self.webhook is None):
            raise ValueError(
                "say how codes reach customers: `delivery: folder` or `webhook: …`, one of the two"
            )
        return self

    @classmethod
    def load(cls, directory: Path) -> PortalSettings:
        """Read portal.yaml in a node's directory.

        Raises:
            InputError: missing, or not what it must be.
        """
        file = directory / FILE
        if not file.is_file():
            raise InputError(
                f"{file}: no such file",
                remedy="it says the portal's name, origin, and how one-time codes reach customers: docs/for-partners.md",
            )
        try:
            return cls.model_validate(yaml.safe_load(read_text(file)) or {})
        except yaml.YAMLError as error:
            raise InputError(f"{file}: not YAML: {error}") from error
        except ValidationError as error:
            raise explain(error, str(file)) from error

    def deliverer(self, directory: Path) -> Delivery:
        """Raises: InputError: a bad address, or no secret."""
        if self.webhook is None:
            return FolderDelivery(directory / OUTBOX)
        secret = read_text(directory / self.webhook.secret).strip().encode()
        return WebhookDelivery(self.webhook.url, secret)

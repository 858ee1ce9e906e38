"""The content of watch.yaml: where the silo is, what blocks, where alerts go.

::

    zone: Europe/Berlin
    blocks: [bulk, refusals]
    k: 20
    every_seconds: 60
    webhook: {url: "https://soc.example/hook", secret: webhook.key}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from ...documents import read_text
from ...errors import InputError
from ..treaty import Document, explain
from .alerts import Rule
from .policy import Policy
from .sinks import Webhook


class Receiver(Document):
    """`secret` is a file beside watch.yaml; its bytes, without white space at the ends, are the key."""

    url: str
    secret: str


class WatchSettings(Document):
    zone: str = "UTC"
    weekend: tuple[int, ...] = (5, 6)
    hours: tuple[int, int] = (7, 20)
    blocks: tuple[Rule, ...] = ()
    k: int = Field(default=20, ge=2)
    every_seconds: int = Field(
        default=60, ge=1, le=86_400, description="between two turns of a process on duty"
    )
    webhook: Receiver | None = None

    @field_validator("weekend", "hours", "blocks", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def load(cls, path: Path) -> WatchSettings:
        """Read watch.yaml.

        Raises:
            InputError: unreadable, not YAML, or a field that is unknown or out of range.
        """
        try:
            return cls.model_validate(yaml.safe_load(read_text(path)) or {})
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from error
        except ValidationError as error:
            raise explain(error, str(path)) from error

    def policy(self, caps: dict[str, float]) -> Policy:
        """The policy it asks for. Raises: InputError: no such time zone."""
        return Policy(
            zone=self.zone,
            weekend=self.weekend,
            hours=self.hours,
            k=self.k,
            caps=caps,
            blocks=frozenset(self.blocks),
        )

    def webhooks(self, directory: Path) -> list[Webhook]:
        """The receiver, if there is one. Raises: InputError: a bad address, or no secret."""
        if self.webhook is None:
            return []
        return [Webhook(self.webhook.url, read_text(directory / self.webhook.secret).strip().encode())]

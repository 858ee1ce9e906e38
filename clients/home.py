"""A node's directory: its configuration, keys and registers, all in one place.

::

    node.yaml      party, server (host:port of the gateway), table (path of the orders), categories of its data
    treaty.json    this partner's own signed copy: the only thing the node trusts
    identity.key   Ed25519, signs what the node sends          (mode 0600)
    fleet.key      EC P-384, the node's key towards Flower     (mode 0600)
    ca.crt         the CA that signed the gateway's certificate
    consent.db     who allowed what
    cohort.key     32 bytes, names customers in cohorts' roots and receipts (mode 0600)
    rights.db      requests of customers, erasures, the models they touch, legal holds, files that name customers
    erasure.key    32 bytes, names the erased in what is kept (mode 0600)
    ledger.db      what customers have paid, for life
    journal.db     what was done once and is not done again
    log-head       the last head of the server's audit log
    audit.db       the node's own audit log; what it has sealed is in audit-payloads.db, the keys in audit-keys/
    lineage.db     the node's own lineage (OpenLineage events)
    subjects.db    which customers went into what, under pseudonyms keyed by lineage.key (both mode 0600)
    revoked.db     studies that an approver has taken back
    watch.db       what the watch has learned, its alerts and blocks; watch.yaml its settings
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import Field, ValidationError

from ..compliance.consent.membership import KEY_BYTES
from ..compliance.treaty import Document, Name, explain
from ..documents import SigningKey, ensure_private_file, read_private_file, read_text
from ..errors import InputError
from ..federation.schema import Table
from .fleet import FleetLink, generate_node_key

if TYPE_CHECKING:
    import ibis


class RightsSettings(Document):
    """How customers' rights are done at this node."""

    customer: str = Field(default="customer", description="the table's column of customers")
    date: str | None = Field(
        default="date", description="its column of days, by which rows grow old; null if none"
    )
    table: Literal["read-only", "rewrite"] = Field(
        default="read-only", description="may foedus take rows out of the table, or does the company itself?"
    )
    models: Literal["bound", "retrain", "retire"] = Field(
        default="bound", description="what becomes of the models an erased customer was trained into"
    )
    calendar: str | None = Field(default=None, description="holidays and worked weekends, YAML")


class Settings(Document):
    """The content of node.yaml."""

    party: Name
    server: str = Field(pattern=r"^[A-Za-z0-9.:\[\]-]+:\d{1,5}$", description="host:port of the gateway")
    table: str = Field(description="path of the orders, relative to the node's directory")
    categories: tuple[str, ...] | None = Field(
        default=None, strict=False, description="what personal data the table holds, as fideslang keys"
    )
    rights: RightsSettings | None = None

    @classmethod
    def checked(cls, what: str = "node settings", **fields: object) -> Settings:
        """Settings from untrusted fields.

        Raises:
            InputError: one is missing, unknown or malformed.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise explain(error, what) from error


@dataclass(frozen=True)
class Home:
    """A node's directory and its settings."""

    path: Path
    settings: Settings

    @classmethod
    def load(cls, path: Path) -> Home:
        """Read node.yaml.

        Raises:
            InputError: missing or malformed.
        """
        file = path / "node.yaml"
        if not file.exists():
            raise InputError(f"{file}: no such file", remedy="foedus node init DIR makes a node's directory")
        try:
            content = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise InputError(f"{file}: not YAML: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{file}: it must name party, server and table")
        return cls(path, Settings.checked(str(file), **{str(k): v for k, v in content.items()}))

    @classmethod
    def create(cls, path: Path, settings: Settings) -> Home:
        """Make the directory with fresh keys; existing keys are never overwritten."""
        path.mkdir(parents=True, exist_ok=True)
        SigningKey.generate().save(path / "identity.key")
        generate_node_key(path / "fleet.key")
        (path / "node.yaml").write_text(
            yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False),
            encoding="utf-8",
        )
        return cls(path, settings)

    @property
    def party(self) -> str:
        return self.settings.party

    @property
    def rights(self) -> RightsSettings:
        return self.settings.rights or RightsSettings()

    @property
    def table(self) -> Path:
        return (self.path / self.settings.table).resolve()

    def orders(self, names: Table, text: Collection[str] = ()) -> AbstractContextManager[ibis.Table]:
        """The silo's table, opened read-only; customers, and the columns in `text`, as they are written there."""
        from . import sources  # Ibis takes its time, and most commands need none of it

        return sources.table(self.table, names.name, text={names.customer, *text})

    @property
    def link(self) -> FleetLink:
        return FleetLink(self.settings.server, self.path / "ca.crt", self.path / "fleet.key")

    def cohort_key(self) -> bytes:
        """The key of customers' labels and pseudonyms; made when it is first needed."""
        file = self.path / "cohort.key"
        ensure_private_file(file, secrets.token_bytes(KEY_BYTES))
        key = read_private_file(file)
        if len(key) != KEY_BYTES:
            raise InputError(f"{file}: not a cohort key", remedy="restore it: earlier cohorts need that one")
        return key

    def identity(self) -> SigningKey:
        return SigningKey.load(self.path / "identity.key")

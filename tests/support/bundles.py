"""An evidence bundle in the hands of somebody who tampers with it, be it the coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from foedus.compliance import evidence
from foedus.compliance.auditlog.checkpoint import Checkpoint
from foedus.compliance.auditlog.cosignature import cosign, with_lines
from foedus.compliance.auditlog.merkle import leaf_hash, root_from_leaves
from foedus.demo.world import World
from foedus.documents import Envelope, SigningKey, canonical

Edit = Callable[[Any], Any]


class Tampered:
    """The files of a bundle, to be changed and written again under a manifest that fits."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.manifest, self.files = evidence.read(path)
        self.world = world
        self.origin = world.treaty.coordinator.origin
        self.key = SigningKey.load(world.server / "server.key")

    def write(self, path: Path, *, key: SigningKey | None = None) -> Path:
        """The bundle, its manifest signed by the coordinator (or `key`)."""
        evidence.write(path, self.files, self.origin, key or self.key)
        return path

    def json(self, name: str, edit: Edit) -> None:
        """Edit a JSON file in place; `edit` changes its argument, or returns another list."""
        value = json.loads(self.files[name])
        new = edit(value)
        self.files[name] = canonical(new if isinstance(new, list) else value)

    def lines(self, name: str, edit: Callable[[list[Any]], Any]) -> None:
        """The same for a file of JSON lines: `edit` gets the list of its values."""
        values = [json.loads(line) for line in self.files[name].splitlines()]
        new = edit(values)
        values = new if isinstance(new, list) else values
        self.files[name] = b"".join(canonical(v) + b"\n" for v in values)

    def signed(self, name: str, edit: Callable[[dict[str, Any]], Any], signer: str, key: SigningKey) -> None:
        """Edit the payload of a signed document and sign it again."""
        envelope = Envelope.loads(self.files[name])
        payload = dict(envelope.payload)
        edit(payload)
        self.files[name] = Envelope(envelope.kind, payload).signed(signer, key).dumps()

    def release(self, name: str, edit: Callable[[dict[str, Any]], Any], *, logged: bool = True) -> None:
        """Change a release as the coordinator can: sign it again and (if `logged`) rewrite the log to match."""
        self.signed(f"release/{name}", edit, self.origin, self.key)
        digest = Envelope.loads(self.files[f"release/{name}"]).digest

        def relog(entries: list[Any]) -> None:
            for entry in entries:
                if entry["action"] == "released" and entry["details"]["file"] == name:
                    entry["details"]["digest"] = digest

        if logged:
            self.log(relog)

    def log(
        self,
        edit: Callable[[list[Any]], Any],
        *,
        key: SigningKey | None = None,
        witnesses: Collection[str] | None = None,
    ) -> None:
        """Rewrite the audit log and sign its new head; all parties cosign it, or those named."""
        self.lines("log/entries.jsonl", edit)
        lines = self.files["log/entries.jsonl"].splitlines()
        head = Checkpoint(self.origin, len(lines), root_from_leaves([leaf_hash(line) for line in lines]))
        note = head.sign(self.origin, key or self.key)
        by = self.world.homes if witnesses is None else witnesses
        lines = {silo: cosign(head, silo, self.silo_key(silo), 1_790_000_000) for silo in by}
        self.files["log/checkpoint.txt"] = with_lines(note, lines).encode()

    def silo_key(self, silo: str) -> SigningKey:
        return SigningKey.load(self.world.homes[silo] / "identity.key")

    def receipt(self, place: int, edit: Callable[[dict[str, Any]], Any], *, logged: bool = True) -> None:
        """Change a receipt, let its silo sign it, and (if `logged`) rewrite the log to match: a silo and a coordinator that lie."""
        digests: dict[str, tuple[str, Any]] = {}

        def change(receipts: list[Any]) -> None:
            payload = receipts[place]["payload"]
            silo = payload["silo"]
            edit(payload)
            envelope = Envelope("receipt", payload).signed(silo, self.silo_key(silo))
            receipts[place] = envelope.to_json()
            digests[silo] = envelope.digest, payload.get("ledger")

        def relog(entries: list[Any]) -> None:
            for entry in entries:
                if entry["action"] == "receipt" and entry["details"]["silo"] in digests:
                    entry["details"]["digest"], entry["details"]["ledger"] = digests[entry["details"]["silo"]]

        self.json("receipts.json", change)
        if logged:
            self.log(relog)

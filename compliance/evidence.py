"""The evidence bundle: a zip from which a study's claims are re-checked offline.

::

    manifest.json       signed by the coordinator: SHA-256 of every other file
    treaty.json  study.json  approvals.json
    log/entries.jsonl  log/checkpoint.txt      the audit log up to the release; its head, cosigned by the nodes
    keys.json           per batch of rounds: its context and every silo's signed keys
    rounds.jsonl        per round: the noisy sum, the survivors, their signed uploads and answers
    receipts.json       every node's signed statement of cost and of the log it saw
    release/model.json  release/metrics.json   signed by the coordinator
    release/table.json                         of a counting study, instead
    lineage.jsonl       OpenLineage events of the server

Nothing in it is secret: shares, seeds and masked vectors are not kept.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..documents import Envelope, SigningKey
from ..errors import InputError, VerificationError

KIND = "evidence"
MANIFEST = "manifest.json"
FILES = frozenset({
    "treaty.json", "study.json", "approvals.json", "log/entries.jsonl", "log/checkpoint.txt", "keys.json", "rounds.jsonl",
    "receipts.json", "release/model.json", "release/metrics.json", "release/table.json", "lineage.jsonl",
})  # fmt: skip
"""All that a bundle may hold beside the manifest: what no check looks at would pass for checked."""
MAX_FILE = 256 << 20
MAX_FILES = 200
MAX_TOTAL = 512 << 20


def write(path: Path, files: Mapping[str, bytes], signer: str, key: SigningKey) -> str:
    """Write a bundle; equal files give equal bytes. Returns its SHA-256 (hex)."""
    manifest = Envelope(
        KIND, {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    )
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in sorted({**files, MANIFEST: manifest.signed(signer, key).dumps()}.items()):
            # A fixed date: the bundle is named by its content.
            bundle.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    partial.replace(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> tuple[Envelope, dict[str, bytes]]:
    """The manifest and the files of a bundle, each file matching the manifest's digest.

    The manifest's signature is the caller's to check: the key stands in the treaty.

    Raises:
        InputError: not a bundle, or too large. VerificationError: a file was changed, added or removed.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            entries = bundle.infolist()
            sizes = [e.file_size for e in entries]
            if len(sizes) > MAX_FILES or max(sizes, default=0) > MAX_FILE or sum(sizes) > MAX_TOTAL:
                raise InputError(f"{path}: larger than an evidence bundle may be")
            if len({e.filename for e in entries}) != len(entries):
                raise VerificationError(f"{path}: a file occurs twice")
            files = {entry.filename: bundle.read(entry) for entry in entries}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not an evidence bundle ({error})") from error
    except Exception as error:  # zlib.error and its kind: a damaged stream
        if isinstance(error, InputError | VerificationError):
            raise
        raise InputError(f"{path}: damaged ({error})") from error
    if MANIFEST not in files:
        raise InputError(f"{path}: not an evidence bundle: it has no {MANIFEST}")
    manifest = Envelope.loads(files.pop(MANIFEST))
    listed = manifest.payload.get("files")
    if not isinstance(listed, dict):
        raise VerificationError(f"{path}: the manifest lists no files")
    if missing := sorted(set(listed) - set(files)):
        raise VerificationError(f"{path}: {', '.join(missing)} is missing")
    if added := sorted(set(files) - set(listed)):
        raise VerificationError(f"{path}: {', '.join(added)} is not in the manifest")
    if strangers := sorted(set(files) - FILES):
        raise VerificationError(f"{path}: {', '.join(strangers)} has no place in a bundle")
    for name, data in sorted(files.items()):
        if hashlib.sha256(data).hexdigest() != listed[name]:
            raise VerificationError(f"{path}: {name} was changed")
    return manifest, files

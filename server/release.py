"""The end of a run: what may be released, signed and logged, and the evidence for all of it.

Every step may have been made by an attempt that was killed after it; each is made so that it comes out
the same to the byte, or is on disk before the audit log speaks of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..compliance import evidence
from ..documents import Envelope, b64, canonical
from ..federation.secure_sum import Sum
from ..federation.tasks import evaluate, train
from .case import Case
from .lineage import RunLineage

RELEASE = "release"


def release(
    case: Case,
    state: train.State,
    metrics: evaluate.Metrics,
    receipts: Mapping[str, Envelope],
    epsilon: float,
) -> Path:
    """Model and metrics, if the study releases them, and the evidence bundle, whose path is returned.

    1. What is released is made once, then logged, then written.
    2. Lineage and the log's head are taken once.
    3. The bundle follows from what is kept, byte for byte, and its digest is logged.
    """
    case.out.mkdir(parents=True, exist_ok=True)
    released = _released(case, state, metrics, epsilon)  # 1.
    for name, envelope in released.items():
        told = {"file": name, "digest": envelope.digest, "epsilon": epsilon}
        case.record("released", told, once=("file",))
        _write(case.out / name, envelope.dumps())
    end = case.kept.kept("end")  # 2.
    if end is None:
        lineage = RunLineage(case).released(released, receipts, epsilon)
        end = {"lineage": lineage, "note": case.log.checkpoint(case.origin, case.key)}
        case.kept.keep("end", end)
    _write(case.out / "lineage.jsonl", end["lineage"].encode())
    path = case.out / "evidence.zip"  # 3.
    sha256 = evidence.write(path, _files(case, end, released, receipts), case.origin, case.key)
    case.record("run.finished", {"epsilon": epsilon, "evidence": sha256})
    return path


def _released(
    case: Case, state: train.State, metrics: evaluate.Metrics, epsilon: float
) -> dict[str, Envelope]:
    kept = case.kept.kept(RELEASE)
    if kept is None:
        made = _envelopes(case, state, metrics, epsilon)
        kept = {name: envelope.to_json() for name, envelope in made.items()}
        case.kept.keep(RELEASE, kept)
    return {name: Envelope.from_json(document) for name, document in kept.items()}


def _envelopes(
    case: Case, state: train.State, metrics: evaluate.Metrics, epsilon: float
) -> dict[str, Envelope]:
    study = case.study
    common = {
        "study": case.study_envelope.digest,
        "run": case.run,
        "epsilon": epsilon,
        "delta": study.privacy.delta,
        "per": case.treaty.per(study.purpose).model_dump(mode="json"),
        "mode": study.privacy.mode.name,
    }
    model = {
        **common,
        "what": "model",
        "purpose": study.purpose,
        "table": study.table.model_dump(mode="json"),
        "model": study.model.model_dump(mode="json"),
        "features": [f.model_dump(mode="json") for f in study.features],
        "label": study.label.model_dump(mode="json"),
        "scaling": study.scaling.model_dump(mode="json"),
        "learned": state.statistics.tolist(),
        "weights": state.weights.tolist(),
    }
    numbers = {**common, "what": "metrics", "metrics": metrics_json(metrics)}
    allowed = {"model.json": (study.release.model, model), "metrics.json": (study.release.metrics, numbers)}
    return {
        name: Envelope(RELEASE, payload).signed(case.origin, case.key)
        for name, (permitted, payload) in allowed.items()
        if permitted
    }


def _files(
    case: Case, end: Mapping[str, Any], released: Mapping[str, Envelope], receipts: Mapping[str, Envelope]
) -> dict[str, bytes]:
    size = int(end["note"].split("\n")[1])
    files = {
        "treaty.json": case.treaty_envelope.dumps(),
        "study.json": case.study_envelope.dumps(),
        "approvals.json": canonical([a.to_json() for a in case.approvals]),
        "log/entries.jsonl": b"".join(e.body + b"\n" for e in case.log.entries(0, size)),
        "log/checkpoint.txt": end["note"].encode(),
        "keys.json": canonical(
            [
                {"context": b.context.to_json(), "keys": [k.to_json() for k in b.aggregator.advertisements]}
                for b in case.batches
            ]
        ),
        "rounds.jsonl": b"".join(_round_json(s) + b"\n" for s in case.sums),
        "receipts.json": canonical([receipts[s].to_json() for s in sorted(receipts)]),
        "lineage.jsonl": end["lineage"].encode(),
    }
    return files | {f"release/{name}": envelope.dumps() for name, envelope in released.items()}


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def sum_digest(result: Sum) -> str:
    """What the audit log says of a round's sum."""
    return hashlib.sha256(result.total.astype("<i8").tobytes()).hexdigest()


def metrics_json(metrics: evaluate.Metrics) -> dict[str, Any]:
    """Metrics as JSON."""
    return json.loads(json.dumps(asdict(metrics)))  # type: ignore[no-any-return]


def _round_json(result: Sum) -> bytes:
    return canonical(
        {
            "round": result.round,
            "survivors": list(result.survivors),
            "total": result.total.tolist(),
            "model": b64(result.data),
            "transcript": {k: [e.to_json() for e in v] for k, v in result.transcript.items()},
        }
    )

"""The tables of ``rights.db``: requests, erasures step by step, the models they touch, outputs, and legal holds.

Times are microseconds since 1970. A subject is named as in the silo's table, and by a tombstone once erased.
"""

from __future__ import annotations

from ..auditlog.database import Schema

SCHEMA = Schema(
    title="a register of rights",
    application_id=0x666F7269,  # "fori"
    statements=(
        (
            "CREATE TABLE request (id TEXT PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, language TEXT NOT NULL, "
            "note TEXT NOT NULL, opened INTEGER NOT NULL, due TEXT NOT NULL, "
            "state TEXT NOT NULL CHECK (state IN ('open', 'in_progress', 'done', 'refused')), "
            "reason TEXT NOT NULL CHECK (state <> 'refused' OR reason <> ''), entry INTEGER NOT NULL, closed INTEGER, "
            "CHECK ((closed IS NULL) = (state IN ('open', 'in_progress')))) STRICT"
        ),
        "CREATE INDEX request_subject ON request (subject)",
        (
            "CREATE TABLE erasure (id TEXT PRIMARY KEY, subject TEXT NOT NULL, began INTEGER NOT NULL, "
            "ended INTEGER) STRICT"
        ),
        (
            "CREATE TABLE step (erasure TEXT NOT NULL REFERENCES erasure, number INTEGER NOT NULL, place TEXT NOT NULL, "
            "errand TEXT NOT NULL, count INTEGER NOT NULL, why TEXT NOT NULL, PRIMARY KEY (erasure, place)) STRICT"
        ),
        (
            "CREATE TABLE model (erasure TEXT NOT NULL REFERENCES erasure, study TEXT NOT NULL, run TEXT NOT NULL, "
            "epsilon REAL, delta REAL, partners INTEGER, "
            "action TEXT NOT NULL CHECK (action IN ('bound', 'retrain', 'retire')), "
            "state TEXT NOT NULL CHECK (state IN ('stated', 'queued', 'retrained', 'retired')), evidence TEXT NOT NULL, "
            "PRIMARY KEY (erasure, study, run)) STRICT"
        ),
        (
            "CREATE TABLE output (path TEXT PRIMARY KEY, subject_column TEXT NOT NULL, purpose TEXT NOT NULL, "
            "at INTEGER NOT NULL) STRICT"
        ),
        (
            "CREATE TABLE hold (id TEXT PRIMARY KEY, subject TEXT, reason TEXT NOT NULL, by TEXT NOT NULL, "
            "at INTEGER NOT NULL, lifted_by TEXT, lifted_at INTEGER) STRICT"
        ),
    ),
)

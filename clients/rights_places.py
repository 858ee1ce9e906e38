"""Where this node keeps personal data: the one declared map, bound to the files of its directory.

``requests``, the last place, is emptied in the transaction that ends an erasure. Files that the map does not name are
searched for the customer too (`strays`).
"""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from ..compliance.auditlog.log import AuditLog, commitment_in, customer_key
from ..compliance.consent import ConsentRegister
from ..compliance.consent.membership import StudyKey
from ..compliance.consent.proofs import uses
from ..compliance.lineage import Subjects
from ..compliance.rights import DataMap, Errand, Outcome, Outputs, Place, Told
from ..compliance.rights.holds import Holds
from ..compliance.rights.places import Row
from ..compliance.rights.requests import Requests
from ..compliance.tombstones import Tombstones
from ..errors import InputError, Refused
from . import table_rewrite
from .cohort import PURCHASES
from .home import Home

ORDERED = (
    "the company's own table is read only here: the company removes the rows itself, and until it has, no consent"
    " that this customer gives anew takes effect"
)


class NodePlaces:
    """The places of one node."""

    def __init__(self, home: Home, audit: AuditLog, requests: Requests, tombstones: Tombstones) -> None:
        self._home, self._audit, self._requests, self._tombstones = home, audit, requests, tombstones
        self._rights = home.path / "rights.db"

    def map(self) -> DataMap:
        """The map."""
        table, here = self._home.table, self._home.path.resolve()
        inside = (table.relative_to(here).as_posix(),) if table.is_relative_to(here) else ()
        behaviour = tuple(self._home.settings.categories or (PURCHASES,))
        return DataMap(
            (
                Place(
                    "consents",
                    ("consent.db", "erasure.key"),
                    Told("what you consented to, and when you withdrew", "您同意过什么、何时撤回"),
                    Told(
                        "to use data only as you allowed, and to prove it",
                        "仅在您同意的范围内使用数据，并能举证",
                    ),
                    ("user.account",),
                    "subject",
                    "record",
                    read=self._consents,
                    erase=self._erase_consents,
                    kept="proof that consent was given, three years at least (PIPL art. 56, 69), under a keyed tombstone",
                ),
                Place(
                    "orders",
                    inside,
                    Told(
                        "your orders, or what else the company's table says of you",
                        "您的订单及公司数据表中关于您的其他记录",
                    ),
                    Told(
                        "the company's own business, and studies you consented to",
                        "公司自身业务，以及您同意参与的研究",
                    ),
                    behaviour,
                    self._home.rights.customer,
                    "personal",
                    read=self._orders,
                    erase=self._erase_orders,
                    correct=self._correct_order,
                ),
                Place(
                    "scores",
                    (),
                    Told("how likely models think you are to do something", "模型对您行为可能性的评分"),
                    Told("to decide whom to address", "用于决定联系哪些客户"),
                    ("user.behavior",),
                    "customer",
                    "personal",
                    read=self._scores,
                    erase=self._erase_scores,
                    uncorrectable="a score follows from orders and model: correct the orders, and score anew",
                ),
                Place(
                    "lineage",
                    ("subjects.db", "lineage.key"),
                    Told("which studies your data went into", "您的数据参与过哪些研究"),
                    Told(
                        "to tell you, and to know which models an erasure touches",
                        "用于告知您，并确定删除涉及哪些模型",
                    ),
                    ("user.behavior",),
                    "names, by pseudonyms of one use each",
                    "personal",
                    read=self._lineage,
                    erase=self._erase_lineage,
                ),
                Place(
                    "log",
                    ("audit-payloads.db", "audit-keys/*"),
                    Told(
                        "what the log of this company's node has sealed about you",
                        "本节点日志中加密保存的关于您的内容",
                    ),
                    Told("so that nobody can deny what was done", "使所做的一切不可抵赖"),
                    ("user.account",),
                    "the key of the customer",
                    "personal",
                    read=self._sealed,
                    erase=self._shred,
                    kept="the entries themselves, which name nobody, and unreadable payloads",
                ),
                Place(
                    "requests",
                    ("rights.db",),
                    Told(
                        "what you asked of us here, and legal holds on your data",
                        "您在此提出的请求，以及对您数据的法律保留",
                    ),
                    Told("to answer you in time, and to prove it", "用于按时答复您并能举证"),
                    ("user.account",),
                    "subject",
                    "record",
                    read=self._asked,
                    erase=lambda subject: Outcome(
                        Errand.PSEUDONYMISED,
                        len(self._asked(subject)),
                        "kept three years as a record of processing",
                    ),
                    kept="that a request was made and answered, three years at least, under a keyed tombstone",
                ),
                *_NAMELESS,
            )
        )

    # ── consents ─────────────────────────────────────────────────────────────────────────────────

    def register(self) -> ConsentRegister:
        """The node's register: a lost one must not come back empty.

        Raises:
            InputError: there is none.
        """
        file = self._home.path / "consent.db"
        if not file.exists():
            raise InputError(
                f"{file}: no such file", remedy="foedus consent notice makes it; if it was lost, restore it"
            )
        return ConsentRegister(file)

    def _consents(self, subject: str) -> list[Row]:
        return [
            portable(
                {
                    "record": r.record_id,
                    "purpose": r.purpose,
                    "notice": r.notice_version,
                    "categories": sorted(r.terms.categories),
                    "sensitive": r.terms.sensitive,
                    "shared_with": sorted(r.terms.sharing),
                    "granted_at": r.granted_at,
                    "expires_at": r.expires_at,
                    "withdrawn_at": r.withdrawn_at,
                    "method": r.method,
                    "guardian": r.guardian,
                    "may_decide_from": r.own_from,
                    "evidence": r.evidence,
                }
            )
            for r in self.register().records(subject)
        ]

    def _erase_consents(self, subject: str) -> Outcome:
        key = self._home.cohort_key()
        labels = {study: StudyKey(key, study).label(subject) for study in self.studies()}
        gone = self.register().erase(subject, labels, cleared=False)
        if gone.kept == 0:
            return Outcome(Errand.EMPTY, 0)
        return Outcome(
            Errand.PSEUDONYMISED,
            gone.records,
            "withdrawn, and kept three years as proof under a tombstone that names nobody without this node's key",
        )

    def studies(self) -> set[str]:
        """Every study that this node's log knows: one accepted only now may use a cohort of before the erasure."""
        found = {use.study for use in uses(self._audit)}
        for entry in self._audit.entries():
            if b'"action":"study.accepted"' in entry.body:
                found.add(str(entry.record["subject"]))
        return found

    # ── the table ────────────────────────────────────────────────────────────────────────────────

    def _orders(self, subject: str) -> list[Row]:
        column = self._home.rights.customer
        rows = [portable(row) for row in table_rewrite.rows_of(self._home.table, column, subject)]
        if not rows:
            table_rewrite.require(self._home.table, column)
        return rows

    def _erase_orders(self, subject: str) -> Outcome:
        rows = len(self._orders(subject))
        if rows and self._home.rights.table == "read-only":
            return Outcome(Errand.ORDERED, rows, ORDERED)
        if rows:
            table_rewrite.remove(self._home.table, self._home.rights.customer, subject)
        self.register().clear(self._tombstones.name(subject))
        return Outcome(Errand.ERASED if rows else Errand.EMPTY, rows)

    def _correct_order(self, subject: str, field: str, value: str, was: str | None) -> int:
        if self._home.rights.table == "read-only":
            raise Refused(
                "TABLE_READ_ONLY",
                "the company's own table is read only here, so the company corrects it itself",
                remedy="the request stays in the queue until somebody has; or set `rights: {table: rewrite}`",
            )
        return table_rewrite.change(self._home.table, self._home.rights.customer, subject, field, value, was)

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _scores(self, subject: str) -> list[Row]:
        found: list[Row] = []
        for output in Outputs(self._rights).all():
            if output.path.exists():
                rows = table_rewrite.rows_of(output.path, output.column, subject)
                told = {"file": output.path.name, "purpose": output.purpose, "made": output.at}
                found += [
                    portable({**told, **{k: v for k, v in row.items() if k != "table"}}) for row in rows
                ]
        return found

    def _erase_scores(self, subject: str) -> Outcome:
        count = sum(
            table_rewrite.remove(output.path, output.column, subject)
            for output in Outputs(self._rights).all()
            if output.path.exists()
        )
        return Outcome(Errand.ERASED if count else Errand.EMPTY, count)

    # ── lineage and log ──────────────────────────────────────────────────────────────────────────

    def subjects(self) -> Subjects | None:
        """The register of who went into what, if there is one."""
        file = self._home.path / "subjects.db"
        return Subjects(file, self._home.path / "lineage.key") if file.exists() else None

    def _lineage(self, subject: str) -> list[Row]:
        subjects = self.subjects()
        touched = [] if subjects is None else subjects.touched(subject)
        return [
            {"study": t.use.study, "run": t.use.run, "use": t.use.what, "began": t.began} for t in touched
        ]

    def _erase_lineage(self, subject: str) -> Outcome:
        subjects = self.subjects()
        count = 0 if subjects is None else len(subjects.forget(subject))
        return Outcome(Errand.ERASED if count else Errand.EMPTY, count)

    def _sealed(self, subject: str) -> list[Row]:
        entries = [e for e in self._audit.entries() if b'"sealed":' in e.body and b'"customer"' in e.body]
        held = [(e, c) for e in entries if (c := commitment_in(e.record)) is not None]
        opened = self._audit.payloads.open_many([c for _, c in held])
        return [
            {"entry": e.index, "time": e.record["time"], "action": e.record["action"], **o.payload}
            for (e, _), o in zip(held, opened, strict=True)
            if o is not None and o.payload.get("customer") == subject
        ]

    def _shred(self, subject: str) -> Outcome:
        count = self._audit.shred(self._home.party, customer_key(subject))
        return Outcome(Errand.ERASED if count else Errand.EMPTY, count)

    # ── rights.db itself ─────────────────────────────────────────────────────────────────────────

    def _asked(self, subject: str) -> list[Row]:
        requests = [
            portable(
                {
                    "request": r.id,
                    "kind": r.kind.value,
                    "note": r.note,
                    "opened": r.opened,
                    "due": r.due,
                    "state": r.state.value,
                    "reason": r.reason,
                }
            )
            for r in self._requests.of(subject)
        ]
        holds = [
            portable({"hold": h.id, "reason": h.reason, "at": h.at, "lifted_at": h.lifted_at})
            for h in Holds(self._rights).all()
            if h.subject == subject
        ]
        return requests + holds


_ROOM = Told("nobody's data", "不含个人数据")


def _nameless(name: str, files: tuple[str, ...], why: str, why_zh: str) -> Place:
    return Place(name, files, _ROOM, Told(why, why_zh), (), "", "none", held=False)


_KEYS = tuple(f"{name}.key" for name in ("identity", "fleet", "cohort", "webhook"))
_NAMELESS = (
    _nameless(
        "keys",
        ("node.yaml", "treaty.json", "ca.crt", "watch.yaml", *_KEYS),
        "settings, treaty and keys",
        "设置、条约与密钥",
    ),
    _nameless(
        "budget",
        ("ledger.db", "journal.db"),
        "what all customers of the silo have paid, and which rounds were answered: erasing one refills nothing",
        "全体客户已消耗的隐私预算及已应答的轮次：删除个人不会补回预算",
    ),
    _nameless(
        "history",
        ("audit.db", "log-head", "lineage.db"),
        "entries and events that name nobody; cohorts as keyed roots",
        "不含姓名的日志与谱系事件；人群仅以带密钥的根表示",
    ),
    _nameless(
        "watch", ("watch.db",), "who of the staff and studies asks for how much", "员工与研究的访问模式"
    ),
    _nameless(
        "features",
        (),
        "features and cohorts are in memory only, and are made anew for a cohort without the erased",
        "特征与人群仅存于内存，删除后按新人群重新生成",
    ),
)


def portable(row: dict[str, Any]) -> Row:
    """Values as JSON has them."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)

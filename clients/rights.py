"""The rights of one node's customers, done: what is known, choices, access, correction, withdrawal, erasure.

Who calls has checked that the person is the subject (the portal by a one-time code, the officer at the desk). A subject
nobody knows gets the answers of one with no data: nothing tells whether they are a customer.

An erasure, in this order: no legal hold; the models they may have been trained into are listed; the audit log says
that it begins; the plan is on disk; place by place is erased; nothing of theirs is found any more; the log says what
became of each; their name leaves ``rights.db``. A process that dies leaves a plan, and whoever comes next goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..compliance import treaty as treaties
from ..compliance.auditlog.log import AuditLog, customer_key
from ..compliance.consent import Grant, Withdrawal
from ..compliance.consent.notices import Language
from ..compliance.consent.records import check_text
from ..compliance.rights import (
    Calendar,
    Choice,
    DataMap,
    Erasure,
    Erasures,
    Errand,
    Hold,
    Holds,
    Kind,
    ModelFate,
    Outcome,
    Request,
    Requests,
)
from ..compliance.tombstones import FILE, PREFIX, Tombstones
from ..errors import InputError, Refused, VerificationError
from . import table_rewrite, uses
from .consent_log import SUBJECT, ConsentLog
from .home import Home
from .rights_models import ModelsTouched
from .rights_places import NodePlaces
from .strays import strays

ErasureReport = Erasure
ELSEWHERE = "elsewhere"
_PENDING = (
    "erased here; what the company's own table says of you is removed by the company itself, and used no more"
)
_DONE = "your data was erased; records that must be kept name you no more"


@dataclass(frozen=True)
class Holding:
    """What is kept at one place, for the person to know: `count` records of theirs, at most `days` days old.

    `days` is None where a record is kept longer by duty, and `kept` says which.
    """

    place: str
    what: str
    why: str
    categories: tuple[str, ...]
    days: int | None
    count: int
    kept: str = ""


class Rights:
    """What one node's customers may ask for. Threads and processes may share the files; each makes its own.

    Raises:
        InputError, VerificationError: the node's directory, its treaty or ``rights.db`` is not what it must be.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.treaty = treaties.load(home.path / "treaty.json")[1]
        self.treaty.party(home.party)
        self.audit = AuditLog(home.path / "audit.db", f"foedus node {home.party}")
        calendar = home.rights.calendar
        self.requests = Requests(
            home.path / "rights.db",
            Calendar() if calendar is None else Calendar.load(home.path / calendar),
            self._note_request,
        )
        self.erasures = Erasures(home.path / "rights.db")
        self.holds = Holds(home.path / "rights.db")
        self.tombstones = Tombstones(home.path / FILE)
        self.places = NodePlaces(home, self.audit, self.requests, self.tombstones)
        self.map: DataMap = self.places.map()
        self._models = ModelsTouched(home, self.treaty, self.audit, self.places, self.erasures)

    # ── to know, to choose, to see ───────────────────────────────────────────────────────────────

    def know(self, subject: str, language: Language = "en") -> list[Holding]:
        """What is kept about a subject, why, how long; every place of the map, also where there is nothing."""
        _check(subject)
        return [
            Holding(
                place.name,
                place.what.in_(language),
                place.why.in_(language),
                place.category,
                self.treaty.retention_days if place.clock == "personal" else None,
                len(place.read(subject)),
                place.kept,
            )
            for place in self.map
            if place.personal
        ]

    def choices(self, subject: str) -> list[Choice]:
        """Every purpose of the published notices, and what the subject said about it last."""
        _check(subject)
        register, now = self.places.register(), datetime.now(UTC)
        last = {r.purpose: r for r in register.records(subject)}  # the latest grant comes last
        notices = sorted(register.notices().values(), key=lambda n: n.effective_from)
        found: dict[str, Choice] = {}
        for notice in notices:
            for purpose, categories in notice.purposes.items():
                record = last.get(purpose)
                if record is not None:
                    found[purpose] = Choice(
                        purpose,
                        record.state(now),
                        tuple(sorted(record.terms.categories)),
                        record.notice_version,
                        record.granted_at.isoformat(),
                        record.expires_at.isoformat() if record.expires_at else None,
                    )
                elif notice.effective_from <= now:
                    found[purpose] = Choice(purpose, "never asked", categories, notice.version)
        return [found[purpose] for purpose in sorted(found)]

    def access(self, subject: str) -> dict[str, list[dict[str, Any]]]:
        """All that is kept about a subject, by place, as JSON values; places with nothing are empty lists.

        Raises:
            InputError, VerificationError: a place can't be read: half an answer is none.
        """
        _check(subject)
        uses.of_access()
        return {place.name: place.read(subject) for place in self.map if place.personal}

    def explain(self, subject: str, language: Language = "en") -> list[str]:
        """Which models a subject's data went into, and what they say of people (PIPL art. 24, 48), a sentence each."""
        told = []
        for fate in self.models_of(subject):
            bound = (
                ""
                if fate.epsilon is None
                else f"ε = {fate.epsilon:.4g}, δ = {fate.delta:g}, m = {fate.partners}"
            )
            told.append(
                f"您的数据可能参与训练了研究 {fate.study[:12]}（运行 {fate.run}）的模型；单个客户的隐私损失上限：{bound or '无法说明'}。"
                if language == "zh"
                else f"Your data may have gone into the model of study {fate.study[:12]}, run {fate.run}; "
                f"what it can tell of one customer is bounded by {bound or 'nothing that can be stated'}."
            )
        rest = {
            "zh": "模型只给出概率评分；foedus 本身不作任何决定，是否据此作出决定由本公司负责，您可以要求人工复核。",
            "en": "A model gives a probability. foedus decides nothing by it; whether the company does is for the company to"
            " say, and you may ask for a person to look at it.",
        }
        return [*told, rest[language]]

    # ── to correct, to allow, to withdraw ────────────────────────────────────────────────────────

    def correct(self, subject: str, place: str, field: str, value: str, *, was: str | None = None) -> int:
        """Put `value` in the place of what a field of the subject's records says. Returns how many were corrected.

        Args:
            was: the value to replace, needed where their records say different things.

        Raises:
            InputError: no such place or field, nothing of theirs there, or it is not clear which record is meant.
            Refused: ``NOT_CORRECTABLE``, a record of what was said; ``TABLE_READ_ONLY``, the silo's people must do it.
        """
        _check(subject)
        found = self.map.place(place)
        if found.correct is None:
            raise Refused("NOT_CORRECTABLE", f"{place}: {found.uncorrectable}")
        if not value.isprintable():
            raise InputError("the new value is not printable text")
        told = {"place": place, "field": field}
        sealed = {"customer": subject, "value": value, **({} if was is None else {"was": was})}
        if self.home.rights.table == "read-only" and place == "orders":
            return found.correct(subject, field, value, was)  # says no
        self.log("rights.correcting", told, sealed, subject)
        return found.correct(subject, field, value, was)

    def grant(
        self,
        subject: str,
        purpose: str,
        notice: str,
        *,
        sensitive: bool = False,
        sharing: tuple[str, ...] = (),
        expires: datetime | None = None,
    ) -> str:
        """Record a consent under a notice (``2026-01/zh``); the record's id. Logged first.

        Raises:
            InputError: as `ConsentRegister.grant`. Refused: ``ERASURE_PENDING``, while an erased customer's old orders
                are not yet removed from the silo's table.
        """
        _check(subject)
        register = self.places.register()
        if register.closed(subject):
            raise Refused(
                "ERASURE_PENDING",
                "what you had erased is not yet removed from the company's own table, so no consent can take effect",
                remedy="ask again once the company says that it is removed",
            )
        given = Grant(
            subject,
            purpose,
            notice,
            expires_at=expires,
            method="rights",
            sensitive=sensitive,
            sharing=sharing,
        )
        return register.grant_many([given], record=ConsentLog(self.home).granted(given))[0]

    def withdraw(self, subject: str, purpose: str) -> None:
        """Withdraw a consent, in force in the next batch. Logged first.

        Raises:
            InputError: there was none.
        """
        _check(subject)
        note = ConsentLog(self.home).withdrawn(Withdrawal(subject, purpose), "rights")
        self.places.register().withdraw(subject, purpose, record=note)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def requests_of(self, subject: str) -> list[Request]:
        """A subject's requests, the latest first; with those of before they were erased, which name nobody."""
        _check(subject)
        earlier = self.requests.of(self._tombstone(subject)) if (self.home.path / FILE).exists() else []
        return self.requests.of(subject) + earlier

    def _note_request(self, step: str, request: Request) -> int:
        told = {"request": request.id, "kind": request.kind.value, "due": request.due.isoformat()}
        sealed = {"customer": request.subject, "note": request.note, "reason": request.reason}
        return self.log(f"rights.{step}", told, sealed, request.subject)

    # ── erasure ──────────────────────────────────────────────────────────────────────────────────

    def erase(self, subject: str, *, models: str | None = None) -> ErasureReport:
        """Erase a subject at every place of the map, or say what stays and by which duty.

        Called again after a crash, by anyone, it does the rest; a subject who is not known gets the report of an
        erasure that found nothing.

        Args:
            models: ``bound``, ``retrain`` or ``retire``; what node.yaml says, by default.

        Raises:
            Refused: ``LEGAL_HOLD``, with the reason to tell the subject; nothing was erased.
            InputError, VerificationError: a place can't be read or written (full disk, damage): call again when it can.
        """
        _check(subject)
        action = models or self.home.rights.models
        if action not in ("bound", "retrain", "retire"):
            raise InputError(f"{action!r}: models are bound, retrain or retire")
        self._require_no_hold(subject)
        under_way = self.erasures.under_way(subject)
        return self._carry_out(under_way[0] if under_way else self._begin(subject, action))

    def resume(self) -> list[ErasureReport]:
        """Finish the erasures that were interrupted, and do anew those that a restored register has forgotten.

        Call it when a process starts.

        Raises:
            Refused, InputError, VerificationError: as `erase`.
        """
        reports = [self.erase(subject) for subject in self._brought_back()]
        for erasure in self.erasures.under_way():
            self._require_no_hold(erasure.subject)
            reports.append(self._carry_out(erasure))
        return reports

    def _brought_back(self) -> list[str]:
        """Erased customers whom the register of consents knows again, as an old copy of it was restored."""
        ended = {e.subject for e in self.erasures.ended()}
        if not ended:
            return []
        register = self.places.register()
        forgotten = ended - register.erased()
        if not forgotten:
            return []
        return [s for s in register.subjects() if self.tombstones.name(s, make=False) in forgotten]

    def _require_no_hold(self, subject: str) -> None:
        holds: list[Hold] = self.holds.on(subject)
        if not holds:
            return
        reason = f"kept by law for now: {holds[0].reason}"
        for request in self.requests.of(subject):
            if request.kind is Kind.DELETE and not request.over:
                self.requests.refuse(request.id, reason)
        raise Refused(
            "LEGAL_HOLD", reason, remedy="the hold is lifted by `foedus retention lift`; then ask again"
        )

    def _begin(self, subject: str, action: str) -> Erasure:
        found = [(place.name, len(place.read(subject))) for place in self.map if place.personal]
        fates = self.models_of(subject, action)
        number = self.erasures.number()
        self.log("rights.erasing", {"erasure": number, "models": len(fates)})
        self.erasures.begin(number, subject, found, fates, datetime.now(UTC))
        return self.erasures.get(number)

    def _carry_out(self, erasure: Erasure) -> ErasureReport:
        subject, number = erasure.subject, erasure.id
        for place in self.map:
            if place.erase is not None:
                self.erasures.note(number, place.name, place.erase(subject))
        self._look_again(subject, number)
        found = self.erasures.get(number)
        ordered = any(step.errand is Errand.ORDERED for step in found.steps)
        entry = self.log(
            "rights.erased",
            {
                "erasure": number,
                "places": {s.place: {"became": s.errand.value, "records": s.count} for s in found.steps},
                "models": [
                    {"study": m.study, "run": m.run, "action": m.action, "state": m.state}
                    for m in found.models
                ],
            },
        )
        told = _PENDING if ordered else _DONE
        self.erasures.end(number, self.tombstones.name(subject), datetime.now(UTC), told, entry)
        return self.erasures.get(number)

    def _look_again(self, subject: str, number: str) -> None:
        """What access shows is gone, wherever a place says so; and no file beside the map names them."""
        steps = {step.place: step for step in self.erasures.get(number).steps}
        for place in self.map:
            kept = place.name == "requests" or steps.get(place.name) is None
            if place.personal and not kept and steps[place.name].errand is not Errand.ORDERED:
                left = len(place.read(subject))
                if left:
                    raise VerificationError(
                        f"{place.name}: {left} records of an erased customer are still there",
                        remedy="something writes them anew: stop it, and call the erasure again",
                    )
        found = strays(self.home, self.map, subject)
        if found:
            why = f"files that no place of the map declares name them: {', '.join(found)}; remove or declare them"
            self.erasures.note(number, ELSEWHERE, Outcome(Errand.ORDERED, len(found), why))

    # ── what people were ordered to do ───────────────────────────────────────────────────────────

    def still_in_table(self) -> list[str]:
        """The erased customers whose old rows are still in the silo's table: whom its people must remove there."""
        return sorted({subject for subject, tombstone in self._left() if tombstone})

    def settle(self) -> int:
        """Look whether what was ordered has been done in the silo's table; how many erasures are complete by it.

        Raises:
            InputError: the table can't be read.
        """
        left = {tombstone for _, tombstone in self._left()}
        count = 0
        for erasure in self.erasures.ordered():
            orders = [s for s in erasure.steps if s.place == "orders" and s.errand is Errand.ORDERED]
            if orders and erasure.subject not in left:
                self.log("rights.removed", {"erasure": erasure.id, "place": "orders"})
                self.places.register().clear(erasure.subject)
                count += self.erasures.settle(erasure.subject, "orders", datetime.now(UTC), _DONE)
        return count

    def settle_by_hand(self, number: str, place: str) -> None:
        """A person says that what an erasure ordered at a place was done: ``orders`` or ``elsewhere``.

        Raises:
            InputError: no such erasure, or it has ordered nothing there.
        """
        erasure = self.erasures.get(number)
        if not any(s.place == place and s.errand is Errand.ORDERED for s in erasure.steps):
            raise InputError(f"the erasure {number} has ordered nothing at {place!r}")
        self.log("rights.removed", {"erasure": number, "place": place, "said": "by hand"})
        if place == "orders":
            self.places.register().clear(erasure.subject)
        self.erasures.settle(erasure.subject, place, datetime.now(UTC), _DONE)

    def _left(self) -> list[tuple[str, str]]:
        """Customers of the table that have rows of before their erasure, with their tombstones."""
        ended = {e.subject: e.ended for e in self.erasures.ordered() if e.ended is not None}
        if not ended:
            return []
        found = []
        for subject, first in table_rewrite.first_days(
            self.home.table, self.home.rights.customer, self.home.rights.date
        ):
            tombstone = self.tombstones.name(subject, make=False)
            if tombstone in ended and (first is None or first <= ended[tombstone].date().isoformat()):
                found.append((subject, tombstone))
        return found

    # ── models ───────────────────────────────────────────────────────────────────────────────────

    def models_of(self, subject: str, action: str = "bound") -> list[ModelFate]:
        """The models a subject may have been trained into, at this silo (`ModelsTouched.of`)."""
        return self._models.of(subject, action)

    def retrained(self, study: str, run: str, new_run: str) -> int:
        """A queued model was trained again by `new_run`, without whoever was erased. Returns for how many of them.

        Raises:
            InputError, VerificationError: as `ModelsTouched.evidence`; or it does not wait to be trained again.
        """
        evidence = self._models.evidence(study, run, new_run)
        self.log("rights.retrained", {"study": study, "run": run, "by": new_run})
        return self.erasures.retrained(study, run, evidence)

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    def _tombstone(self, subject: str) -> str:
        return self.tombstones.name(subject, make=False)

    def log(
        self, action: str, details: dict[str, Any], sealed: dict[str, str] | None = None, subject: str = ""
    ) -> int:
        """An entry of the audit log; what is `sealed` names a subject, and goes with the subject's key."""
        if sealed is None or subject.startswith(PREFIX):
            return self.audit.append(self.home.party, action, SUBJECT, details)
        told = {name: value for name, value in sealed.items() if value}
        return self.audit.append(
            self.home.party, action, SUBJECT, details, sealed=told, key=customer_key(subject)
        )


def _check(subject: str) -> None:
    check_text("subject", subject)
    if subject.startswith(PREFIX):
        raise InputError(f"{PREFIX!r} begins the names of who was erased")

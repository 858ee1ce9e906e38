"""Which models a customer may have been trained into at this silo, and when one was trained again without them."""

from __future__ import annotations

import math

from ..compliance.auditlog.log import AuditLog
from ..compliance.consent.proofs import uses
from ..compliance.rights import Erasures, ModelFate
from ..compliance.treaty import Treaty
from ..errors import InputError, VerificationError
from ..privacy.ledger import Ledger
from .home import Home
from .rights_places import NodePlaces


class ModelsTouched:
    """The models of one node's studies."""

    def __init__(
        self, home: Home, treaty: Treaty, audit: AuditLog, places: NodePlaces, erasures: Erasures
    ) -> None:
        self._home, self._treaty, self._audit = home, treaty, audit
        self._places, self._erasures = places, erasures

    def of(self, subject: str, action: str) -> list[ModelFate]:
        """The models a subject may have been trained into: of every study in whose cohort they were, at this silo.

        In the cohort is more than trained on: who has no rows in the study's window added nothing to it.
        """
        register, runs = self._places.register(), dict[tuple[str, str], str]()
        for use in uses(self._audit):
            key = (use.study, use.run)
            if key not in runs and register.was_in(subject, use.ask, use.at, until=use.until):
                runs[key] = use.ask.purpose
        subjects = self._places.subjects()
        for touch in [] if subjects is None else subjects.touched(subject):
            if touch.use.what == "train":
                runs.setdefault((touch.use.study, touch.use.run), "")
        if not runs:
            return []
        file = self._home.path / "ledger.db"  # a lost one must not come back empty
        ledger = Ledger(file, self._home.party) if file.exists() else None
        purposes = {} if ledger is None else {line.study: line.purpose for line in ledger.lines()}
        deltas = {terms.purpose: terms.delta for terms in self._treaty.purposes}
        partners = self._treaty.overlap.max_partners_per_customer
        fates = []
        for study, run in sorted(runs):
            delta = deltas.get(purposes.get(study, ""))
            spent = None if ledger is None or delta is None else ledger.epsilon(delta, study=study)
            known = spent is not None and math.isfinite(spent)
            becomes = "retire" if action == "bound" and not known else action  # no bound, no claim
            fates.append(
                ModelFate(
                    "",
                    study,
                    run,
                    spent if known else None,
                    delta if known else None,
                    partners if known else None,
                    becomes,
                    "",
                )
            )
        return fates

    def evidence(self, study: str, run: str, new_run: str) -> str:
        """Why it may be believed that `new_run` is the model of `run`, trained again without whoever was erased.

        Believed only if this node's audit log has cohorts of the new run, and none has one of the erased.

        Raises:
            InputError: it does not wait to be trained again, or the log has no cohort of the new run.
            VerificationError: somebody erased is in a cohort of the new run.
        """
        register = self._places.register()
        waiting = [m for m in self._erasures.models() if (m.study, m.run, m.state) == (study, run, "queued")]
        names = {self._erasures.get(m.erasure).subject for m in waiting}
        later = [use for use in uses(self._audit) if use.run == new_run]
        if waiting and (not later or new_run == run):
            raise InputError(f"this node's audit log has no cohort of a later run {new_run!r}")
        for use in later:
            if any(register.was_in(name, use.ask, use.at, until=use.until) for name in names):
                raise VerificationError(
                    f"entry {use.index}: somebody who was erased is in a cohort of run {new_run}"
                )
        return f"run {new_run}; cohorts in entries {later[0].index} to {later[-1].index}" if later else ""

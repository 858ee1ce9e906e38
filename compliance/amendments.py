"""Amendments: another version of a treaty, which every party of the former and of the new one has signed.

An amendment names the treaty it takes the place of (`Treaty.amends`, its digest) and counts one version on. So versions are a chain:
none can be skipped, and nobody goes back to an older one. Who leaves signs, too: their customers' data was used under the former
treaty, and they agree to how it ends. What stays the same:

- the name of the treaty, and the coordinator with its key: nodes keep a head of its log, and the log goes on;
- the key of a party that stays: one signature a name is all there is to check. A party with another key leaves and joins.

What was spent under the former treaty stays spent: the ledger is the silo's and knows nothing of treaties.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import durable
from ..documents import Envelope
from ..errors import InputError, VerificationError
from . import treaty as treaties
from .auditlog.log import AuditLog
from .treaty import KIND, Treaty

ACTION = "treaty.amended"
FILE = "treaty.json"
Effect = Literal["looser", "stricter", "other"]


@dataclass(frozen=True)
class Change:
    """One term that differs. `looser` permits more with customers' data than the former treaty did."""

    term: str
    was: str
    now: str
    effect: Effect


def verify(amended: Envelope, former: Envelope) -> Treaty:
    """The new treaty, once it is found to be an amendment of the former that all have signed.

    Raises:
        InputError: malformed. VerificationError: another treaty, another version than the next, a signature that is missing or
            does not hold, somebody's who is in neither, another coordinator, or a party that stays under another key.
    """
    old, new = treaties.verify(former), treaties.parse(amended)
    if new.amends != former.digest:
        raise VerificationError(
            f"it does not amend the treaty that is in force here ({former.digest[:12]})",
            remedy="amendments follow each other: install the one before first",
        )
    if new.version != old.version + 1:
        raise VerificationError(f"version {new.version} does not follow version {old.version}")
    if new.name != old.name:
        raise VerificationError(f"the treaty {old.name!r} can't become {new.name!r}")
    if new.coordinator != old.coordinator:
        raise VerificationError(
            "the coordinator or its key is another: that takes a new treaty, not an amendment"
        )
    treaties.verify(amended)
    keys = {p.name: p.signing_key for p in new.parties}
    for party in old.parties:
        if keys.get(party.name, party.signing_key) != party.signing_key:
            raise VerificationError(
                f"{party.name} stays under another key: it leaves, and joins under another name"
            )
        amended.check(KIND, party.name, party.signing_key)
    strangers = set(amended.signatures) - {p.name for p in (*old.parties, *new.parties)}
    if strangers:
        raise VerificationError(f"signed by {', '.join(sorted(strangers))}, a party of neither treaty")
    return new


def install(directory: Path, amended: Envelope, log: AuditLog, actor: str) -> Treaty:
    """Put an amendment in force in a node's or the server's directory; its process takes it up when it starts.

    The log says so first; the former treaty is kept as ``treaty-VERSION.json``. The same amendment again changes nothing.

    Raises:
        InputError, VerificationError: see `verify`; then nothing was changed.
    """
    file = directory / FILE
    former = Envelope.load(file)
    if amended.digest == former.digest:
        return treaties.verify(former)
    new = verify(amended, former)
    told = {"former": former.digest, "version": new.version}
    if not any(e.record["action"] == ACTION and e.record["subject"] == amended.digest for e in log.entries()):
        log.append(actor, ACTION, amended.digest, told)
    durable.replace(directory / f"treaty-{new.version - 1}.json", former.dumps())
    durable.replace(file, amended.dumps())
    return new


# ── what changes ─────────────────────────────────────────────────────────────────────────────────────

_MORE_IS_STRICTER = ("min_silos", "min_cohort", "min_group", "colluders", "witness_quorum")
_MORE_IS_LOOSER = ("max_cohort", "retention_days")


def diff(old: Treaty, new: Treaty) -> list[Change]:
    """Every term that differs, in the order of the treaty."""
    found: list[Change] = []
    found += _named("party", old.parties, new.parties, added="other", removed="other")
    found += _named("scientist", old.scientists, new.scientists, added="looser", removed="stricter")
    found += _named("approver", old.approvers, new.approvers, added="other", removed="other")
    levels, before = set(new.approval_chain), set(old.approval_chain)
    if old.approval_chain != new.approval_chain:
        effect: Effect = "looser" if before - levels else "stricter" if levels - before else "other"
        found.append(
            Change("approval_chain", ", ".join(old.approval_chain), ", ".join(new.approval_chain), effect)
        )
    found += _purposes(old, new)
    for name in (*_MORE_IS_STRICTER, *_MORE_IS_LOOSER):
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        more = (now or 0) > (was or 0)
        effect = "stricter" if more == (name in _MORE_IS_STRICTER) else "looser"
        found.append(Change(name, _text(was), _text(now), "other" if None in (was, now) else effect))
    if old.overlap != new.overlap:
        m, n = old.overlap.max_partners_per_customer, new.overlap.max_partners_per_customer
        effect = "looser" if n < m else "stricter" if n > m else "other"
        found.append(Change("overlap", old.basis, new.basis, effect))
    if old.unsafe != new.unsafe:
        effect = "looser" if set(new.unsafe) - set(old.unsafe) else "stricter"
        found.append(Change("unsafe", _text(old.unsafe), _text(new.unsafe), effect))
    return found


def _purposes(old: Treaty, new: Treaty) -> Iterable[Change]:
    was, now = ({t.purpose: t for t in treaty.purposes} for treaty in (old, new))
    for purpose in dict.fromkeys((*was, *now)):
        before, after = was.get(purpose), now.get(purpose)
        if before is None and after is not None:
            yield Change(f"purpose {purpose}", "not permitted", after.budget, "looser")
        elif after is None and before is not None:
            yield Change(f"purpose {purpose}", before.budget, "not permitted", "stricter")
        elif before is not None and after is not None and before != after:
            effects = {_order(before.epsilon, after.epsilon), _order(before.delta, after.delta)} - {None}
            if before.period != after.period:
                effects.add(
                    "other"
                    if None not in (before.period, after.period)
                    else "looser"
                    if after.period
                    else "stricter"
                )
            effect = effects.pop() if len(effects) == 1 else "looser" if "looser" in effects else "other"
            yield Change(f"purpose {purpose}", before.budget, after.budget, effect or "other")


def _order(was: float, now: float) -> Effect | None:
    return None if was == now else "looser" if now > was else "stricter"


def _named(
    what: str, old: Iterable[Any], new: Iterable[Any], *, added: Effect, removed: Effect
) -> Iterable[Change]:
    was, now = ({one.name: one for one in side} for side in (old, new))
    for name in dict.fromkeys((*was, *now)):
        if name not in was:
            yield Change(f"{what} {name}", "–", "joins", added)
        elif name not in now:
            yield Change(f"{what} {name}", "there", "leaves", removed)
        elif was[name] != now[name]:
            yield Change(f"{what} {name}", "there", "under other terms or another key", "other")


def _text(value: object) -> str:
    if value is None:
        return "by default"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def sign_as_leaving(envelope: Envelope, former: Envelope, party: str, public: str) -> None:
    """Check that somebody who is no party of an amendment may sign it: a party of the former treaty, under that key.

    Raises:
        InputError: not an amendment of it, or no party of it under this key.
    """
    old = treaties.verify(former)
    if treaties.parse(envelope).amends != former.digest:
        raise InputError("it does not amend that former treaty")
    if {p.name: p.signing_key for p in old.parties}.get(party) != public:
        raise InputError(f"{party} is no party of the former treaty under this key")

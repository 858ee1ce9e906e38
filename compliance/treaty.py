"""The treaty: what the partners signed, and the floor below which no study may go.

Every node holds its own copy and trusts nothing else: parties and their keys, permitted purposes
with their budgets, minimum silos and cohort, the colluders c to withstand, the approval chain.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..documents import Envelope, SigningKey, unb64
from ..errors import InputError, Refused, VerificationError

KIND = "treaty"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._@-]{0,63}$")]
PublicKey = Annotated[str, Field(description="base64 of 32 bytes, Ed25519")]
Level = Literal["business", "dpo", "partner"]


class Document(BaseModel):
    """Base of every signed document's content: frozen, strict, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_P = 2**255 - 19
_ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_SMALL = {0, 1, _P - 1, _ORDER_8, _P - _ORDER_8}
"""The y of the points of small order on Curve25519: under such a key anybody can sign anything."""


def _check_key(value: str) -> str:
    try:
        key = unb64(value, length=32)
    except InputError as error:
        raise ValueError(error.message) from error
    # OpenSSL takes these keys, also spelt with y ≥ p (RFC 8032, section 5.1.7 leaves it to whoever pins the key).
    if (int.from_bytes(key, "little") & (1 << 255) - 1) % _P in _SMALL:
        raise ValueError("a key of small order: anybody could sign under it")
    return value


class Party(Document):
    """A partner company: its silo's identity key and its node's TLS-layer key."""

    name: Name
    signing_key: PublicKey
    node_key: str = Field(description="PEM SubjectPublicKeyInfo the node registers with Flower")

    _key = field_validator("signing_key")(_check_key)


class Person(Document):
    """A data scientist who may author studies."""

    name: Name
    signing_key: PublicKey

    _key = field_validator("signing_key")(_check_key)


class Approver(Document):
    """One who may approve at a level; a `partner` approver speaks for one party."""

    name: Name
    signing_key: PublicKey
    level: Level
    party: Name | None = None

    _key = field_validator("signing_key")(_check_key)

    @model_validator(mode="after")
    def _party_iff_partner(self) -> Self:
        if (self.level == "partner") != (self.party is not None):
            raise ValueError(f"approver {self.name}: a party is named for the level partner, and only there")
        return self


class Coordinator(Document):
    """The server: the origin of its audit log and the key that signs its checkpoints and releases."""

    origin: str = Field(min_length=1, max_length=200)
    signing_key: PublicKey

    _key = field_validator("signing_key")(_check_key)


Period = Literal["year", "quarter", "month"]


class PurposeTerms(Document):
    """The budget of one purpose at every silo: for life, or anew in every calendar period (UTC)."""

    purpose: str = Field(
        min_length=3, max_length=200, description="DPV purpose, e.g. dpv:ServiceOptimisation"
    )
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1e-3)
    period: Period | None = Field(default=None, description="the budget is for each of these, not for life")

    def since(self, moment: datetime) -> datetime | None:
        """When the period of `moment` (aware) began; None if the budget is for life."""
        if self.period is None:
            return None
        day = moment.astimezone(UTC)
        month = {"year": 1, "quarter": 3 * ((day.month - 1) // 3) + 1, "month": day.month}[self.period]
        return datetime(day.year, month, 1, tzinfo=UTC)

    @property
    def lasting(self) -> str:
        """How long the budget lasts, in words."""
        return "for life" if self.period is None else f"a {self.period}, without a cap for life"

    @property
    def budget(self) -> str:
        """The budget, in words."""
        return f"ε {self.epsilon:g} at δ {self.delta:g} {self.lasting}"


class Overlap(Document):
    """How many partners one person may be a customer of.

    The default, every silo, makes a person's contribution count at each. It is lowered only by an
    attestation the partners sign for with the treaty.
    """

    max_partners_per_customer: int = Field(ge=1)
    attestation: str = Field(default="", max_length=500)


class Per(Document):
    """What goes with a released ε: whom it is for, at how many of the partners (m), and of which budget."""

    unit: Literal["customer"] = "customer"
    partners: int = Field(ge=1)
    budget: PurposeTerms


class Treaty(Document):
    """The content of a treaty; its digest names it everywhere."""

    name: str = Field(min_length=1, max_length=120)
    version: int = Field(ge=1)
    parties: tuple[Party, ...] = Field(min_length=2)
    coordinator: Coordinator
    scientists: tuple[Person, ...] = Field(min_length=1)
    approvers: tuple[Approver, ...]
    approval_chain: tuple[Level, ...] = ("business", "dpo", "partner")
    purposes: tuple[PurposeTerms, ...] = Field(min_length=1)
    min_silos: int = Field(ge=2)
    min_cohort: int = Field(ge=1)
    max_cohort: int = Field(ge=1, le=10**8, description="most customers one silo brings to one round")
    min_group: int = Field(
        default=10, ge=2, le=10**6, description="k: fewer customers than this are no group that may be shown"
    )
    colluders: int = Field(ge=1, description="c: silos that may pool what they know with the server")
    overlap: Overlap
    retention_days: int = Field(default=1096, ge=1, le=1096)
    unsafe: tuple[Literal["central"], ...] = Field(
        default=(),
        max_length=1,
        description="what the parties permit though it trusts the server with their data",
    )
    amends: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="digest of the treaty that this one takes the place of",
    )
    witness_quorum: int | None = Field(
        default=None,
        ge=1,
        description="parties whose nodes must have cosigned a head of the log; ⌊(n + c)/2⌋ + 1 by default",
    )

    @field_validator(
        "parties", "scientists", "approvers", "approval_chain", "purposes", "unsafe", mode="before"
    )
    @classmethod
    def _lists(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.amends is not None and self.version == 1:
            raise ValueError("amends: version 1 of a treaty amends none")
        names = [p.name for p in self.parties]
        people = [p.name for p in self.scientists] + [a.name for a in self.approvers]
        keys = [p.signing_key for p in self.parties] + [self.coordinator.signing_key]
        for what, values in (
            ("a party is named", names),
            ("a key is used by parties or the coordinator", keys),
            ("a node key is used", [p.node_key for p in self.parties]),
            ("a purpose is listed", [p.purpose for p in self.purposes]),
            ("a scientist is named", [s.name for s in self.scientists]),
            ("an approver is named", [a.name for a in self.approvers]),
            ("an approver's key is used", [a.signing_key for a in self.approvers]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} twice")
        if set(names) & set(people):
            raise ValueError("a person bears the name of a party")
        if self.min_silos > len(names):
            raise ValueError(f"min_silos {self.min_silos} with {len(names)} parties")
        if self.colluders > len(names) - 2:
            raise ValueError(f"{self.colluders} colluders among {len(names)} parties leave nobody to protect")
        if self.witness_quorum is not None and not self.least_quorum <= self.witness_quorum <= len(names):
            raise ValueError(
                f"witness_quorum {self.witness_quorum}: with {len(names)} parties and {self.colluders} colluders it "
                f"is {self.least_quorum} to {len(names)}; with fewer two histories of the log could each have one"
            )
        if self.min_cohort > self.max_cohort:
            raise ValueError("min_cohort is above max_cohort")
        if len(set(self.approval_chain)) != len(self.approval_chain) or not self.approval_chain:
            raise ValueError("the approval chain must name each of its levels once, and at least one")
        missing = [n for n in names if n not in {a.party for a in self.approvers}]
        if "partner" in self.approval_chain and missing:
            raise ValueError(f"no approver for {', '.join(missing)}")
        if unknown := {a.party for a in self.approvers if a.party} - set(names):
            raise ValueError(f"approver for an unknown party {', '.join(sorted(unknown))}")
        for level in self.approval_chain:
            if not any(a.level == level for a in self.approvers):
                raise ValueError(f"nobody can approve at level {level}")
        overlap = self.overlap
        if overlap.max_partners_per_customer > len(names):
            raise ValueError("overlap.max_partners_per_customer exceeds the number of parties")
        if overlap.max_partners_per_customer < len(names) and not overlap.attestation.strip():
            raise ValueError("overlap below the number of parties needs an attestation")
        return self

    @property
    def threshold(self) -> int:
        """t, the least number of silos a sum may be opened over: ⌊(n + c)/2⌋ + 1 (DESIGN §6), or `min_silos` if that is more.

        The noise is dealt for t (decision 15).
        """
        return max((len(self.parties) + self.colluders) // 2 + 1, self.min_silos)

    @property
    def least_quorum(self) -> int:
        """The fewest witnesses of which any two sets share an honest one: ⌊(n + c)/2⌋ + 1.

        Two sets of q of n parties share 2q − n or more. Of them c may collude and cosign whatever they are
        shown, so 2q − n > c is needed, that is q > (n + c)/2. The honest one that both share cosigns one
        history of the log, so no two histories have a quorum each (cosignature).
        """
        return (len(self.parties) + self.colluders) // 2 + 1

    @property
    def quorum(self) -> int:
        """q, how many parties' nodes must have cosigned a head of the log before a node goes on.

        `witness_quorum`, or by default the fewest that leave no room for two histories. That is at most
        `threshold`: where enough silos are left for a sum there are enough witnesses, and a node that dies
        stops no run that would have gone on without it. A treaty that asks for more gives that up.
        """
        return self.witness_quorum or self.least_quorum

    @property
    def witnesses(self) -> dict[str, str]:
        """Who may cosign heads of the log, party -> base64 public key: its identity key.

        No key of its own: this one is pinned by all signatures under the treaty, and a second one would be one
        more to lose. What it signs here begins with ``cosignature/v1``, what it signs elsewhere with
        ``foedus/v1/`` (documents), so neither passes for the other; and the key id tells a cosignature (0x04)
        from a plain signature under a note (0x01).
        """
        return {party.name: party.signing_key for party in self.parties}

    @property
    def unit(self) -> str:
        """Whom an ε under this treaty is for, m included, in words. Whatever shows an ε says it."""
        n, m = len(self.parties), self.overlap.max_partners_per_customer
        if m == n:
            return f"one customer, at all m = {m} partners together"
        return f"one customer, at up to m = {m} of {n} partners together (attested)"

    @property
    def basis(self) -> str:
        """A sentence: `unit`, and what the partners attest."""
        said = self.overlap.attestation.strip()
        return f"Every ε is for {self.unit}." + (f" The partners attest: “{said}”" if said else "")

    def per(self, purpose: str) -> Per:
        """The same for programs, beside an ε of this purpose."""
        return Per(partners=self.overlap.max_partners_per_customer, budget=self.terms(purpose))

    def party(self, name: str) -> Party:
        """The party of this name; Refused if there is none."""
        for party in self.parties:
            if party.name == name:
                return party
        raise Refused("UNKNOWN_PARTY", f"{name} is no party of the treaty {self.name!r}")

    def index(self, name: str) -> int:
        """A party's place, 1…n: its x coordinate in secret sharing."""
        return [p.name for p in self.parties].index(self.party(name).name) + 1

    def terms(self, purpose: str) -> PurposeTerms:
        """The budget of a purpose; Refused if the treaty doesn't permit it."""
        for terms in self.purposes:
            if terms.purpose == purpose:
                return terms
        allowed = ", ".join(t.purpose for t in self.purposes)
        raise Refused(
            "PURPOSE_NOT_PERMITTED",
            f"the purpose {purpose!r} is not permitted by the treaty {self.name!r}",
            remedy=f"permitted: {allowed}; another purpose needs an amended treaty signed by every party",
        )

    def scientist(self, name: str) -> Person:
        """The scientist of this name; Refused if there is none."""
        for person in self.scientists:
            if person.name == name:
                return person
        raise Refused("UNKNOWN_AUTHOR", f"{name} is no scientist of the treaty {self.name!r}")

    def envelope(self) -> Envelope:
        """This treaty as a document to sign."""
        return Envelope(KIND, self.model_dump(mode="json"))


def explain(error: ValidationError, what: str, *, tags: Collection[str] = ()) -> InputError:
    """Turn pydantic's error into one sentence per fault, naming the field; `tags` of unions are left out of names."""
    faults = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"] if part not in tags) or "document"
        faults.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
    return InputError(f"{what}: " + "; ".join(faults[:8]))


def draft(content: object) -> Treaty:
    """A treaty from parsed YAML or JSON, not yet signed by anyone.

    Raises:
        InputError: a field is missing, unknown or contradicts another.
    """
    try:
        return Treaty.model_validate(content)
    except ValidationError as error:
        raise explain(error, "treaty") from error


def parse(envelope: Envelope) -> Treaty:
    """The treaty in an envelope, its signatures not yet checked.

    Raises:
        InputError: another kind of document, or a content that is no treaty.
    """
    if envelope.kind != KIND:
        raise InputError(f"a treaty was expected, this is a {envelope.kind!r}")
    return draft(envelope.payload)


def verify(envelope: Envelope) -> Treaty:
    """The treaty in an envelope, once every one of its parties is found to have signed it.

    An amendment bears the signatures of parties that leave, too: `amendments.verify` checks them, against the former.

    Raises:
        InputError: malformed. VerificationError: a signature is missing or does not hold.
    """
    treaty = parse(envelope)
    for party in treaty.parties:
        envelope.check(KIND, party.name, party.signing_key)
    strangers = set(envelope.signatures) - {p.name for p in treaty.parties}
    if strangers and treaty.amends is None:
        raise VerificationError(f"treaty: signed by {', '.join(sorted(strangers))}, who is no party")
    return treaty


def load(path: Path) -> tuple[Envelope, Treaty]:
    """Read and verify a treaty file."""
    envelope = Envelope.load(path)
    return envelope, verify(envelope)


def sign_all(treaty: Treaty, keys: Sequence[tuple[str, SigningKey]]) -> Envelope:
    """Sign with several parties' keys (for a demo or a test, where one process holds them all)."""
    envelope = treaty.envelope()
    for name, key in keys:
        envelope = envelope.signed(name, key)
    return envelope

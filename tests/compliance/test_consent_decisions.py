"""The rule: one function, a naive one beside it, and two SQL engines that must say the same of everybody."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.consents import ADS, CRM, EMAIL, HEALTH, PURCHASES, T0, content, day, notice

from foedus.clients.cohort import Cohorts
from foedus.compliance.consent import (
    Allowed,
    Ask,
    ConsentRecord,
    ConsentRegister,
    Denied,
    Grant,
    Notice,
    Withdrawal,
    may_use,
)
from foedus.compliance.consent.records import Terms, own_from
from foedus.errors import InputError

ORDERS = Ask(CRM, frozenset([PURCHASES]))
FOR_ALL = {"audience": "all", "purposes": {CRM: [PURCHASES, HEALTH], ADS: [PURCHASES]}}


def register_at(folder: Path) -> ConsentRegister:
    register = ConsentRegister(folder / "consent.db")
    register.publish(notice("own", purposes={CRM: [PURCHASES, EMAIL, HEALTH], ADS: [PURCHASES]}))
    register.publish(notice("all", **FOR_ALL))
    return register


@pytest.fixture
def register(tmp_path: Path) -> ConsentRegister:
    return register_at(tmp_path)


def reason(register: ConsentRegister, ask: Ask = ORDERS, at: datetime | None = None) -> str | None:
    answer = register.may_use("c1", ask, at or day(2))
    return answer.reason if isinstance(answer, Denied) else None


# ── purposes, categories, sharing ────────────────────────────────────────────────────────────────


def test_consent_is_for_a_purpose_and_its_categories(register: ConsentRegister) -> None:
    assert reason(register) == "NEVER_ASKED"
    register.grant_many([Grant("c1", CRM, "own/zh", day(1), categories=(PURCHASES,))])
    assert reason(register) is None
    assert reason(register, at=day(0.5)) == "NOT_YET"
    assert reason(register, Ask(ADS, frozenset([PURCHASES]))) == "NEVER_ASKED"
    assert reason(register, Ask(CRM, frozenset([PURCHASES, EMAIL]))) == "CATEGORY_NOT_CONSENTED"


def test_all_that_the_notice_names_is_the_default_but_what_is_sensitive(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", CRM, "own/zh", day(1))])
    assert register.records("c1")[0].terms.categories == {PURCHASES, EMAIL}
    assert reason(register, Ask(CRM, frozenset([HEALTH]))) == "CATEGORY_NOT_CONSENTED"
    register.grant_many([Grant("c1", CRM, "own/zh", day(1.5), sensitive=True)])
    assert reason(register, Ask(CRM, frozenset([HEALTH, EMAIL]))) is None
    with pytest.raises(InputError, match="separate"):
        register.grant_many([Grant("c1", CRM, "own/zh", day(3), categories=(HEALTH,))])


def test_sharing_is_consented_to_separately_and_by_recipient(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", CRM, "own/zh", day(1), sharing=("bank-b",))])
    assert reason(register) is None
    assert reason(register, replace(ORDERS, sharing=frozenset(["bank-b"]))) is None
    assert (
        reason(register, replace(ORDERS, sharing=frozenset(["bank-b", "shop-c"]))) == "SHARING_NOT_CONSENTED"
    )
    with pytest.raises(InputError, match="no recipient"):
        register.grant_many([Grant("c1", CRM, "own/zh", day(3), sharing=("broker",))])


def test_two_halves_are_no_consent_to_the_whole(register: ConsentRegister) -> None:
    register.grant_many(
        [
            Grant("c1", CRM, "own/zh", day(1), categories=(PURCHASES,)),
            Grant("c1", CRM, "own/zh", day(1.5), categories=(EMAIL,)),
        ]
    )
    assert reason(register, Ask(CRM, frozenset([PURCHASES, EMAIL]))) == "CATEGORY_NOT_CONSENTED"
    assert reason(register, Ask(CRM, frozenset([EMAIL]))) is None


# ── notices ──────────────────────────────────────────────────────────────────────────────────────


def test_a_new_category_needs_a_new_notice_and_a_new_consent(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", ADS, "own/zh", day(1))])
    wider = Ask(ADS, frozenset([PURCHASES, EMAIL]))
    assert reason(register, wider) == "CATEGORY_NOT_CONSENTED"
    with pytest.raises(InputError, match="says something else"):
        register.publish(notice("own", purposes={ADS: [PURCHASES, EMAIL]}))
    register.publish(notice("own-2", purposes={ADS: [PURCHASES, EMAIL]}))
    assert reason(register, wider) == "CATEGORY_NOT_CONSENTED"  # nobody has consented to it yet
    register.grant_many([Grant("c1", ADS, "own-2/zh", day(1.5))])
    assert reason(register, wider) is None


@pytest.mark.parametrize(
    ("grant", "match"),
    [
        (Grant("c1", CRM, "older/zh", day(1)), "not published"),
        (Grant("c1", CRM, "own", day(1)), "notice and language"),
        (Grant("c1", CRM, "own/fr", day(1)), "notice and language"),
        (Grant("c1", "dpv:Marketing", "own/zh", day(1)), "no purpose of the notice"),
        (Grant("c1", CRM, "own/zh", day(1), categories=("user.name",)), "not in the notice"),
        (Grant("c1", CRM, "own/zh", T0 - timedelta(days=31)), "not in effect"),
    ],
)
def test_a_grant_without_its_notice_is_refused(register: ConsentRegister, grant: Grant, match: str) -> None:
    with pytest.raises(InputError, match=match):
        register.grant_many([Grant("good", CRM, "own/zh", day(1)), grant])
    assert register.records("good") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("purposes", {}),
        ("purposes", {"dpv:Snooping": [PURCHASES]}),
        ("purposes", {CRM: []}),
        ("purposes", {CRM: ["user.shoe_size"]}),
        ("text", {"zh": "告知"}),
        ("text", {"zh": "", "en": "x"}),
        ("effective_from", "2026-01-01T00:00:00"),
        ("jurisdiction", "XX"),
        ("storage", {"location": "CN", "days": 2000}),
        ("version", "a/b"),
        ("colour", "blue"),
    ],
)
def test_a_bad_notice_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Notice.checked(content() | {field: value})


def test_a_notice_has_one_digest_and_one_for_each_text() -> None:
    one, other = notice(), notice(effective_from="2025-12-02T08:00:00+08:00")
    assert one.digest == other.digest  # one instant
    assert one.text_digest("zh") != one.text_digest("en")
    assert notice(text={"zh": "告知书 2026-01", "en": "Notice 2026-01."}).digest != one.digest


# ── children ─────────────────────────────────────────────────────────────────────────────────────

BORN = date(2014, 5, 10)  # 14 on 10 May 2028; of age from the 11th, by Chinese time


def test_own_consent_counts_from_the_day_after_the_birthday() -> None:
    assert own_from(BORN, "CN") == datetime(2028, 5, 10, 16, tzinfo=UTC)
    assert own_from(BORN, "EU") == datetime(2030, 5, 11, 1, tzinfo=UTC)
    assert own_from(date(2012, 2, 29), "CN") == datetime(
        2026, 3, 1, 16, tzinfo=UTC
    )  # 2026 has no 29 February


def test_a_child_needs_a_guardian_and_separate_consent(register: ConsentRegister) -> None:
    child = Grant("c1", CRM, "all/zh", day(1), born=BORN)
    for grant, match in (
        (replace(child, born=None), "date of birth"),
        (child, "no guardian"),
        (replace(child, guardian="g1"), "separate consent"),
        (replace(child, born=date(2000, 1, 1), guardian="g1"), "no guardian can"),
        (Grant("c1", CRM, "own/zh", day(1), guardian="g1"), "date of birth"),
        (replace(child, born=date(2026, 6, 1), guardian="g1", sensitive=True), "no date of birth"),
    ):
        with pytest.raises(InputError, match=match):
            register.grant_many([grant])
    register.grant_many([replace(child, guardian="g1", sensitive=True)])
    assert reason(register) is None
    assert register.records("c1")[0].guardian == "g1"


def test_a_guardians_consent_ends_when_the_child_can_consent(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", CRM, "all/zh", day(1), born=BORN, guardian="g1", sensitive=True)])
    turns = own_from(BORN, "CN")
    last = turns - timedelta(microseconds=1)
    assert (reason(register, at=last), reason(register, at=turns)) == (None, "OWN_CONSENT_MISSING")
    register.grant_many([Grant("c1", CRM, "all/zh", turns, born=BORN)])
    assert reason(register, at=turns) is None
    assert [r.supersedes is not None for r in register.records("c1")] == [False, True]


# ── whatever is missing or malformed denies ──────────────────────────────────────────────────────


def test_anything_malformed_denies(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", CRM, "own/zh", day(1))])
    (good,), notices = register.records("c1"), register.notices()
    assert may_use([good], notices, ORDERS, day(2)) == Allowed(good.record_id)
    bad: list[object] = [
        None,
        replace(good, granted_at=None),  # type: ignore[arg-type]
        replace(good, granted_at=datetime(2026, 1, 2)),
        replace(good, expires_at="never"),  # type: ignore[arg-type]
        replace(good, terms=None),  # type: ignore[arg-type]
        replace(good, terms=replace(good.terms, notice_version="own")),
        replace(good, terms=replace(good.terms, categories=None)),  # type: ignore[arg-type]
        replace(good, own_from="2026"),  # type: ignore[arg-type]
    ]
    for record in bad:
        assert isinstance(may_use([record], notices, ORDERS, day(2)), Denied)  # type: ignore[list-item]
    assert may_use([good, replace(good, subject="c2")], notices, ORDERS, day(2)) == Denied("MALFORMED")
    assert may_use([good], {}, ORDERS, day(2)) == Denied("NOTICE_UNKNOWN")
    assert may_use([good], notices, ORDERS, datetime(2026, 1, 3)) == Denied("MALFORMED")
    for purpose, categories in ((CRM, []), (CRM, ["user.shoe_size"]), ("dpv:Snooping", [PURCHASES])):
        with pytest.raises(InputError):
            Ask(purpose, frozenset(categories))


# ── the same said four times ─────────────────────────────────────────────────────────────────────

WHO = st.sampled_from(["a", "b", "c"])
GRANT = st.builds(
    lambda who, what, notice, at, lasts, sensitive, categories, sharing, born, guardian: Grant(
        who, what, notice, day(at), None if lasts is None else day(at + lasts),
        categories=categories, sensitive=sensitive, sharing=sharing, born=born, guardian=guardian,
    ),
    WHO,
    st.sampled_from([CRM, CRM, ADS]),
    st.sampled_from(["own/zh", "own/en", "all/zh"]),
    st.integers(0, 8),
    st.none() | st.integers(1, 6),
    st.booleans(),
    st.sampled_from([None, None, (PURCHASES,), (PURCHASES, HEALTH), (EMAIL,)]),
    st.sampled_from([(), (), ("bank-b",), ("bank-b", "shop-c")]),
    # who turns 14 before, in the middle, and after
    st.sampled_from([None, None, date(2000, 1, 1), date(2012, 1, 4), date(2018, 1, 1)]),
    st.sampled_from([None, None, "g1"]),
)  # fmt: skip
OUT = st.builds(
    lambda who, what, at: Withdrawal(who, what, day(at)), WHO, st.sampled_from([CRM, ADS]), st.integers(0, 9)
)
ASK = st.builds(
    lambda purpose, categories, sharing: Ask(purpose, frozenset(categories), frozenset(sharing)),
    st.sampled_from([CRM, ADS]),
    st.sampled_from([[PURCHASES], [PURCHASES, EMAIL], [HEALTH], [PURCHASES, HEALTH]]),
    st.sampled_from([[], [], ["bank-b"], ["bank-b", "shop-c"]]),
)


def naive(told: list[Grant | Withdrawal], who: str, ask: Ask, at: datetime) -> bool:
    """The rule anew, from what was told; a grant that the register takes is one the law lets stand."""
    named = {
        "own": {CRM: {PURCHASES, EMAIL, HEALTH}, ADS: {PURCHASES}},
        "all": {CRM: {PURCHASES, HEALTH}, ADS: {PURCHASES}},
    }
    for g in told:
        if not isinstance(g, Grant) or g.subject != who or g.purpose != ask.purpose or g.granted_at > at:
            continue
        if g.expires_at is not None and at >= g.expires_at:
            continue
        if any(
            isinstance(w, Withdrawal)
            and (w.subject, w.purpose) == (who, g.purpose)
            and g.granted_at <= w.at <= at
            for w in told
        ):
            continue
        stated = set(
            g.categories
            or named[g.notice_version.split("/")[0]][g.purpose] - (set() if g.sensitive else {HEALTH})
        )
        if not ask.categories <= stated or not ask.sharing <= set(g.sharing):
            continue
        if g.guardian is not None:
            birthday = datetime(g.born.year + 14, g.born.month, g.born.day, tzinfo=UTC)
            if at >= birthday + timedelta(hours=24 - 8):
                continue
        return True
    return False


@settings(max_examples=40, deadline=None)
@given(st.lists(GRANT | OUT, max_size=20), ASK, st.randoms(use_true_random=False))
def test_the_rule_and_both_cohorts_agree_on_everybody(
    events: list[Grant | Withdrawal], ask: Ask, random: object
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        register, told = register_at(Path(folder)), []
        cohorts = Cohorts(register)
        for event in events:
            try:
                if isinstance(event, Grant):
                    register.grant_many([event])
                else:
                    register.withdraw_many([event])
            except InputError:
                continue
            told.append(event)
            if random.random() < 0.3:  # type: ignore[attr-defined]
                cohorts.of(ask, day(4))  # so that the copy is made in steps
        notices = register.notices()
        for at in (day(k) for k in (-1, 0, 2, 3, 3.5, 4, 6, 9, 15)):
            expected = [who for who in "abc" if naive(told, who, ask, at)]
            records = {who: register.records(who) for who in "abc"}
            rule = [w for w in "abc" if isinstance(may_use(records[w], notices, ask, at), Allowed)]
            assert rule == expected
            assert register.cohort(ask, at)["subject"].tolist() == expected
            assert cohorts.of(ask, at).frame["subject"].tolist() == expected


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["own/zh", "gone/zh", "all/zh", "own"]),
    st.booleans(),
    st.sampled_from([None, day(-900), day(3)]),
    st.sampled_from([None, "g1"]),
    st.frozensets(st.sampled_from([PURCHASES, EMAIL, HEALTH, "user.shoe_size"]), max_size=3),
)
def test_records_that_should_not_be_there_permit_no_more_than_they_may(
    version: str, sensitive: bool, own: datetime | None, guardian: str | None, categories: frozenset[str]
) -> None:
    """As if somebody had written into the file: the rule does not rely on what the register refuses."""
    notices = {"own": notice("own", purposes={CRM: [PURCHASES, HEALTH]}), "all": notice("all", **FOR_ALL)}
    terms = Terms(version, CRM, categories, sensitive, frozenset())
    record = ConsentRecord("r", "c1", terms, day(1), None, None, "x", own, guardian)
    for ask in (ORDERS, Ask(CRM, frozenset([HEALTH]))):
        if not isinstance(may_use([record], notices, ask, day(2)), Allowed):
            continue
        assert version in ("own/zh", "all/zh") and ask.categories <= categories <= {PURCHASES, HEALTH}
        assert sensitive or HEALTH not in ask.categories
        child = own is not None and own > record.granted_at
        assert (guardian is not None) == child
        assert sensitive or not child
        assert own is not None or version == "own/zh"


def test_a_register_that_was_put_back_is_read_anew(tmp_path: Path) -> None:
    register, path = register_at(tmp_path), tmp_path / "consent.db"
    register.grant_many([Grant(who, CRM, "own/zh", day(1)) for who in "abc"])
    before, cohorts = path.read_bytes(), Cohorts(register)
    register.withdraw("a", CRM, at=day(1))
    assert cohorts.of(ORDERS, day(2)).frame["subject"].tolist() == ["b", "c"]
    path.write_bytes(before)
    assert cohorts.of(ORDERS, day(2)).frame["subject"].tolist() == ["a", "b", "c"]
    register.withdraw("b", CRM, at=day(1))
    assert cohorts.of(ORDERS, day(2)).frame["subject"].tolist() == ["a", "c"]

"""Studies: drafts that say what is wrong with them, prices that keep to ε, and tampering that shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.treaties import PURPOSE, make_draft, make_study, make_treaty, sign_study

from foedus.compliance.treaty import Overlap, PurposeTerms, Treaty
from foedus.documents import Envelope, SigningKey
from foedus.errors import FoedusError, InputError, Refused, VerificationError
from foedus.federation import limits
from foedus.federation import study as studies
from foedus.federation.fitting import resolve
from foedus.federation.limits import check_against
from foedus.federation.pricing import price
from foedus.federation.rounds import row_bound
from foedus.federation.study import DraftPrivacy, Model, Study, Training
from foedus.privacy.accountant import PLD

DOCUMENT, CONTENT, KEYS = make_treaty(4)
STUDY = resolve(make_draft(), CONTENT, DOCUMENT.digest)
GOOD: dict[str, Any] = {
    "title": "churn", "author": "alice", "purpose": PURPOSE, "privacy": {"epsilon": 4.0},
    "label": {"train_as_of": "2024-06-01", "test_as_of": "2024-09-01"},
}  # fmt: skip


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────


def test_a_short_draft_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"title: churn\nauthor: alice\npurpose: {PURPOSE}\nprivacy: {{epsilon: 4}}\n"
        "label:\n  train_as_of: 2024-06-01\n  test_as_of: '2024-09-01'\n"
    )
    draft = studies.load_draft(path)
    assert (draft.label.train_as_of, draft.privacy.epsilon, draft.split.by) == ("2024-06-01", 4.0, "hash")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"title": ""}, "title"),
    ({"author": "Alice B"}, "author"),
    ({"purpose": None}, "purpose"),
    ({"privacy": {}}, r"privacy\.epsilon"),
    ({"privacy": {"epsilon": 0}}, r"privacy\.epsilon"),
    ({"privacy": {"epsilon": -1.0}}, r"privacy\.epsilon"),
    ({"privacy": {"epsilon": 1e6}}, r"privacy\.epsilon"),
    ({"privacy": {"epsilon": "4"}}, r"privacy\.epsilon"),
    ({"privacy": {"epsilon": 4.0, "delta": 0.5}}, r"privacy\.delta"),
    ({"privacy": {"epsilon": 4.0, "delta": 0}}, r"privacy\.delta"),
    ({"privacy": {"epsilon": 4.0, "sigma_train": 4}}, r"privacy\.sigma_train"),
    ({"privacy": {"epsilon": 4.0, "mode": "trust me"}}, r"privacy\.mode.*distributed, local, central"),
    ({"privacy": {"epsilon": 4.0, "mode": ["local"]}}, r"privacy\.mode"),
    ({"privacy": {"epsilon": 4.0, "evaluation_share": 1.0}}, r"privacy\.evaluation_share"),
    ({"label": {"train_as_of": "2024-06-31", "test_as_of": "2024-09-01"}}, r"label\.train_as_of"),
    ({"label": {"train_as_of": "June", "test_as_of": "2024-09-01"}}, r"label\.train_as_of"),
    ({"label": {"train_as_of": "2024-06-01"}}, r"label\.test_as_of"),
    ({"label": {**GOOD["label"], "horizon_days": 0}}, r"label\.horizon_days"),
    ({"table": {"customer": "id; DROP TABLE orders"}}, r"table\.customer"),
    ({"table": {"amount": ""}}, r"table\.amount"),
    ({"split": {"train": 1.0}}, r"split\.train"),
    ({"split": {"by": "chance"}}, r"split\.by"),
    ({"features": []}, "features"),
    ({"features": [{"name": "age", "upper": 1}]}, r"features\.0\.name"),
    ({"features": [{"name": "orders", "upper": 0}]}, r"features\.0"),
    ({"features": [{"name": "orders", "lower": 5, "upper": 5}]}, r"features\.0.*lower < upper"),
    ({"features": [{"name": "orders", "lower": -1, "upper": 5}]}, r"features\.0.*lower"),
    ({"model": {"kind": "forest"}}, r"model\.kind"),
    ({"model": {"kind": "mlp", "hidden": 0}}, r"model\.hidden"),
    ({"model": {"kind": "mlp"}}, "fixed_hessian is for logistic_regression"),
    ({"training": {"rounds": 0}}, r"training\.rounds"),
    ({"training": {"rounds": 1.5}}, r"training\.rounds"),
    ({"training": {"clip": 0}}, r"training\.clip"),
    ({"training": {"learning_rate": 2.0}}, "learning_rate below 2"),
    ({"evaluation": {"bins": 1}}, r"evaluation\.bins"),
    ({"evaluation": {"lower": 1.0, "upper": 1.0}}, "evaluation.*lower < upper"),
    ({"trip_seconds": 0}, "trip_seconds"),
    ({"task": "exfiltrate"}, "task"),
    ({"code": "import os"}, "code"),
]


@pytest.mark.parametrize(("changes", "field"), BAD, ids=[f"{f}-{i}" for i, (_, f) in enumerate(BAD)])
def test_an_error_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        studies.draft_from({**GOOD, **changes}, "draft")


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2]", b"just text", b"a: [", b"\xff\xfe", b"!!python/object/apply:os.system ['true']"],
)
def test_what_is_no_draft_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    for place in (path, tmp_path / "missing.yaml"):
        with pytest.raises(InputError, match=place.name):
            studies.load_draft(place)


# ── price ────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    epsilon=st.floats(0.1, 20.0),
    delta=st.sampled_from([1e-4, 1e-5, 1e-6]),
    rounds=st.integers(1, 60),
    clip=st.floats(0.05, 20.0),
    n=st.integers(3, 12),
    c=st.integers(1, 4),
    overlap=st.integers(1, 12),
    cohort=st.sampled_from([100, 10_000, 200_000]),
    optimiser=st.sampled_from(["fixed_hessian", "adam"]),
)
def test_a_resolved_study_keeps_to_its_epsilon_and_does_not_waste_it(
    epsilon: float,
    delta: float,
    rounds: int,
    clip: float,
    n: int,
    c: int,
    overlap: int,
    cohort: int,
    optimiser: Any,
) -> None:
    assume(c <= n - 2)
    treaty = _treaty(n, c, min(overlap, n), cohort)
    draft = make_draft(
        privacy=DraftPrivacy(epsilon=epsilon, delta=delta),
        training=Training(rounds=rounds, clip=clip, optimiser=optimiser),
    )
    try:
        study = resolve(draft, treaty, "0" * 64)
    except InputError as error:
        assert "does not fit the modulus" in error.message
        return
    cost = price(study, treaty)
    assert 0.97 * epsilon <= cost <= epsilon
    everybody = dict.fromkeys(range(1, study.rounds + 1), n)
    assert price(study, treaty, survivors=everybody) <= cost
    for number in range(1, study.rounds + 1):
        plan = study.round(number, treaty)
        entry = row_bound(clip) if plan.task == "train" else 1.0
        tail = math.sqrt(2 * math.log(2 * plan.dimension * 2**40))  # passed with probability below 2^-40
        reach = n * cohort * entry * 2**plan.scale_bits + tail * math.sqrt(n) * plan.sigma
        assert reach < 2 ** (plan.bits - 1)


_TREATIES: dict[tuple[int, int], Treaty] = {}


def _treaty(n: int, c: int, overlap: int, cohort: int) -> Treaty:
    if (n, c) not in _TREATIES:
        _TREATIES[n, c] = make_treaty(
            n, colluders=c, purposes=(PurposeTerms(purpose=PURPOSE, epsilon=100.0, delta=9e-4),)
        )[1]
    attested = Overlap(max_partners_per_customer=overlap, attestation="attested")
    return _TREATIES[n, c].model_copy(update={"overlap": attested, "max_cohort": cohort})


def test_the_price_is_the_sum_of_the_rounds_events() -> None:
    shares = CONTENT.threshold - CONTENT.colluders
    events = [STUDY.round(n, CONTENT).event(shares) for n in range(1, STUDY.rounds + 1)]
    assert price(STUDY, CONTENT) == pytest.approx(PLD(events).epsilon(STUDY.privacy.delta))
    one_more = price(STUDY, CONTENT, survivors={1: 4})
    assert one_more < price(STUDY, CONTENT)


def test_the_same_person_at_every_partner_costs_that_much_more_noise() -> None:
    everywhere = make_treaty(4, overlap=Overlap(max_partners_per_customer=4))[1]
    study = resolve(make_draft(), everywhere, "0" * 64)
    scale = 2.0 ** (study.privacy.scale_bits_train - STUDY.privacy.scale_bits_train)
    assert study.privacy.sigma_train == pytest.approx(4 * STUDY.privacy.sigma_train * scale, rel=1e-2)
    assert price(study, CONTENT) < 1.2 < price(study, everywhere) <= 4.0


def test_extremes_end_in_an_error_of_ours_or_a_study_that_holds() -> None:
    for epsilon in (1e-3, 100.0):
        for cohort in (1, 10**8):
            treaty = CONTENT.model_copy(
                update={
                    "max_cohort": cohort,
                    "purposes": (PurposeTerms(purpose=PURPOSE, epsilon=100.0, delta=1e-5),),
                }
            )
            try:
                study = resolve(make_draft(privacy=DraftPrivacy(epsilon=epsilon)), treaty, "0" * 64)
            except FoedusError:
                continue
            assert price(study, treaty) <= epsilon


def test_rounds_are_numbered_from_one() -> None:
    for number in (0, STUDY.rounds + 1, -1):
        with pytest.raises(Refused, match="rounds 1 to"):
            STUDY.round(number, CONTENT)


def test_a_study_is_never_the_same_twice() -> None:
    again = resolve(make_draft(), CONTENT, DOCUMENT.digest)
    assert again.envelope().digest != STUDY.envelope().digest


# ── tampering ────────────────────────────────────────────────────────────────────────────────────


def with_privacy(**changes: Any) -> Study:
    return STUDY.model_copy(update={"privacy": STUDY.privacy.model_copy(update=changes)})


P = STUDY.privacy
TAMPERED: dict[str, tuple[Callable[[], Study], str]] = {
    "another treaty": (lambda: STUDY.model_copy(update={"treaty": "0" * 64}), "OTHER_TREATY"),
    "an unknown author": (lambda: STUDY.model_copy(update={"author": "mallory"}), "UNKNOWN_AUTHOR"),
    "another purpose": (lambda: STUDY.model_copy(update={"purpose": "dpv:Advertising"}), "PURPOSE_NOT_PERMITTED"),
    "ε over the cap": (lambda: with_privacy(epsilon=8.01), "EPSILON_OVER_CAP"),
    "δ over the cap": (lambda: with_privacy(delta=2e-5), "DELTA_OVER_CAP"),
    "ε lower than it costs": (lambda: with_privacy(epsilon=3.9), "NOISE_TOO_SMALL"),
    "δ lower than it costs": (lambda: with_privacy(delta=1e-6), "NOISE_TOO_SMALL"),
    "less noise in training": (lambda: with_privacy(sigma_train=int(P.sigma_train * 0.97)), "NOISE_TOO_SMALL"),
    "less noise in evaluation": (lambda: with_privacy(sigma_evaluate=int(P.sigma_evaluate * 0.9)), "NOISE_TOO_SMALL"),
    "less noise in curvature": (lambda: with_privacy(sigma_curvature=int(P.sigma_curvature * 0.8)), "NOISE_TOO_SMALL"),
    "a finer scale": (lambda: with_privacy(scale_bits_train=P.scale_bits_train + 1), "SUM_COULD_WRAP"),
    "a finer scale of evaluation": (lambda: with_privacy(scale_bits_evaluate=9), "NOISE_TOO_SMALL"),
    "a wider clip": (
        lambda: STUDY.model_copy(update={"training": STUDY.training.model_copy(update={"clip": 0.32})}), "NOISE_TOO_SMALL"
    ),
    "more rounds": (
        lambda: STUDY.model_copy(update={"training": STUDY.training.model_copy(update={"rounds": 9})}), "NOISE_TOO_SMALL"
    ),
    "noise that wraps in training": (lambda: with_privacy(sigma_train=2**29), "SUM_COULD_WRAP"),
    "noise that wraps in evaluation": (lambda: with_privacy(sigma_evaluate=2**29), "SUM_COULD_WRAP"),
    "noise that wraps in curvature": (lambda: with_privacy(sigma_curvature=2**29), "SUM_COULD_WRAP"),
    "a scale that wraps": (
        lambda: with_privacy(scale_bits_train=13 + P.scale_bits_train, sigma_train=P.sigma_train << 13), "SUM_COULD_WRAP"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "code"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_the_treaty_does_not_permit_is_refused(tamper: Callable[[], Study], code: str) -> None:
    check_against(STUDY, CONTENT, DOCUMENT.digest)
    with pytest.raises(Refused) as found:
        check_against(tamper(), CONTENT, DOCUMENT.digest)
    assert found.value.code == code


def test_the_same_person_at_more_partners_than_priced_is_refused() -> None:
    stricter = CONTENT.model_copy(update={"overlap": Overlap(max_partners_per_customer=2, attestation="x")})
    with pytest.raises(Refused, match="more than"):
        check_against(STUDY, stricter, DOCUMENT.digest)
    more_colluders = CONTENT.model_copy(update={"colluders": 2})
    assert more_colluders.threshold == 4  # a higher threshold, as many honest shares
    check_against(STUDY, more_colluders, DOCUMENT.digest)


def test_a_signed_study_survives_the_wire_and_only_so() -> None:
    envelope = make_study(DOCUMENT, CONTENT, KEYS)
    assert limits.verify(Envelope.loads(envelope.dumps()), CONTENT, DOCUMENT.digest).author == "alice"
    payload = json.loads(envelope.dumps())["payload"]
    for forged in (
        Envelope("study", {**payload, "title": "x"}, envelope.signatures),
        Envelope("study", payload),
        Envelope("study", payload).signed("alice", SigningKey.generate()),
        Envelope("study", payload).signed("alice", KEYS.scientists["bob"]),
        Envelope("study", {**payload, "author": "bob"}, envelope.signatures),
    ):
        with pytest.raises(VerificationError):
            limits.verify(forged, CONTENT, DOCUMENT.digest)
    for shape in (
        Envelope("treaty", payload),
        Envelope("study", {}),
        Envelope("study", {**payload, "code": "x"}),
    ):
        with pytest.raises(InputError):
            studies.parse(shape)
    assert sign_study(STUDY, KEYS).digest == STUDY.envelope().digest


def test_an_mlp_is_priced_by_its_size() -> None:
    mlp = make_draft(model=Model(kind="mlp", hidden=8), training=Training(optimiser="adam"))
    study = resolve(mlp, CONTENT, DOCUMENT.digest)
    assert study.parameters == 12 * 8 + 8 + 1 + 11  # the linear path beside it
    assert study.round(1, CONTENT).dimension == study.parameters + 1
    assert study.tasks == ("train",) * 250 + ("evaluate",)

"""The same study in three modes: who adds the noise, how much there is of it, and who is refused what."""

from __future__ import annotations

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from flwr.app import Message
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.bundles import Tampered
from support.nodes import Rehearsal, assert_refused
from support.orders import copy_of, make_draft, small_world
from support.sums import RING, Cast, vectors
from support.treaties import PURPOSE, make_treaty
from support.treaties import make_draft as treaty_draft

from foedus import cli
from foedus.compliance.lineage import Store
from foedus.compliance.treaty import Overlap, PurposeTerms, Treaty
from foedus.compliance.treaty import draft as read_treaty
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import InputError, ProtocolError, Refused, VerificationError
from foedus.federation import limits, models
from foedus.federation import messages as m
from foedus.federation.fitting import resolve
from foedus.federation.limits import check_against
from foedus.federation.modes import MODES, Central, Distributed, Local, Mode
from foedus.federation.pricing import price
from foedus.federation.study import Draft, DraftPrivacy, Evaluation, Study
from foedus.federation.tasks import evaluate, statistics
from foedus.federation.verification import Report, verify
from foedus.privacy.accountant import ZCDP
from foedus.privacy.events import DistributedDiscreteGaussian
from foedus.privacy.ledger import Ledger
from foedus.privacy.noise import Keystream, discrete_gaussian
from foedus.privacy.secagg.client import Silo
from foedus.server.case import Case
from foedus.server.checkpoint import Checkpoint
from foedus.server.coordinator import conduct

Integers = npt.NDArray[np.int64]
BINS = 500  # 1000 samples of noise a sum
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def draft_of(mode: str, **changes: Any) -> Draft:
    return make_draft(privacy=DraftPrivacy.model_validate({"mode": mode, "epsilon": 4.0}), **changes)


# ── three runs ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Ran:
    """A study that was run: what each silo masked in its last round, and everything that anybody was sent."""

    world: World
    case: Case
    evidence: Path
    report: Report
    masked: dict[str, Integers]
    sent: list[Message]
    exact: dict[str, Integers]

    @property
    def sigma(self) -> int:
        return self.case.study.privacy.sigma_evaluate


@pytest.fixture(scope="module")
def permitting(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose treaty says ``unsafe: [central]``; nobody has run anything in it."""
    return small_world(tmp_path_factory.mktemp("permitting") / "world", draft_of("central"))


@pytest.fixture(scope="module")
def ran(permitting: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mode], Ran]:
    """The same draft in a mode, run once."""
    done: dict[Mode, Ran] = {}

    def run(mode: Mode) -> Ran:
        if mode not in done:
            done[mode] = _run(copy_of(permitting, tmp_path_factory.mktemp(mode.name) / "world"), mode)
        return done[mode]

    return run


def _run(world: World, mode: Mode) -> Ran:
    masked: dict[str, Integers] = {}
    sent: list[Message] = []
    real = Silo.mask

    def mask(silo: Silo, number: int, source: Any, *rest: Any, **options: Any) -> Any:
        masked[silo.name] = source.values.copy()
        return real(silo, number, source, *rest, **options)

    def heard(node: int, kind: str, message: Message) -> bool:
        sent.append(message)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Silo, "mask", mask)
        grid, case = prepare(world, draft_of(mode.name, evaluation=Evaluation(bins=BINS)), drop=heard)
        path = conduct(grid, case)
    weights, study = models_of(case), case.study
    exact = {}
    for silo, app in zip(world.homes, grid._apps.values(), strict=True):
        (run,) = app._runs.values()  # type: ignore[attr-defined]
        data = run.trainer.dataset("test", app.guard.cohort(run.permit).frame)  # type: ignore[attr-defined]
        learned = statistics.initial(study)  # nothing
        inputs = statistics.inputs(data.values, data.codes, study.features, learned)
        cells = evaluate.contributions(models.scores(study.model, weights, inputs), data.labels, study).sum(
            axis=0
        )
        exact[silo] = cells * 2**study.privacy.scale_bits_evaluate
    return Ran(world, case, path, verify(path), masked, sent, exact)


def models_of(case: Case) -> npt.NDArray[np.float64]:
    return np.array(json.loads((case.out / "model.json").read_bytes())["payload"]["weights"])


def is_noise_of(samples: Integers, sigma: float) -> bool:
    """Whether 1000 samples have mean 0 and variance σ²: six standard errors (p < 1e-8) either way."""
    error = 6 / math.sqrt(samples.size)
    variance = float((samples.astype(float) ** 2).mean()) / sigma**2
    return abs(variance - 1) < error * math.sqrt(2) and abs(float(samples.mean())) / sigma < error


def assert_noise_of(samples: Integers, sigma: float) -> None:
    assert is_noise_of(samples, sigma)
    assert not is_noise_of(samples, 0.7 * sigma) and not is_noise_of(samples, 1.3 * sigma)


@every_mode
def test_the_evidence_of_the_same_study_holds_in_each_mode(ran: Callable[[Mode], Ran], mode: Mode) -> None:
    run = ran(mode)
    study, report = run.case.study, run.report
    assert study.privacy.mode == mode == report.study.privacy.mode
    assert study.envelope().payload["privacy"]["mode"] == mode.name
    four = dict.fromkeys(range(1, study.rounds + 1), 4)
    assert report.epsilon == price(study, run.world.treaty, survivors=four) <= 4.0
    for home in run.world.homes.values():
        assert Ledger(home / "ledger.db").epsilon(study.privacy.delta) == pytest.approx(report.epsilon)
        costs = [s.event["run"]["facets"].get("foedus_dp_cost") for s in Store(home / "lineage.db").events()]
        assert {c["mode"] for c in costs if c} == {mode.name}
    for name in ("model.json", "metrics.json"):
        assert json.loads((run.case.out / name).read_bytes())["payload"]["mode"] == mode.name
    with zipfile.ZipFile(run.evidence) as bundle:
        lines = [json.loads(line) for line in bundle.read("lineage.jsonl").splitlines()]
    costs = [x["run"]["facets"]["foedus_dp_cost"] for x in lines if "foedus_dp_cost" in x["run"]["facets"]]
    assert {c["mode"] for c in costs} == {mode.name}
    exact = evaluate.metrics(np.sum(list(run.exact.values()), axis=0), study, 4)
    assert exact.auc > 0.75  # the model is worth something, whatever the noise of 1000 cells makes of its AUC


@every_mode
def test_the_released_sum_has_the_noise_its_mode_promises(ran: Callable[[Mode], Ran], mode: Mode) -> None:
    run = ran(mode)
    noise = run.case.sums[-1].total - np.sum(list(run.exact.values()), axis=0)
    assert_noise_of(noise, run.sigma * {"distributed": 2.0, "local": 2.0, "central": 1.0}[mode.name])


@every_mode
def test_what_a_silo_masks_has_the_noise_its_mode_promises(ran: Callable[[Mode], Ran], mode: Mode) -> None:
    run = ran(mode)
    noises = {silo: run.masked[silo] - run.exact[silo] for silo in run.exact}
    if mode == Central():
        assert not np.any(list(noises.values()))
        return
    for noise in noises.values():
        assert_noise_of(noise, run.sigma)
    for one, other in combinations(noises.values(), 2):  # drawn apart
        assert abs(float(np.mean(one.astype(float) * other))) / run.sigma**2 < 6 / math.sqrt(2 * BINS)


def test_in_local_mode_one_silos_vector_is_private_alone_and_in_the_others_it_is_not(
    ran: Callable[[Mode], Ran],
) -> None:
    """What the vectors of one silo cost whoever sees them without their masks, and nobody's noise but its own."""
    costs = {}
    for mode in MODES.values():
        run = ran(mode)
        study = run.case.study
        noise = run.masked["aster-music"] - run.exact["aster-music"]
        measured = float(noise.std()) / run.sigma
        alone = ZCDP()
        for number in range(1, study.rounds + 1):
            plan = study.round(number, run.world.treaty)
            if measured:
                alone.compose(
                    DistributedDiscreteGaussian(
                        plan.sensitivity, plan.sigma * measured, 1, plan.dimension
                    )  # m = 1 here
                )
        costs[mode.name] = alone.epsilon(study.privacy.delta) if measured else math.inf
    assert costs["local"] == pytest.approx(4.0, rel=0.15)  # σ from 1000 samples
    assert costs["distributed"] > 5.5 and costs["central"] == math.inf


# ── central: the server's word ───────────────────────────────────────────────────────────────────


def test_nobody_is_shown_an_exact_sum(ran: Callable[[Mode], Ran]) -> None:
    """Not on disk, not in a message, not in the evidence; the check value, which is of the exact sum, neither."""
    run = ran(Central())
    last = run.case.sums[-1]
    exact: Integers = np.sum(list(run.exact.values()), axis=0)
    places = {str(p): p.read_bytes() for p in run.world.root.rglob("*") if p.is_file()}
    with zipfile.ZipFile(run.evidence) as bundle:
        places |= {f"evidence/{name}": bundle.read(name) for name in bundle.namelist()}
    notices = [x for x in map(_notice, run.sent) if x is not None]
    places["sent"] = b"".join(data for _, data in notices)

    def seen(total: Integers) -> bool:
        forms = (
            total.astype("<i8").tobytes(),
            last.plan.ring.pack(last.plan.ring.wrap(total)),
            json.dumps(total.tolist(), separators=(",", ":")).encode(),
        )
        return any(form in content for form in forms for content in places.values())

    assert seen(last.total) and not seen(exact)
    assert len(notices) == 4 * last.round  # with the next round, and with the receipts
    assert {notice.check for notice, _ in notices} == {"0"} and last.check == 0


def _notice(message: Message) -> tuple[m.SumNotice, bytes] | None:
    kinds: dict[str, type[m.VectorRequest | m.ReceiptRequest]] = {
        "query.vector": m.VectorRequest,
        "query.receipt": m.ReceiptRequest,
    }
    kind = kinds.get(message.metadata.message_type)
    if kind is None:
        return None
    request, data = kind.read(message)
    return None if request.previous is None else (request.previous, data)


@every_mode
def test_the_error_told_of_the_auc_is_that_of_the_modes_noise(mode: Mode) -> None:
    """…for 16 bins of 20,000 customers, over 400 draws of the noise of four silos."""
    study = resolved(mode.name)
    rng, scale = np.random.default_rng(1), 2**study.privacy.scale_bits_evaluate
    cells = np.concatenate([rng.multinomial(10_000, np.full(16, 1 / 16)) for _ in range(2)]) * scale
    level = study.privacy.sigma_evaluate * {"distributed": 2.0, "local": 2.0, "central": 1.0}[mode.name]
    totals = cells + np.rint(rng.normal(0, level, (400, cells.size))).astype(np.int64)
    found = [evaluate.metrics(total, study, 4) for total in totals]
    spread = float(np.std([f.auc for f in found]))
    assert np.median([f.auc_error for f in found]) == pytest.approx(spread, rel=0.25)  # 7 standard errors


def test_the_verdict_says_that_the_servers_word_was_taken(ran: Callable[[Mode], Ran]) -> None:
    said = {mode.name: ran(mode).report.checks[9].detail for mode in MODES.values()}
    assert "taken on the server's word, checked by nobody" in said["central"]
    assert "no node can check it" in said["central"] and "everybody but the server" in said["central"]
    for name in ("distributed", "local"):
        assert "every sum checked by 4 or more" in said[name] and "CENTRAL" not in said[name]


def test_that_most_were_shown_the_very_sums_is_still_checked(
    ran: Callable[[Mode], Ran], tmp_path: Path
) -> None:
    run = ran(Central())
    bundle = Tampered(run.evidence, run.world)
    for place in range(3):
        bundle.receipt(place, lambda payload: payload.update(sums={}))
    digests = {
        r["payload"]["silo"]: Envelope.from_json(r).digest for r in json.loads(bundle.files["receipts.json"])
    }

    def relog(entries: list[Any]) -> None:
        for entry in entries:
            if entry["action"] == "receipt":
                entry["details"]["digest"] = digests[entry["details"]["silo"]]

    bundle.log(relog)
    with pytest.raises(VerificationError, match="1 of those who signed receipts shown a sum"):
        verify(bundle.write(tmp_path / "b.zip"))


def test_a_silo_takes_an_unchecked_sum_only_over_those_it_answered_for() -> None:
    cast = Cast(4, rounds=(1, 2))
    cast.set_up()
    made = vectors(cast.names)
    aggregator, silo = cast.aggregator, cast.silos["s1"]
    aggregator.open_round(1, 6, "train", RING)
    for name in cast.names[:3]:
        aggregator.add_vector(1, name, *cast.upload(1, name, made[name]))
    assert aggregator.survivors(1) == tuple(cast.names[:3])
    asked = aggregator.ask(1)
    for name in asked:
        aggregator.add_answer(1, name, *cast.silos[name].answer(1, asked, answering=asked))
    noisy = aggregator.total(1).total + 1
    with pytest.raises(ProtocolError, match="not been shown"):
        cast.upload(2, "s1", made["s1"])
    with pytest.raises(VerificationError, match="other silos"):
        silo.take_unchecked(1, cast.names, noisy)
    with pytest.raises(VerificationError, match="not 6 signed integers"):
        silo.take_unchecked(1, asked, noisy[:5])
    with pytest.raises(ProtocolError, match="was not in it"):
        silo.take_unchecked(2, asked, noisy)
    with pytest.raises(VerificationError, match="not the sum"):
        silo.verify_sum(1, asked, noisy, aggregator.total(1).check)
    silo.take_unchecked(1, asked, noisy)
    cast.upload(2, "s1", made["s1"])


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("when", ["before", "after", "logged"])
def test_a_killed_server_never_shows_one_sum_with_two_noises(
    permitting: World, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two noisings of one sum are two releases, and one was paid for."""
    shown: dict[int, set[bytes]] = defaultdict(set)
    drawn: list[int] = []

    def heard(node: int, kind: str, message: Message) -> bool:
        if (found := _notice(message)) is not None:
            shown[found[0].round].add(found[1][-size[found[0].round] :])
        return False

    def sampler(sigma: int, count: int, stream: Keystream) -> Integers:
        drawn.append(count)
        return discrete_gaussian(sigma, count, stream)

    world = copy_of(permitting, tmp_path / "world")
    grid, case = prepare(world, draft_of("central", rounds=1), drop=heard, sampler=sampler)
    plans = [case.study.round(n, world.treaty) for n in (1, 2, 3)]
    size = {plan.round: plan.ring.wire_bytes(plan.dimension) for plan in plans}
    keep, record = Checkpoint.keep_sum, Case.record

    def keep_sum(kept: Checkpoint, result: Any) -> None:
        if when == "before":
            raise Killed
        keep(kept, result)
        if when == "after":
            raise Killed

    def recorded(found: Case, action: str, *rest: Any, **options: Any) -> None:
        record(found, action, *rest, **options)
        if when == "logged" and action == "round.summed":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep_sum", keep_sum)
        patch.setattr(Case, "record", recorded)
        with pytest.raises(Killed):
            conduct(grid, case)
    assert not shown  # of a noise that was lost nobody had heard
    kept = case.kept.sums()
    again = [Case(**{f: getattr(case, f) for f in case.__dataclass_fields__} | {"batches": [], "sums": []})]
    verify(conduct(grid, again[0]))
    dimensions = [plan.dimension for plan in plans]
    assert drawn == (dimensions[:1] if when == "before" else []) + dimensions
    assert {number: len(totals) for number, totals in shown.items()} == {1: 1, 2: 1, 3: 1}
    for number, result in kept.items():
        assert (again[0].sums[number - 1].total == result.total).all()


# ── refused ──────────────────────────────────────────────────────────────────────────────────────

DOCUMENT, CONTENT, KEYS = make_treaty(4)
PERMITS = CONTENT.model_copy(update={"unsafe": ("central",)})


def resolved(mode: str, treaty: Treaty = PERMITS, digest: str = DOCUMENT.digest) -> Study:
    privacy = DraftPrivacy.model_validate({"mode": mode, "epsilon": 4.0})
    return resolve(treaty_draft(privacy=privacy), treaty, digest)


def test_central_without_unsafe_is_refused_by_whoever_looks() -> None:
    study = resolved("central")
    check_against(study, PERMITS, DOCUMENT.digest)
    signed = study.envelope().signed("alice", KEYS.scientists["alice"])
    for look in (
        lambda: resolved("central", CONTENT),
        lambda: check_against(study, CONTENT, DOCUMENT.digest),
        lambda: limits.verify(signed, CONTENT, DOCUMENT.digest),
        lambda: price(study, CONTENT),
        lambda: study.round(1, CONTENT),
    ):
        with pytest.raises(Refused) as found:
            look()
        assert found.value.code == "MODE_NOT_PERMITTED"
        assert "unsafe: [central]" in found.value.remedy
    for mode in ("distributed", "local"):
        check_against(resolved(mode, CONTENT), CONTENT, DOCUMENT.digest)


def with_mode(study: Study, mode: Mode, **changes: Any) -> Study:
    return study.model_copy(update={"privacy": study.privacy.model_copy(update={"mode": mode, **changes})})


def test_a_node_refuses_central_noise_its_treaty_does_not_permit(world: World, permitting: World) -> None:
    """The server and every approver agree to it; the node's own copy of the treaty says no."""
    play = Rehearsal(world, make_draft())
    mine = with_mode(play.case.study, Central())
    noisy = resolve(
        draft_of("central"), world.treaty.model_copy(update={"unsafe": ("central",)}), mine.treaty
    )
    for study in (mine, noisy):
        envelope = study.envelope().signed("dana", world.key("dana"))
        given = [world.approve(study, envelope.digest, a).to_json() for a in world.treaty.approvers]
        silo = next(iter(world.homes))
        said = play.ask(silo, play.keys_request(silo, study=envelope.to_json(), approvals=given))
        refusal = assert_refused(play, silo, said, "MODE_NOT_PERMITTED")
        assert "exact sums" in refusal.message


def test_the_command_line_warns_whoever_signs_shows_or_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    document, _, keys = make_treaty(4, unsafe=("central",))
    safe, unsafe, key = tmp_path / "safe.json", tmp_path / "unsafe.json", tmp_path / "shop-1.key"
    safe.write_bytes(DOCUMENT.dumps())
    unsafe.write_bytes(document.dumps())
    keys.parties["shop-1"].save(key)
    study = {**json.loads(treaty_draft().model_dump_json(exclude={"privacy"})), "privacy": {"epsilon": 4.0}}

    def said(*words: object, code: int = 0) -> str:
        try:
            cli.main([str(w) for w in words])
        except SystemExit as end:
            assert (end.code or 0) == code
        out, err = capsys.readouterr()
        return str(out + err)

    warning = "CENTRAL NOISE: the silos add none"
    assert warning in said("treaty", "show", unsafe) and "UNSAFE" not in said("treaty", "show", safe)
    signing = ("treaty", "sign", unsafe, "--party", "shop-1", "--key", key, "--out", tmp_path / "o.json")
    assert warning in said(*signing)
    for mode in MODES:
        study["privacy"]["mode"] = mode
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        told = said("study", "price", tmp_path / "study.yaml", "--treaty", unsafe)
        assert f"{mode} noise" in told and (warning in told) == (mode == "central")
    told = said("study", "price", tmp_path / "study.yaml", "--treaty", safe, code=3)
    assert "does not permit central noise" in told and "ε per customer" not in told


def test_a_mode_changed_after_signing_is_caught(ran: Callable[[Mode], Ran], tmp_path: Path) -> None:
    """By a node and an officer, whose check of the signature fails; and by the price, if the author does it."""
    for mode in MODES.values():
        run = ran(mode)
        for other in MODES.values():
            if other == mode:
                continue
            payload = json.loads(json.dumps(run.case.study_envelope.payload))
            payload["privacy"]["mode"] = other.name
            forged = Envelope("study", payload, run.case.study_envelope.signatures)
            with pytest.raises(VerificationError, match="signature does not hold"):
                limits.verify(forged, run.world.treaty, run.world.treaty_envelope.digest)
            bundle = Tampered(run.evidence, run.world)
            bundle.files["study.json"] = forged.dumps()
            with pytest.raises(VerificationError, match=r"check 3 \(study\)"):
                verify(bundle.write(tmp_path / "b.zip"))
            bundle = Tampered(run.evidence, run.world)
            bundle.release("metrics.json", lambda payload, name=other.name: payload.update(mode=name))
            with pytest.raises(VerificationError, match=rf"check 9 .*claims {other.name} noise"):
                verify(bundle.write(tmp_path / "b.zip"))
    for other in (Local(), Central()):
        with pytest.raises(Refused, match="noise costs") as found:
            check_against(with_mode(resolved("distributed"), other), PERMITS, DOCUMENT.digest)
        assert found.value.code == "NOISE_TOO_SMALL"


@pytest.mark.parametrize("unsafe", [["local"], ["central", "central"], "central", [None], True])
def test_a_treaty_lists_only_what_there_is_to_permit(unsafe: Any) -> None:
    content = json.loads(DOCUMENT.dumps())["payload"]
    assert read_treaty({**content, "unsafe": ["central"]}).unsafe == ("central",)
    del content["unsafe"]
    assert read_treaty(content).unsafe == ()  # a treaty from before there was such a field
    with pytest.raises(InputError, match="unsafe"):
        read_treaty({**content, "unsafe": unsafe})


# ── price ────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(MODES)),
    epsilon=st.floats(0.1, 20.0),
    n=st.integers(3, 12),
    c=st.integers(1, 4),
    overlap=st.integers(1, 12),
    cohort=st.sampled_from([100, 10_000, 200_000]),
)
def test_every_mode_keeps_to_its_epsilon_and_its_sum_to_the_modulus(
    name: str, epsilon: float, n: int, c: int, overlap: int, cohort: int
) -> None:
    assume(c <= n - 2)
    partners = Overlap(max_partners_per_customer=min(overlap, n), attestation="attested")
    treaty = _treaty(n, c).model_copy(update={"overlap": partners, "max_cohort": cohort})
    privacy = DraftPrivacy.model_validate({"mode": name, "epsilon": epsilon})
    try:
        study = resolve(treaty_draft(privacy=privacy), treaty, "0" * 64)
    except InputError as error:
        assert "does not fit the modulus" in error.message
        return
    cost = price(study, treaty)
    assert 0.97 * epsilon <= cost <= epsilon
    everybody = price(study, treaty, survivors=dict.fromkeys(range(1, study.rounds + 1), n))
    if name == "distributed":
        assert everybody <= cost
    else:
        assert everybody == cost  # no silo's noise is counted on, so none is missed
    noises = {"distributed": math.sqrt(n), "local": math.sqrt(n), "central": 1.0}[name]
    for number in range(1, study.rounds + 1):
        plan = study.round(number, treaty)
        tail = math.sqrt(2 * math.log(2 * plan.dimension * 2**40))  # passed with probability below 2^-40
        rows = plan.bound - (0 if name == "central" else tail * plan.sigma)
        assert rows > 0 and n * (rows - 1) + tail * noises * plan.sigma < 2 ** (plan.bits - 1)


_TREATIES: dict[tuple[int, int], Treaty] = {}


def _treaty(n: int, c: int) -> Treaty:
    if (n, c) not in _TREATIES:
        terms = (PurposeTerms(purpose=PURPOSE, epsilon=100.0, delta=1e-5),)
        _TREATIES[n, c] = make_treaty(n, colluders=c, purposes=terms, unsafe=("central",))[1]
    return _TREATIES[n, c]


@settings(max_examples=50, deadline=None)
@given(
    delta=st.floats(1.0, 1e6),
    sigma=st.integers(4, 10**6),
    m=st.integers(1, 12),
    survivors=st.integers(9, 12),
)
def test_local_costs_what_m_silos_cost_one_by_one(delta: float, sigma: int, m: int, survivors: int) -> None:
    """…each alone with its noise and its Δ; the person may be a customer of all m."""
    treaty = _treaty(12, 3).model_copy(
        update={"overlap": Overlap(max_partners_per_customer=m, attestation="x")}
    )
    mode = Local()
    whole = ZCDP([mode.event(mode.sensitivity(delta, m), sigma, 7, survivors, treaty)])
    apart = ZCDP()
    apart.compose(DistributedDiscreteGaussian(delta, float(sigma), 1, 7), m)
    assert whole.rho == pytest.approx(apart.rho, rel=1e-12)
    together = Distributed()
    shared = ZCDP([together.event(together.sensitivity(delta, m), sigma, 7, survivors, treaty)])
    exact = (m * delta) ** 2 / (2 * sigma**2 * (survivors - 3))
    assert shared.rho == pytest.approx(exact, rel=1e-6, abs=1e-12) or sigma < 10  # τ counts at small σ
    assert shared.rho >= exact * (1 - 1e-12)


def test_what_the_modes_ask_of_the_same_study() -> None:
    """σ per noise: Δ/√(2ρ(t−c)), Δ/√(2ρ), Δ/√(2ρ); four silos, one colluder, t = 3."""
    terms = {name: resolved(name).privacy for name in MODES}
    sigmas = {name: own.sigma_train * 2.0**-own.scale_bits_train for name, own in terms.items()}
    assert sigmas["local"] == pytest.approx(math.sqrt(2) * sigmas["distributed"], rel=0.02)
    assert sigmas["central"] == pytest.approx(sigmas["local"], rel=0.02)

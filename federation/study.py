"""The study: one signed plan, from purpose to release rule. Data, never code.

A scientist writes a *draft* (YAML, most of it defaulted); `resolve` fits it to a treaty by pricing it:
the fixed-point scale and the noise that make every round cost what the draft's ε allows. The *study*
is what results, signed by its author. Nodes don't trust that arithmetic, they redo it (`price`).
"""

from __future__ import annotations

import math
import secrets
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ..compliance.treaty import Document, Name, Treaty, explain
from ..documents import Envelope, read_text
from ..errors import InputError, Refused
from ..privacy.accountant import ZCDP, epsilon_to_rho
from ..privacy.secagg.rings import WIDTHS, Ring, fitting, noise_tail
from .modes import Distributed, Mode, ModeField
from .rounds import RoundPlan, Shape, Task, curvature_shape, evaluate_shape, train_shape
from .schema import RFM, Feature, Label, Split, Table

KIND = "study"
EXTRA_NOISE = 0.01
"""How much more noise a narrower modulus may ask for."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(Document):
    kind: Literal["logistic_regression", "mlp"] = "logistic_regression"
    hidden: int = Field(default=16, ge=1, le=1024, description="width of the MLP's one hidden layer")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the initial weights")


class Training(Document):
    """Full-batch training; every round is one secure sum of clipped gradients.

    `fixed_hessian` (logistic regression only) first spends one more round, and `curvature_share` of ρ, on
    the inputs' second moments, and then takes Newton-like steps by Böhning and Lindsay's bound of the
    Hessian (1988): it converges for every `learning_rate` below 2, with nothing to tune. `adam` (Kingma
    and Ba 2015) serves any model. Left out, the learning rate is 1.5 for the first and 0.1 for the second.
    """

    optimiser: Literal["fixed_hessian", "adam"] = "fixed_hessian"
    rounds: int = Field(default=8, ge=1, le=500)
    learning_rate: float | None = Field(default=None, gt=0, le=1000)
    curvature_share: float = Field(default=0.1, gt=0, lt=1)
    l2: float = Field(default=1e-4, ge=0, le=1)
    clip: float = Field(default=1.5, gt=0, le=1000, description="L2 bound of one customer's gradient")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.optimiser == "fixed_hessian" and self.rate >= 2:
            raise ValueError("fixed_hessian needs a learning_rate below 2")
        return self

    @property
    def rate(self) -> float:
        """The learning rate, or the optimiser's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.5 if self.optimiser == "fixed_hessian" else 0.1


class Evaluation(Document):
    """A histogram of scores for each label: one secure sum of 2 × bins numbers.

    Scores are logits; those beyond `lower` and `upper` count in the outermost bins. Fewer bins mean less
    noise in all, but a coarser AUC.
    """

    bins: int = Field(default=16, ge=4, le=1000)
    lower: float = Field(default=-3.0, ge=-50, le=50)
    upper: float = Field(default=3.0, ge=-50, le=50)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower < self.upper:
            raise ValueError("bounds must satisfy lower < upper")
        return self


class Privacy(Document):
    """What one customer pays at most, and the integers that achieve it.

    `sigma_*` are standard deviations of one noise, that of a silo or of the server (`mode`), `scale_bits_*` the fixed-point scale
    (value × 2^bits). The modulus of each sum follows from them and the treaty: the narrowest that holds it.
    """

    mode: ModeField = Distributed()
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1e-3)
    evaluation_share: float = Field(default=0.25, gt=0, lt=1, description="part of ρ spent on evaluation")
    scale_bits_curvature: int = Field(ge=0, le=30)
    scale_bits_train: int = Field(ge=0, le=30)
    scale_bits_evaluate: int = Field(ge=0, le=30)
    sigma_curvature: int = Field(ge=4, lt=2**30)
    sigma_train: int = Field(ge=4, lt=2**30)
    sigma_evaluate: int = Field(ge=4, lt=2**30)


class Release(Document):
    """What may be shown when the study has run: both are post-processing of noisy sums."""

    model: bool = True
    metrics: bool = True


class _Plan(Document):
    title: str = Field(min_length=1, max_length=200)
    author: Name
    purpose: str
    task: Literal["train"] = "train"
    table: Table = Table()
    split: Split = Split()
    label: Label
    features: tuple[Feature, ...] = Field(default=RFM, min_length=1, max_length=64)
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    trip_seconds: float = Field(default=20.0, ge=0.05, le=3600, description="deadline of one trip")

    @field_validator("features", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _optimiser_fits(self) -> Self:
        if self.training.optimiser == "fixed_hessian" and self.model.kind != "logistic_regression":
            raise ValueError(
                "training.optimiser: fixed_hessian is for logistic_regression; say adam for an mlp"
            )
        return self


class DraftPrivacy(Document):
    mode: ModeField = Distributed()
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(default=1e-5, gt=0, lt=1e-3)
    evaluation_share: float = Field(default=0.25, gt=0, lt=1)


class Draft(_Plan):
    """What a scientist writes; see `examples/churn.yaml`."""

    privacy: DraftPrivacy


class Study(_Plan):
    """A draft fitted to a treaty; its envelope is signed by the author."""

    treaty: Digest
    created: str
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    privacy: Privacy

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What each secure sum is for, in order: perhaps curvature, the training rounds, evaluation."""
        first: list[Task] = ["curvature"] if self.training.optimiser == "fixed_hessian" else []
        middle: list[Task] = ["train"] * self.training.rounds
        return (*first, *middle, "evaluate")

    @property
    def rounds(self) -> int:
        """Secure sums in all."""
        return len(self.tasks)

    @property
    def parameters(self) -> int:
        """Number of model weights d."""
        return parameters(self.model, len(self.features))

    def round(self, number: int, treaty: Treaty) -> RoundPlan:
        """The plan of round 1 … `rounds`."""
        if not 1 <= number <= self.rounds:
            raise Refused("UNKNOWN_ROUND", f"the study has rounds 1 to {self.rounds}, not {number}")
        task, own = self.tasks[number - 1], self.privacy
        mode, sized = own.mode, treaty.overlap.max_partners_per_customer
        mode.require(treaty)
        scale_bits, sigma = {
            "curvature": (own.scale_bits_curvature, own.sigma_curvature),
            "train": (own.scale_bits_train, own.sigma_train),
            "evaluate": (own.scale_bits_evaluate, own.sigma_evaluate),
        }[task]
        shape = _shape(self, task)
        return RoundPlan(
            round=number,
            task=task,
            mode=mode,
            dimension=shape.dimension,
            scale_bits=scale_bits,
            sigma=sigma,
            sensitivity=mode.sensitivity(shape.sensitivity(scale_bits), sized),
            bits=_ring(treaty, shape, mode, scale_bits, sigma).bits,
            bound=math.ceil(
                _rows(treaty, shape, scale_bits) + noise_tail(shape.dimension) * mode.silo_sigma(sigma)
            ),
        )

    def envelope(self) -> Envelope:
        return Envelope(KIND, self.model_dump(mode="json"))


def parameters(model: Model, features: int) -> int:
    """Number of weights of a model on `features` inputs."""
    if model.kind == "logistic_regression":
        return features + 1
    return (features + 1) * model.hidden + model.hidden + 1


def _shape(plan: _Plan, task: Task) -> Shape:
    if task == "curvature":
        return curvature_shape(len(plan.features) + 1)
    if task == "train":
        return train_shape(parameters(plan.model, len(plan.features)), plan.training.clip)
    return evaluate_shape(plan.evaluation.bins)


def price(study: Study, treaty: Treaty, *, survivors: dict[int, int] | None = None) -> float:
    """ε per customer of the whole study at its δ.

    Args:
        survivors: round → how many silos' vectors were summed; the threshold where a round is absent,
            which is the most a round can cost.
    """
    accountant = ZCDP()
    for number in range(1, study.rounds + 1):
        present = (survivors or {}).get(number, treaty.threshold)
        accountant.compose(study.round(number, treaty).cost(present, treaty))
    return accountant.epsilon(study.privacy.delta)


def _rows(treaty: Treaty, shape: Shape, scale_bits: int) -> float:
    """The largest magnitude that one silo's customers can add up to in a coordinate."""
    return treaty.max_cohort * (shape.entry * 2.0**scale_bits + shape.rounded)


def _ring(treaty: Treaty, shape: Shape, mode: Mode, scale_bits: int, sigma: int) -> Ring:
    """Where the sum over all silos overflows with probability below 2^-40: rows at their largest, and noise.

    Raises:
        InputError: nowhere.
    """
    n = len(treaty.parties)
    return fitting(n * _rows(treaty, shape, scale_bits), mode.spread(n) * sigma, shape.dimension)


def _noise(treaty: Treaty, shape: Shape, mode: Mode, rho: float, finest: int) -> tuple[int, int]:
    """A fixed-point scale (bits), and the σ of a noise that costs `rho` at it.

    The finest scale in the narrowest modulus in which whole numbers ask for at most 1 % more noise than
    real ones would; if there is none, the finest scale that fits at all.
    """
    m = treaty.overlap.max_partners_per_customer
    least = math.sqrt(2 * rho * mode.shares(treaty.threshold, treaty))
    for width in WIDTHS:
        for bits in range(finest, 1, -1):
            # A hair above Δ/√(2ρ·shares), so that τ (< 1e-30 at these σ) can't push the price over.
            # Never under 4, where τ is no longer negligible (ε in the dozens asks for so little noise).
            sigma = max(4, math.ceil(mode.sensitivity(shape.sensitivity(bits), m) / least * (1 + 1e-9)) + 1)
            try:
                fits = _ring(treaty, shape, mode, bits, sigma).bits <= width
            except InputError:
                continue
            if fits:
                real = mode.sensitivity(shape.bound * 2.0**bits, m) / least
                if sigma <= (1 + EXTRA_NOISE) * real or width == WIDTHS[-1]:
                    return bits, sigma
                break  # a coarser scale asks for more
    raise InputError(
        f"the sum over {len(treaty.parties)} silos of up to {treaty.max_cohort} customers does not fit the modulus"
        f" 2^{WIDTHS[-1]}",
        remedy="lower training.clip, or max_cohort in the treaty",
    )


def resolve(draft: Draft, treaty: Treaty, treaty_digest: str, *, now: datetime | None = None) -> Study:
    """Fit a draft to a treaty: choose scale and noise so that the study costs at most the draft's ε.

    Raises:
        InputError: the sum would not fit the modulus. Refused: see `check_against`.
    """
    mode = draft.privacy.mode
    mode.require(treaty)
    rho = epsilon_to_rho(draft.privacy.epsilon, draft.privacy.delta)
    rest = 1 - draft.privacy.evaluation_share
    curvature = draft.training.curvature_share if draft.training.optimiser == "fixed_hessian" else 0.0
    parts: list[tuple[Task, float, int]] = [
        ("curvature", rest * (curvature or 1.0), 20),
        ("train", rest * (1 - curvature) / draft.training.rounds, 20),
        ("evaluate", draft.privacy.evaluation_share, 8),
    ]
    noise: dict[str, Any] = {}
    for task, part, finest in parts:
        noise[f"scale_bits_{task}"], noise[f"sigma_{task}"] = _noise(
            treaty, _shape(draft, task), mode, rho * part, finest
        )
    plan: dict[str, Any] = {name: getattr(draft, name) for name in _Plan.model_fields}
    study = Study(
        **plan,
        treaty=treaty_digest,
        created=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        nonce=secrets.token_hex(16),
        privacy=Privacy(
            mode=mode,
            epsilon=draft.privacy.epsilon,
            delta=draft.privacy.delta,
            evaluation_share=draft.privacy.evaluation_share,
            **noise,
        ),
    )
    check_against(study, treaty, treaty_digest)
    return study


def check_against(study: Study, treaty: Treaty, treaty_digest: str) -> None:
    """Raise unless the treaty permits this study; every node and the server run it.

    Raises:
        Refused: another treaty, unknown author, purpose not permitted, ε over the cap or over what
            the study itself declares, a mode not permitted, noise too small, or a sum that could wrap.
    """
    if study.treaty != treaty_digest:
        raise Refused(
            "OTHER_TREATY", f"the study is under treaty {study.treaty[:12]}, not {treaty_digest[:12]}"
        )
    treaty.scientist(study.author)
    study.privacy.mode.require(treaty)
    terms = treaty.terms(study.purpose)
    if study.privacy.delta > terms.delta:
        raise Refused("DELTA_OVER_CAP", f"δ = {study.privacy.delta:g} is over the treaty's {terms.delta:g}")
    if study.privacy.epsilon > terms.epsilon:
        raise Refused(
            "EPSILON_OVER_CAP",
            f"ε = {study.privacy.epsilon:g} is over the treaty's {terms.epsilon:g} for {study.purpose}",
            remedy="ask for less: a smaller epsilon means more noise",
        )
    try:
        cost = price(study, treaty)
    except InputError as error:
        raise Refused("SUM_COULD_WRAP", error.message, remedy=error.remedy) from error
    if not cost <= study.privacy.epsilon:
        raise Refused(
            "NOISE_TOO_SMALL",
            f"the study's noise costs ε = {cost:.4f}, more than the {study.privacy.epsilon:g} it declares",
        )


def parse(envelope: Envelope) -> Study:
    """The study in an envelope, its signature not yet checked."""
    if envelope.kind != KIND:
        raise InputError(f"a study was expected, this is a {envelope.kind!r}")
    try:
        return Study.model_validate(envelope.payload)
    except ValidationError as error:
        raise explain(error, "study") from error


def verify(envelope: Envelope, treaty: Treaty, treaty_digest: str) -> Study:
    """The study in an envelope: signed by its author and permitted by the treaty.

    Raises:
        InputError: malformed. VerificationError: bad signature. Refused: see `check_against`.
    """
    study = parse(envelope)
    envelope.check(KIND, study.author, treaty.scientist(study.author).signing_key)
    check_against(study, treaty, treaty_digest)
    return study


def load_draft(path: Path) -> Draft:
    """Read a draft from a YAML file.

    Raises:
        InputError: unreadable, not YAML, or a field that is unknown or out of range.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    return draft_from(content, str(path))


def draft_from(content: Any, what: str = "study draft") -> Draft:
    """A draft from parsed YAML or JSON."""
    try:
        return Draft.model_validate(_plain(content))
    except ValidationError as error:
        raise explain(error, what) from error


def _plain(value: Any) -> Any:
    """YAML's own dates as text, and whole numbers as they are."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.isoformat() if isinstance(value, date) else value

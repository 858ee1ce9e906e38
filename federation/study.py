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
from ..privacy.accountant import PLD, epsilon_to_mu
from ..privacy.secagg.rings import WIDTHS, Ring, fitting, noise_tail
from .modes import Distributed, Mode, ModeField
from .rounds import (
    RoundPlan,
    Shape,
    Task,
    curvature_shape,
    evaluate_shape,
    statistics_shape,
    train_shape,
    validate_shape,
)
from .schema import RFM, TAGS, AnyFeature, ColumnLabel, Feature, Label, Split, Table, learned, width

KIND = "study"
EXTRA_NOISE = 0.01
"""How much more noise a narrower modulus may ask for."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(Document):
    kind: Literal["logistic_regression", "mlp"] = "logistic_regression"
    hidden: int = Field(default=16, ge=1, le=1024, description="width of the MLP's one hidden layer")
    skip: bool = Field(default=True, description="whether the MLP adds a linear function of its inputs")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the initial weights")


class Scaling(Document):
    """How features without public bounds are scaled: by quantiles of one private sum of histograms.

    Every such feature has a histogram over the same public grid, `cells` of equal width in asinh(x / `unit`)
    from −`limit` to `limit`; what lies beyond falls in the outer cells. With q₀ and q₁ its `tail` and 1 − `tail`
    quantiles, the bounds are q₀ − `margin`·(q₁ − q₀) and q₁ + `margin`·(q₁ − q₀). `share` is the part of μ² it
    spends.
    """

    share: float = Field(default=0.1, gt=0, lt=1)
    cells: int = Field(default=128, ge=8, le=4096)
    unit: float = Field(default=1.0, ge=1e-9, le=1e6)
    limit: float = Field(default=1e6, ge=1e-9, le=1e12)
    tail: float = Field(default=0.03, ge=1e-4, le=0.4)
    margin: float = Field(default=0.25, ge=0, le=10)


class EarlyStopping(Document):
    """Stop training when the private loss of held-out customers has not fallen for `patience` looks.

    A look every `every` rounds is one secure sum of two numbers over the `part` of the training customers
    that is held out by hash. `share` is the part of μ² all looks spend; rounds never run are never paid for.
    The model released is the one whose look was best.
    """

    every: int = Field(default=5, ge=1, le=500)
    patience: int = Field(default=2, ge=1, le=100)
    part: float = Field(default=0.1, gt=0, lt=0.5)
    share: float = Field(default=0.05, gt=0, lt=1)


class Training(Document):
    """Full-batch training; every round is one secure sum of clipped gradients.

    `fixed_hessian` (logistic regression only) first spends one more round, and `curvature_share` of ρ, on
    the inputs' second moments, and then takes Newton-like steps by Böhning and Lindsay's bound of the
    Hessian (1988): it converges for every `learning_rate` below 2, with nothing to tune. `adam` (Kingma
    and Ba 2015) serves any model. Its rate falls along a cosine to a tenth. Left out, the learning rate is 1 for the first and 0.1 for the second.
    """

    optimiser: Literal["fixed_hessian", "adam"] = "fixed_hessian"
    rounds: int = Field(ge=1, le=500, description="5 by default, 120 for adam")
    learning_rate: float | None = Field(default=None, gt=0, le=1000)
    curvature_share: float = Field(default=0.25, gt=0, lt=1)
    curvature_clip: float = Field(
        default=0.5, gt=0, le=1, description="L2 bound of (inputs, 1), in √(inputs + 1)"
    )
    l2: float = Field(ge=0, le=1, description="1e-4 by default, 1e-3 for adam")
    clip: float = Field(
        default=0.3, gt=0, le=1000, description="L2 bound of one customer's gradient, in √(inputs + 1)"
    )
    class_weight: Literal["balanced"] | None = Field(
        default=None, description="balanced: both labels weigh the same in all; their counts are paid for"
    )
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        rounds, l2 = (120, 1e-3) if value.get("optimiser") == "adam" else (5, 1e-4)
        return {"rounds": rounds, "l2": l2, **value}

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
        return 1.0 if self.optimiser == "fixed_hessian" else 0.1


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
    evaluation_share: float = Field(default=0.1, gt=0, lt=1, description="part of μ² spent on evaluation")
    scale_bits_statistics: int = Field(ge=0, le=30)
    scale_bits_curvature: int = Field(ge=0, le=30)
    scale_bits_train: int = Field(ge=0, le=30)
    scale_bits_validate: int = Field(ge=0, le=30)
    scale_bits_evaluate: int = Field(ge=0, le=30)
    sigma_statistics: int = Field(ge=4, lt=2**30)
    sigma_curvature: int = Field(ge=4, lt=2**30)
    sigma_train: int = Field(ge=4, lt=2**30)
    sigma_validate: int = Field(ge=4, lt=2**30)
    sigma_evaluate: int = Field(ge=4, lt=2**30)


class Release(Document):
    """What may be shown when the study has run: both are post-processing of noisy sums."""

    model: bool = True
    metrics: bool = True


class Plan(Document):
    title: str = Field(min_length=1, max_length=200)
    author: Name
    purpose: str
    task: Literal["train"] = "train"
    table: Table = Table()
    split: Split = Split()
    label: Label
    features: tuple[AnyFeature, ...] = Field(default=RFM, min_length=1, max_length=64)
    scaling: Scaling = Scaling()
    model: Model = Model()
    training: Training = Training.model_validate({})
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    trip_seconds: float = Field(default=20.0, ge=0.05, le=3600, description="deadline of one trip")

    @field_validator("features", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _features_fit(self) -> Self:
        of_table = isinstance(self.label, ColumnLabel)
        for feature in self.features:
            if isinstance(feature, Feature) == of_table:
                raise ValueError(
                    "features: a label of kind churn goes with quantities of the order log (name: …), "
                    "one of kind column with columns (column: …)"
                )
        if of_table and self.label.column in {getattr(f, "column", "") for f in self.features}:  # type: ignore[union-attr]
            raise ValueError("features: the label's own column can't be a feature")
        return self

    @property
    def parameters(self) -> int:
        """Number of model weights d."""
        return parameters(self.model, self.inputs)

    @property
    def inputs(self) -> int:
        """Number of inputs of the model."""
        return width(self.features)

    @property
    def clip(self) -> float:
        """L2 bound of one customer's gradient."""
        return self.training.clip * math.sqrt(self.inputs + 1)

    @property
    def curvature_clip(self) -> float:
        """L2 bound of a row (inputs, 1) whose products are summed: what the study says, or what inputs can reach."""
        return min(
            self.training.curvature_clip * math.sqrt(self.inputs + 1), math.sqrt(len(self.features) + 1)
        )

    @property
    def sent(self) -> int:
        """How many numbers a node is sent before each round: weights and statistics."""
        return self.parameters + self.learned

    @property
    def counts_labels(self) -> bool:
        """Whether training needs to know how many customers bear each label."""
        return self.training.class_weight == "balanced"

    @property
    def learned(self) -> int:
        """Numbers the statistics at the study's start give every node: two bounds a scale, weights of labels."""
        return 2 * learned(self.features) + 2 * self.counts_labels

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What each secure sum is for, in order: perhaps statistics and curvature, training rounds with looks, evaluation."""
        tasks: list[Task] = []
        if self.learned:
            tasks.append("statistics")
        if self.training.optimiser == "fixed_hessian":
            tasks.append("curvature")
        stopping = self.training.early_stopping
        for number in range(1, self.training.rounds + 1):
            tasks.append("train")
            if stopping is not None and (number % stopping.every == 0 or number == self.training.rounds):
                tasks.append("validate")
        return (*tasks, "evaluate")

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
    evaluation_share: float = Field(default=0.1, gt=0, lt=1)


class Draft(Plan):
    """What a scientist writes; see `examples/churn.yaml`."""

    privacy: DraftPrivacy


class Study(Plan):
    """A draft fitted to a treaty; its envelope is signed by the author."""

    treaty: Digest
    created: str
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    privacy: Privacy

    @property
    def rounds(self) -> int:
        """Secure sums in all."""
        return len(self.tasks)

    def round(self, number: int, treaty: Treaty) -> RoundPlan:
        """The plan of round 1 … `rounds`."""
        if not 1 <= number <= self.rounds:
            raise Refused("UNKNOWN_ROUND", f"the study has rounds 1 to {self.rounds}, not {number}")
        task, own = self.tasks[number - 1], self.privacy
        mode, sized = own.mode, treaty.overlap.max_partners_per_customer
        mode.require(treaty)
        scale_bits, sigma = {
            "statistics": (own.scale_bits_statistics, own.sigma_statistics),
            "curvature": (own.scale_bits_curvature, own.sigma_curvature),
            "train": (own.scale_bits_train, own.sigma_train),
            "validate": (own.scale_bits_validate, own.sigma_validate),
            "evaluate": (own.scale_bits_evaluate, own.sigma_evaluate),
        }[task]
        shape = shape_of(self, task)
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


def parameters(model: Model, inputs: int) -> int:
    """Number of weights of a model on so many inputs."""
    if model.kind == "logistic_regression":
        return inputs + 1
    return (inputs + 1) * model.hidden + model.hidden + 1 + (inputs if model.skip else 0)


def shape_of(plan: Plan, task: Task) -> Shape:
    """One customer's row in a round of this task."""
    if task == "statistics":
        return statistics_shape(learned(plan.features), plan.scaling.cells)
    if task == "curvature":
        return curvature_shape(plan.inputs + 1, plan.curvature_clip)
    if task == "train":
        return train_shape(plan.parameters, plan.clip)
    if task == "validate":
        return validate_shape()
    return evaluate_shape(plan.evaluation.bins)


def price(study: Study, treaty: Treaty, *, survivors: dict[int, int] | None = None) -> float:
    """ε per customer of the whole study at its δ.

    Args:
        survivors: round → how many silos' vectors were summed, of the rounds there were. Without it: every
            round of the study, over the threshold of silos, which is the most it can cost.
    """
    if survivors is None:
        survivors = dict.fromkeys(range(1, study.rounds + 1), treaty.threshold)
    accountant = PLD()
    for number, present in survivors.items():
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


def _noise(treaty: Treaty, shape: Shape, mode: Mode, mu2: float, finest: int) -> tuple[int, int]:
    """A fixed-point scale (bits), and the σ of a noise whose mu² is at most `mu2` at it.

    The finest scale in the narrowest modulus in which whole numbers ask for at most 1 % more noise than
    real ones would; if there is none, the finest scale that fits at all.
    """
    m = treaty.overlap.max_partners_per_customer
    least = math.sqrt(mu2 * mode.shares(treaty.threshold, treaty))
    for modulus in WIDTHS:
        for bits in range(finest, 1, -1):
            # Never under 4: below, the sum of shares is not as good as one discrete Gaussian.
            sensitivity = mode.sensitivity(shape.sensitivity(bits), m)
            sigma = max(4, math.ceil(sensitivity / least))
            while mode.event(sensitivity, sigma, shape.dimension, treaty.threshold, treaty).mu ** 2 > mu2:
                sigma += 1  # whole numbers ask for a little more than real ones
            try:
                fits = _ring(treaty, shape, mode, bits, sigma).bits <= modulus
            except InputError:
                continue
            if fits:
                real = mode.sensitivity(shape.bound * 2.0**bits, m) / least
                if sigma <= (1 + EXTRA_NOISE) * real or modulus == WIDTHS[-1]:
                    return bits, sigma
                break  # a coarser scale asks for more
    raise InputError(
        f"the sum over {len(treaty.parties)} silos of up to {treaty.max_cohort} customers does not fit the modulus"
        f" 2^{WIDTHS[-1]}",
        remedy="lower training.clip, or max_cohort in the treaty",
    )


def shares(draft: Draft) -> dict[Task, float]:
    """The part of μ² that one round of each task spends; a task the study has no round of counts as if it had all.

    Evaluation, statistics and looks take what the draft says of the whole, curvature its share of the rest,
    the training rounds what is left, in equal parts.

    Raises:
        InputError: nothing is left to train with.
    """
    training, tasks = draft.training, draft.tasks
    evaluation = draft.privacy.evaluation_share
    statistics = draft.scaling.share if "statistics" in tasks else 0.0
    stopping = training.early_stopping
    looks = stopping.share if stopping is not None else 0.0
    rest = 1 - evaluation - statistics - looks
    if rest <= 0:
        raise InputError(
            "the shares of μ² for evaluation, scaling and early stopping leave nothing to train with"
        )
    curvature = training.curvature_share if "curvature" in tasks else 0.0
    return {
        "statistics": statistics or 1.0,
        "curvature": rest * curvature or 1.0,
        "train": rest * (1 - curvature) / training.rounds,
        "validate": looks / max(tasks.count("validate"), 1) or 1.0,
        "evaluate": evaluation,
    }


def resolve(draft: Draft, treaty: Treaty, treaty_digest: str, *, now: datetime | None = None) -> Study:
    """Fit a draft to a treaty: choose scale and noise so that the study costs at most the draft's ε.

    Raises:
        InputError: the sum would not fit the modulus. Refused: see `check_against`.
    """
    mode = draft.privacy.mode
    mode.require(treaty)
    mu2 = epsilon_to_mu(draft.privacy.epsilon, draft.privacy.delta) ** 2
    for margin in (
        0.0,
        1e-9,
        1e-6,
        1e-3,
        1e-2,
    ):  # for the comparison's slack, which only many rounds make felt
        study = _fitted(draft, treaty, treaty_digest, mu2 * (1 - margin), now or datetime.now(UTC))
        if price(study, treaty) <= study.privacy.epsilon:
            break
    check_against(study, treaty, treaty_digest)
    return study


def _fitted(draft: Draft, treaty: Treaty, treaty_digest: str, mu2: float, now: datetime) -> Study:
    """The draft with the noise that its shares of `mu2` ask for."""
    mode, noise = draft.privacy.mode, {}
    for task, part in shares(draft).items():
        finest = 20 if task in ("curvature", "train") else 8
        noise[f"scale_bits_{task}"], noise[f"sigma_{task}"] = _noise(
            treaty, shape_of(draft, task), mode, mu2 * part, finest
        )
    plan: dict[str, Any] = {name: getattr(draft, name) for name in Plan.model_fields}
    return Study(
        **plan,
        treaty=treaty_digest,
        created=now.isoformat(timespec="seconds"),
        nonce=secrets.token_hex(16),
        privacy=Privacy(
            mode=mode,
            epsilon=draft.privacy.epsilon,
            delta=draft.privacy.delta,
            evaluation_share=draft.privacy.evaluation_share,
            **noise,
        ),
    )


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
        raise explain(error, "study", tags=TAGS) from error


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
        raise explain(error, what, tags=TAGS) from error


def _plain(value: Any) -> Any:
    """YAML's own dates as text, and whole numbers as they are."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.isoformat() if isinstance(value, date) else value

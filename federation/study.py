"""The study: one signed plan, from purpose to release rule. Data, never code.

A scientist writes a *draft* (YAML, most of it defaulted). Fitted to a treaty (`fitting`) it is a *study*, which
its author signs. What one costs: `pricing`; whether a treaty permits it: `limits`.
"""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ..compliance.treaty import Document, Name, Treaty, explain
from ..documents import Envelope, read_text
from ..errors import InputError, Refused
from .counting import TASK, CountDraft, CountPlan, CountStudy, count_draft
from .modes import Distributed, ModeField
from .rounds import (
    RoundPlan,
    Shape,
    Task,
    curvature_shape,
    evaluate_shape,
    plan_round,
    statistics_shape,
    train_shape,
    validate_shape,
)
from .schema import RFM, TAGS, AnyFeature, ColumnLabel, Feature, Label, Split, Table, learned, width

KIND = "study"
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
    and Ba 2015) serves any model. Its rate falls along a cosine to a tenth. Left out, the learning rate is 1 for
    the first and 0.1 for the second.
    """

    optimiser: Literal["fixed_hessian", "adam"] = "fixed_hessian"
    rounds: int = Field(ge=1, le=500, description="5 by default, 250 for adam")
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
        rounds, l2 = (250, 1e-3) if value.get("optimiser") == "adam" else (5, 1e-4)
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
    """What a scientist writes; see `examples/churn.yaml`.

    Where the noise is loud, Adam does better with a smaller clip: left out, it is a tenth of ε, from 0.05 to 0.3.
    """

    privacy: DraftPrivacy

    @model_validator(mode="after")
    def _clipped(self) -> Self:
        training = self.training
        if training.optimiser == "adam" and "clip" not in training.model_fields_set:
            clip = min(0.3, max(0.05, 0.1 * self.privacy.epsilon))
            object.__setattr__(self, "training", training.model_copy(update={"clip": clip}))
        return self


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
        scale_bits, sigma = {
            "statistics": (own.scale_bits_statistics, own.sigma_statistics),
            "curvature": (own.scale_bits_curvature, own.sigma_curvature),
            "train": (own.scale_bits_train, own.sigma_train),
            "validate": (own.scale_bits_validate, own.sigma_validate),
            "evaluate": (own.scale_bits_evaluate, own.sigma_evaluate),
        }[task]
        return plan_round(treaty, number, task, shape_of(self, task), own.mode, scale_bits, sigma)

    @property
    def reads_orders(self) -> bool:
        """Whether the silos' table is an order log, and not a table of customers."""
        return not isinstance(self.label, ColumnLabel)

    def envelope(self) -> Envelope:
        return Envelope(KIND, self.model_dump(mode="json"))


AnyStudy = Study | CountStudy
AnyDraft = Draft | CountDraft


def parameters(model: Model, inputs: int) -> int:
    """Number of weights of a model on so many inputs."""
    if model.kind == "logistic_regression":
        return inputs + 1
    return (inputs + 1) * model.hidden + model.hidden + 1 + (inputs if model.skip else 0)


def trained(study: AnyStudy) -> Study:
    """The study, if it trains a model.

    Raises:
        InputError: it counts.
    """
    if isinstance(study, CountStudy):
        raise InputError(f"{study.title!r} counts and trains no model: this is for studies that train one")
    return study


def shape_of(plan: Plan | CountPlan, task: Task) -> Shape:
    """One customer's row in a round of this task."""
    if isinstance(plan, CountPlan):
        return plan.shape
    if task == "statistics":
        return statistics_shape(learned(plan.features), plan.scaling.cells)
    if task == "curvature":
        return curvature_shape(plan.inputs + 1, plan.curvature_clip)
    if task == "train":
        return train_shape(plan.parameters, plan.clip)
    if task == "validate":
        return validate_shape()
    return evaluate_shape(plan.evaluation.bins)


def parse(envelope: Envelope) -> AnyStudy:
    """The study in an envelope, its signature not yet checked."""
    if envelope.kind != KIND:
        raise InputError(f"a study was expected, this is a {envelope.kind!r}")
    try:
        counts = envelope.payload.get("task") == TASK
        return (CountStudy if counts else Study).model_validate(envelope.payload)
    except ValidationError as error:
        raise explain(error, "study", tags=TAGS) from error


def load_draft(path: Path) -> Draft:
    """Read the draft of a study that trains a model from a YAML file.

    Raises:
        InputError: as `load_any`; it counts.
    """
    draft = load_any(path)
    if isinstance(draft, CountDraft):
        raise InputError(f"{path}: a counting study trains no model", remedy="this is for studies that do")
    return draft


def load_any(path: Path) -> AnyDraft:
    """Read a draft of either kind from a YAML file; hierarchies it names are looked for beside it.

    Raises:
        InputError: unreadable, not YAML, or a field that is unknown or out of range.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    if isinstance(content, dict) and "count" in content:
        return count_draft(_plain(content), path.parent, str(path))
    return draft_from(content, str(path))


def draft_from(content: Any, what: str = "study draft") -> Draft:
    """A draft of a study that trains, from parsed YAML or JSON."""
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

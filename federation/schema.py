"""What a study says of the silos' tables: their columns, the label, who is trained and tested on, the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..compliance.treaty import Document

Column = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_ ]{0,62}$")]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Table(Document):
    """Which table of the silo, and what its columns are called there."""

    name: Column = "orders"
    customer: Column = "customer"
    date: Column = Field(default="date", description="of an order log")
    amount: Column = Field(default="amount", description="of an order log")


class Split(Document):
    """Who is trained on and who is tested on: never the same customer.

    `hash`: a customer belongs to the training side if SHA-256(salt | customer) falls in the lower
    `train` part. `column`: the table says so itself ("train" or "test"), as benchmarks with a fixed split do.
    """

    by: Literal["hash", "column"] = "hash"
    salt: str = Field(default="foedus", max_length=64)
    train: float = Field(default=0.8, gt=0, lt=1)
    column: Column = "panel"


class ChurnLabel(Document):
    """From an order log: a customer known before `as_of` who does not order in the `horizon_days` from it on."""

    kind: Literal["churn"] = "churn"
    horizon_days: int = Field(default=90, ge=1, le=730)
    train_as_of: Day
    test_as_of: Day

    @field_validator("train_as_of", "test_as_of")
    @classmethod
    def _real(cls, value: str) -> str:
        date.fromisoformat(value)
        return value


class ColumnLabel(Document):
    """From a table of customers: whether the column holds the value `positive` (compared as text).

    `negative` lists all other values there may be. A node refuses a table with any further one: a misspelt
    `positive` then ends the study, where it would else train on a label that nobody bears. Without it every
    other value counts as not positive.
    """

    kind: Literal["column"] = "column"
    column: Column
    positive: str = Field(max_length=200)
    negative: tuple[Annotated[str, Field(max_length=200)], ...] | None = Field(
        default=None, min_length=1, max_length=200
    )

    @field_validator("negative", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        values = (self.positive, *(self.negative or ()))
        if len(set(values)) != len(values):
            raise ValueError("a value of the label is listed twice")
        return self


def _label_kind(value: object) -> str:
    kind = value.get("kind", "churn") if isinstance(value, dict) else getattr(value, "kind", "churn")
    return "column label" if kind == "column" else str(kind)


def question(label: ChurnLabel | ColumnLabel) -> str:
    """What the label asks, in words."""
    if isinstance(label, ColumnLabel):
        other = f", and not {' or '.join(map(repr, label.negative))}" if label.negative else ""
        return f"{label.column} is {label.positive!r}{other}"
    return (
        f"churn: no order within {label.horizon_days} days from {label.train_as_of} on to train, "
        f"from {label.test_as_of} on to test"
    )


TAGS = frozenset({"churn", "column label", "order", "number", "category"})
"""What pydantic calls the kinds of labels and features in its errors."""

Label = Annotated[
    Annotated[ChurnLabel, Tag("churn")] | Annotated[ColumnLabel, Tag("column label")],
    Discriminator(_label_kind),
]


FeatureName = Literal[
    "recency",
    "tenure",
    "span",
    "orders",
    "orders_30",
    "orders_90",
    "amount",
    "mean_amount",
    "mean_gap",
    "overdue",
]


class Quantity(Document):
    """A number about a customer, mapped to [−1, 1]; what lies outside its bounds is clamped.

    With `upper` (and `lower`) given, the bounds are the author's knowledge of the business, not read from
    data: they cost no ε. Without, the scale is learned by a private sum at the study's start
    (`tasks.statistics`), which costs what `foedus study price` shows.
    """

    log: bool = False
    lower: float | None = Field(default=None, ge=-1e300, le=1e300)
    upper: float | None = Field(default=None, ge=-1e300, le=1e300)

    @property
    def called(self) -> str:
        """What the quantity is called."""
        raise NotImplementedError

    @property
    def learned(self) -> bool:
        """Whether the scale is learned from data."""
        return self.upper is None

    @property
    def least(self) -> float:
        """The public lower bound."""
        return 0.0 if self.lower is None else self.lower

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.upper is None:
            if self.lower is not None or self.log:
                raise ValueError("lower and log go with an upper bound; without one the scale is learned")
        elif not self.least < self.upper or (self.log and self.least < 0):
            raise ValueError("bounds must satisfy lower < upper, and 0 ≤ lower with log")
        return self


class Feature(Quantity):
    """A quantity of the order log. None is negative; the lower bound is 0 unless said otherwise."""

    name: FeatureName

    @property
    def called(self) -> str:
        return self.name

    @model_validator(mode="after")
    def _not_negative(self) -> Self:
        if self.least < 0:
            raise ValueError("bounds must satisfy 0 ≤ lower < upper")
        return self


class NumberColumn(Quantity):
    """A column of numbers in a table of customers. `fill` stands in for a missing value; without it one is refused."""

    column: Column
    fill: float | None = None

    @property
    def called(self) -> str:
        return self.column


class CategoryColumn(Document):
    """A column of categories: an input for each level but the first, 1 for who has it and 0 for the others.

    `levels` are public knowledge, compared as text; any other value, a missing one too, counts as none of them.
    """

    column: Column
    levels: tuple[Annotated[str, Field(max_length=200)], ...] = Field(min_length=2, max_length=200)

    @property
    def called(self) -> str:
        """What the column is called."""
        return self.column

    @field_validator("levels", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"{self.column}: a level is listed twice")
        return self


def _feature_kind(value: object) -> str:
    has = value.__contains__ if isinstance(value, dict) else lambda name: hasattr(value, name)
    return "order" if has("name") else "category" if has("levels") else "number"


AnyFeature = Annotated[
    Annotated[Feature, Tag("order")]
    | Annotated[NumberColumn, Tag("number")]
    | Annotated[CategoryColumn, Tag("category")],
    Discriminator(_feature_kind),
]


def quantities(features: Sequence[AnyFeature]) -> list[Feature | NumberColumn]:
    """The features that are numbers, in order."""
    return [f for f in features if not isinstance(f, CategoryColumn)]


def learned(features: Sequence[AnyFeature]) -> int:
    """How many features have their scale learned."""
    return sum(f.learned for f in quantities(features))


def width(features: Sequence[AnyFeature]) -> int:
    """Number of inputs the features give a model."""
    return sum(len(f.levels) - 1 if isinstance(f, CategoryColumn) else 1 for f in features)


RFM: tuple[Feature, ...] = (
    Feature(name="recency", log=True, lower=2, upper=365),
    Feature(name="recency", upper=365),
    Feature(name="tenure", upper=730),
    Feature(name="span", upper=365),
    Feature(name="orders", log=True, upper=20),
    Feature(name="orders_30", log=True, upper=5),
    Feature(name="orders_90", log=True, upper=10),
    Feature(name="amount", log=True, upper=2000),
    Feature(name="mean_amount", log=True, upper=500),
    Feature(name="mean_gap", upper=180),
    Feature(name="overdue", upper=20),
)

"""What a study says of the silos' tables: their columns, the label, who is trained and tested on, the inputs."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..compliance.treaty import Document

Column = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_ ]{0,62}$")]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Table(Document):
    """Which table of the silo, and what its columns are called there."""

    name: Column = "orders"
    customer: Column = "customer"
    date: Column = "date"
    amount: Column = "amount"


class Split(Document):
    """Who is trained on and who is tested on: never the same customer.

    `hash`: a customer belongs to the training side if SHA-256(salt | customer) falls in the lower
    `train` part. `column`: the table says so itself ("train" or "test"), as benchmarks with a fixed split do.
    """

    by: Literal["hash", "column"] = "hash"
    salt: str = Field(default="foedus", max_length=64)
    train: float = Field(default=0.8, gt=0, lt=1)
    column: Column = "panel"


class Label(Document):
    """Churn: a customer known before `as_of` who does not order in the `horizon_days` from it on."""

    kind: Literal["churn"] = "churn"
    horizon_days: int = Field(default=90, ge=1, le=730)
    train_as_of: Day
    test_as_of: Day

    @field_validator("train_as_of", "test_as_of")
    @classmethod
    def _real(cls, value: str) -> str:
        date.fromisoformat(value)
        return value


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


class Feature(Document):
    """One input of the model: a quantity of the order log, mapped to [−1, 1] by public bounds.

    The bounds are the author's knowledge of the business, not read from data, so they cost no ε;
    what lies outside is clamped.
    """

    name: FeatureName
    log: bool = False
    lower: float = 0.0
    upper: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 <= self.lower < self.upper:
            raise ValueError("bounds must satisfy 0 ≤ lower < upper")
        return self


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

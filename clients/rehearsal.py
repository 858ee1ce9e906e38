"""A study's sums in the clear, of silos whose data one process holds: for trials, benchmarks and the audit.

The integers are those of the secure sum: the same contributions with the same noise shares, added up in
the same ring. What is left out is what protects them from the server: guard, ledger, masks and logs. So it
is nothing for data of several owners.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ..compliance.consent import ConsentRegister
from ..compliance.treaty import Treaty
from ..errors import Abandoned, InputError
from ..federation.modes import Sampler
from ..federation.rounds import RoundPlan
from ..federation.schema import Table
from ..federation.study import Study
from ..federation.tasks import evaluate, train
from ..privacy.noise import discrete_gaussian
from ..privacy.secagg.codec import Whole
from .cohort import ask_of
from .features import Raw, Side
from .home import Home
from .trainer import Source, Trainer, side_of

Integers = npt.NDArray[np.int64]
Hook = Callable[[RoundPlan, train.State, Integers], None]
"""(round, the state before it, its noisy sum), once the sum is known."""


@dataclass(frozen=True)
class Frame:
    """A silo's table in memory."""

    frame: pd.DataFrame

    @contextmanager
    def orders(self, names: Table, text: Collection[str] = ()) -> Iterator[ibis.Table]:
        yield ibis.memtable(pa.Table.from_pandas(self.frame, preserve_index=False))


@dataclass
class Silo:
    """One silo of a rehearsal. What it made of its table is kept, so rehearsing again is cheap.

    Args:
        cohort: column `subject`: whose rows may be used.
    """

    trainer: Trainer
    cohort: pd.DataFrame

    @classmethod
    def of_home(cls, path: Path, study: Study, treaty: Treaty) -> Silo:
        """A node's directory: its table, and who consents to the study's purpose now."""
        home = Home.load(path)
        ask = ask_of(home, study.purpose, order_log=study.reads_orders)
        cohort = ConsentRegister(path / "consent.db").cohort(ask, datetime.now(UTC))
        return cls._of(home, study, treaty, cohort)

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, study: Study, treaty: Treaty) -> Silo:
        """A table in memory; everybody in it is of the cohort.

        Raises:
            InputError: it lacks the study's column of customers.
        """
        column = study.table.customer
        if column not in frame.columns:
            raise InputError(
                f"the frame has no column {column!r}: it has {', '.join(map(str, frame.columns))}"
            )
        subjects = sorted(set(frame[column].dropna().astype(str)))
        return cls._of(
            Frame(frame), study, treaty, pd.DataFrame({"subject": pd.Series(subjects, dtype="str")})
        )

    @classmethod
    def _of(cls, source: Source, study: Study, treaty: Treaty, cohort: pd.DataFrame) -> Silo:
        return cls(Trainer(source, study, treaty.retention_days), cohort)

    def dataset(self, side: Side) -> Raw:
        """One side of the study at this silo."""
        return self.trainer.dataset(side, self.cohort)

    def contribution(self, plan: RoundPlan, state: train.State, sampler: Sampler) -> Whole:
        """What the silo would mask in this round, its noise share included."""
        dataset = self.dataset(side_of(plan))
        return replace(self.trainer, sampler=sampler).contribution(plan, dataset, state.sent)


@dataclass(frozen=True)
class Outcome:
    """What a rehearsal gave.

    `totals` and `survivors` are by round: the noisy sum, int64 of shape (round's dimension,), and whose
    vectors are in it.
    """

    state: train.State
    metrics: evaluate.Metrics
    totals: dict[int, Integers]
    survivors: dict[int, tuple[str, ...]]

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The model, shape (parameters,)."""
        return self.state.weights

    @property
    def counts(self) -> dict[int, int]:
        """How many silos are in each round's sum, as `pricing.price` wants it."""
        return {number: len(names) for number, names in self.survivors.items()}


def rehearse(
    study: Study,
    treaty: Treaty,
    silos: Mapping[str, Silo],
    *,
    present: Callable[[int], Sequence[str]] | None = None,
    sampler: Sampler = discrete_gaussian,
    hook: Hook | None = None,
) -> Outcome:
    """Run a study's rounds over `silos`, by the names the treaty gives them.

    Args:
        present: round -> whose vectors arrive; by default everybody's, in every round.
        sampler: of each silo's noise share. Only a test replaces it.

    Raises:
        InputError: not the treaty's parties, or a contribution or sum that does not fit its bounds.
        Abandoned: a round with fewer silos than the treaty opens a sum over.
    """
    names = tuple(p.name for p in treaty.parties)
    if set(silos) != set(names):
        raise InputError(f"silos {', '.join(sorted(silos))}, but the treaty's parties are {', '.join(names)}")
    needed = treaty.threshold
    state = train.State.start(study)
    number = train.following(state, 0, study)
    metrics: evaluate.Metrics | None = None
    totals: dict[int, Integers] = {}
    survivors: dict[int, tuple[str, ...]] = {}
    while number is not None:
        plan = study.round(number, treaty)
        here = tuple(sorted(set(names if present is None else present(number))))
        if len(here) < needed:
            raise Abandoned(f"round {number}: {len(here)} silos are present, {needed} are needed")
        exact = _sum(plan, [silos[name].contribution(plan, state, sampler) for name in here])
        total, _ = plan.mode.at_server(exact, 0, plan.sigma, sampler)
        totals[number], survivors[number] = total, here
        if hook is not None:
            hook(plan, state, total)
        state = train.advance(state, number, total, study, len(here))
        if plan.task == "evaluate":
            metrics = evaluate.metrics(total, study, len(here))
        number = train.following(state, number, study)
    if metrics is None:
        raise InputError("a study has at least one round of each kind")
    return Outcome(state, metrics, totals, survivors)


def _sum(plan: RoundPlan, vectors: Sequence[Whole]) -> Integers:
    """The sum in the round's ring, as the server unwraps it."""
    words = plan.ring.zeros(plan.dimension)
    for vector in vectors:
        words += plan.ring.wrap(vector.chunk(0, vector.size))
    return plan.ring.unwrap(words)

"""One world of four shops for all checks; each attack plays in a copy of it, in memory where there is some."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from support.nodes import Rehearsal, Said
from support.orders import copy_of, make_draft, small_world
from support.sums import scratch

from foedus.clients.app import SiloApp
from foedus.clients.features import Raw, Side
from foedus.clients.trainer import Trainer
from foedus.demo.world import World
from foedus.federation import messages as m
from foedus.privacy.accountant import zcdp

VICTIM = "aster-music"
TRAIN = 2  # the first training round; round 1 is of curvature


@functools.cache
def original() -> World:
    """Four partners under a treaty that allows ε = 40."""
    return small_world(scratch() / "world", make_draft(epsilon=20.0))


@contextmanager
def world() -> Iterator[World]:
    """A copy of it, gone afterwards."""
    folder = scratch()
    try:
        with quiet():
            yield copy_of(original(), folder / "world")
    finally:
        shutil.rmtree(folder)


@contextmanager
def play(**options: Any) -> Iterator[Rehearsal]:
    """An approved and started study, and four real nodes waiting for its first message."""
    with world() as copy:
        yield Rehearsal(copy, make_draft(), **options)


_rho_to_epsilon = functools.cache(zcdp.rho_to_epsilon)
_dataset = Trainer.dataset
_tables: dict[bytes, Raw] = {}


def _dataset_once(self: Trainer, side: Side, cohort: pd.DataFrame) -> Raw:
    """`Trainer.dataset`, remembered by all that it depends on."""
    about = self.study.model_dump_json(include={"table", "label", "split", "features"})
    parts = (
        self.source.table.read_bytes(),
        about.encode(),
        side.encode(),
        *map(str.encode, cohort["subject"]),
    )
    content = hashlib.sha256(f"{self.retention_days}".encode())
    for part in parts:
        content.update(hashlib.sha256(part).digest())
    key = content.digest()
    if key not in _tables:
        _tables[key] = _dataset(self, side, cohort)
    self._cached[side] = key, _tables[key]
    return _tables[key]


@contextmanager
def quiet() -> Iterator[None]:
    """Nodes under attack warn a lot; and Ibis 10 asks pandas 3 for an option on its way out.

    And what thousands of messages make the same nodes work out again is worked out once: prices, a pure function
    of a few numbers, and what is in tables, of which every world here has a copy.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            patch.object(zcdp, "rho_to_epsilon", _rho_to_epsilon),
            patch.object(Trainer, "dataset", _dataset_once),
        ):
            warnings.filterwarnings("ignore", "The 'future.infer_string' option")
            yield
    finally:
        logging.disable(before)


def node(rehearsal: Rehearsal, silo: str) -> SiloApp:
    """The node's app itself, for looking into it and for weakening it."""
    found = rehearsal.grid._apps[100 + rehearsal.silos.index(silo)]
    assert isinstance(found, SiloApp)
    return found


def word(said: Said) -> str:
    """What a node said: the refusal's code, or ``(answered)``."""
    return "(answered)" if said.refusal is None else said.refusal.code


def same(one: Said, other: Said) -> bool:
    """Whether two replies are one to the byte, but for the head of the log that the node has seen and cosigned."""
    records = [said.message.content.config_records[m.RECORD] for said in (one, other)]
    forms = [
        (r["action"], re.sub(rb'"log_size":\d+|"cosignature":"[^"]*"', b"", bytes(r["body"])), r["data"])
        for r in records
    ]
    return forms[0] == forms[1]


def other_weights(rehearsal: Rehearsal, by: float = 3.0) -> bytes:
    """A model that nobody worked out."""
    return (np.frombuffer(rehearsal.weights, "<f8") + by).astype("<f8").tobytes()


def uploads(rehearsal: Rehearsal, number: int = TRAIN) -> dict[str, Said]:
    """Every node uploads its vector of a round, as in an honest run."""
    found = {}
    for silo in rehearsal.silos:
        said = rehearsal.ask(silo, rehearsal.vector_request(silo, number), rehearsal.weights)
        assert said.refusal is None, said.refusal
        found[silo] = said
    return found

"""Who shares secrets and masks with whom in a batch: everybody, or the neighbours on a sparse graph."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Protocol

from ...errors import ProtocolError
from .graph import SPARSE_ABOVE, Graph, parameters
from .keys import Context, Roster

CHECK_DEALERS = 8
"""On a sparse graph, so many silos deal parts of the check key to all."""


class Topology(Protocol):
    """The neighbourhoods of one batch. All of it follows from public data."""

    @property
    def names(self) -> tuple[str, ...]:
        """Who advertised keys, sorted."""

    @property
    def sparse(self) -> bool:
        """Whether a round needs the confirming trip."""

    @property
    def threshold(self) -> int:
        """Shares that rebuild a secret."""

    @property
    def dealers(self) -> frozenset[str]:
        """Who deals parts of the check key, to everybody."""

    @property
    def digest(self) -> str:
        """Names the topology in signatures."""

    def holders(self, silo: str) -> frozenset[str]:
        """Who holds a share of this silo's secrets: its neighbours and itself."""

    def check(self, survivors: Collection[str]) -> None:
        """Raise ProtocolError if opening a sum over these could show less than all of them together."""


class Complete:
    """All pairs: n up to 64, or too many colluders for anything less."""

    sparse = False

    def __init__(self, names: Collection[str], roster: Roster, context: Context) -> None:
        self.names = tuple(sorted(names))
        self.threshold = roster.threshold
        self.dealers = self._all = frozenset(names)
        self.digest = context.digest

    def holders(self, silo: str) -> frozenset[str]:
        return self._all

    def check(self, survivors: Collection[str]) -> None:
        if len(set(survivors)) < self.threshold:
            raise ProtocolError(f"{len(set(survivors))} survivors, below the threshold of {self.threshold}")


class Sparse:
    """The k-regular graph of Bell et al. 2020 (see `graph`).

    Its seed is SHA-256 over the context and the digests of all advertisements: nobody knows it before
    every silo has advertised.
    """

    sparse = True

    def __init__(self, graph: Graph, seed: bytes) -> None:
        self._graph = graph
        self.names = tuple(sorted(graph.order))
        self.threshold = graph.parameters.threshold
        self.dealers = frozenset(graph.order[:CHECK_DEALERS])
        self.digest = seed.hex()

    def holders(self, silo: str) -> frozenset[str]:
        return frozenset(self._graph.holders(silo))

    def check(self, survivors: Collection[str]) -> None:
        self._graph.check(survivors)


def topology(advertised: Mapping[str, str], roster: Roster, context: Context) -> Topology:
    """The topology of a batch: sparse above 64 silos, where that saves a quarter of the masks or more.

    Many colluders (n/3) need so many neighbours that below some 330 silos all pairs cost hardly more, and
    a round takes a trip less.

    Args:
        advertised: silo -> digest of its advertisement, of all who advertised.
    """
    count = len(advertised)
    chosen = parameters(count, roster.colluders) if count > SPARSE_ABOVE else None
    if chosen is None or 4 * chosen.degree > 3 * (count - 1):
        return Complete(advertised, roster, context)
    content = hashlib.sha256(f"foedus/v1/graph\0{context.digest}".encode())
    for silo in sorted(advertised):
        content.update(f"\0{silo}\0{advertised[silo]}".encode())
    seed = content.digest()
    return Sparse(Graph.draw(advertised, seed, chosen), seed)


def peers(shape: Topology, silo: str) -> frozenset[str]:
    """Whom a silo sends a box, and who sends it one: holders of shares, and dealers of the check key."""
    everyone = frozenset(shape.names)
    return (everyone if silo in shape.dealers else shape.holders(silo) | shape.dealers) - {silo}


def names_digest(names: Collection[str]) -> str:
    """SHA-256 over the sorted names, each behind a NUL."""
    return hashlib.sha256("".join(f"\0{s}" for s in sorted(names)).encode()).hexdigest()

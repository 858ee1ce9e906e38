"""Attacks on Flower's SecAgg+, each against its own client mod and server workflow.

The attacker is the server (`Wire` subclasses), if nothing else is said; the victim is an honest, unmodified node. Unless an
attack says so the round ends as it should: nobody notices.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_separate
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

from ..flower import FIRST_NODE, VERSION, Federation, Wire, weighted_mean
from .outcome import Outcome, no_step, recovered, spoiled

NAME = f"Flower SecAgg+ {VERSION}"
_CLIP, _LEVELS, _MODULUS = 8.0, 2**22, 2**32  # SecAggPlusWorkflow's defaults
_VICTIM = FIRST_NODE + 1
_EXACT = 1e-3  # SecAgg+ quantises 16 to 2^22 levels after weighting: what comes back is no better
Vector = npt.NDArray[Any]


def _data(n: int, d: int = 64) -> tuple[list[npt.NDArray[np.float32]], list[int]]:
    rng = np.random.default_rng(11)
    return [rng.normal(size=d).astype(np.float32) for _ in range(n)], [300 + 100 * i for i in range(n)]


def _run(wire: Wire, n: int = 5, threshold: float = 0.5) -> tuple[Federation, bool]:
    """One round, and whether it gave the right average with no node complaining."""
    vectors, weights = _data(n)
    federation = Federation(vectors, weights, threshold=threshold, wire=wire)
    error = np.abs(federation.round() - weighted_mean(vectors, weights)).max()
    return federation, bool(error < _EXACT and not wire.failures)


def _victim(n: int = 5) -> npt.NDArray[np.float32]:
    return _data(n)[0][_VICTIM - FIRST_NODE]


class Listener(Wire):
    """Keeps what every server sees: public keys, masked vectors, the shares of each answer."""

    def __init__(self, lost: Mapping[str, Any] | None = None) -> None:
        super().__init__(lost)
        self.keys: dict[int, tuple[bytes, bytes]] = {}
        self.masked: dict[int, list[Vector]] = {}
        self.answers: dict[int, list[tuple[int, bytes]]] = {}

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        """Write it down."""
        if stage == Stage.SETUP:
            self.keys[node] = (configs[Key.PUBLIC_KEY_1], configs[Key.PUBLIC_KEY_2])
        if stage == Stage.COLLECT_MASKED_VECTORS:
            self.masked[node] = [bytes_to_ndarray(b) for b in configs[Key.MASKED_PARAMETERS]]
        if stage == Stage.UNMASK:
            self.answers[node] = list(zip(configs[Key.NODE_ID_LIST], configs[Key.SHARE_LIST], strict=True))

    def pair_keys(self, secret: bytes) -> dict[int, bytes]:
        """The victim's mask seeds with every peer, from its rebuilt private key."""
        private = bytes_to_private_key(secret)
        return {
            node: generate_shared_key(private, bytes_to_public_key(pk1))
            for node, (pk1, _) in self.keys.items()
            if node != _VICTIM
        }


def _unmasked(
    masked: list[Vector], own: bytes, pairs: Mapping[int, bytes], node: int = _VICTIM
) -> list[Vector]:
    """A node's quantised vector out of its upload, given the seeds of all its masks."""
    shapes = [a.shape for a in masked]
    plain = [a - m for a, m in zip(masked, pseudo_rand_gen(own, _MODULUS, shapes), strict=True)]
    for peer, seed in pairs.items():
        sign = 1 if node > peer else -1
        plain = [a - sign * m for a, m in zip(plain, pseudo_rand_gen(seed, _MODULUS, shapes), strict=True)]
    return [a & (_MODULUS - 1) for a in plain]


def _floats(plain: list[Vector]) -> Vector:
    weight, *arrays = plain
    return dequantize(arrays, _CLIP, _LEVELS)[0] * (_LEVELS / int(weight[0]))


def _say(configs: ConfigRecord, pairs: list[tuple[int, bytes]]) -> None:
    configs[Key.NODE_ID_LIST], configs[Key.SHARE_LIST] = [n for n, _ in pairs], [s for _, s in pairs]


# ── 1: the seed of a pair mask has 28 bits ────────────────────────────────────────────────────────


def seed_search() -> Outcome:
    """An honest server and two nodes. It was told the victim's number of examples, which is coordinate 0.

    With more nodes it takes all but one peer to collude, or the other pair masks from another attack:
    each mask has 28 bits; the sum of k of them is not searched here.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return no_step("not run: no C compiler on this machine")
    wire = Listener()
    federation, fine = _run(wire, n=2)
    examples = next(weight for node, weight, _ in federation.strategy.seen if node == _VICTIM)
    own = combine_shares(
        [share for answer in wire.answers.values() for owner, share in answer if owner == _VICTIM]
    )
    rest = _unmasked(wire.masked[_VICTIM], own, {})  # survivors' own masks are the server's to take off
    sign = 1 if _VICTIM > FIRST_NODE else -1
    known = sign * (int(rest[0][0]) - round(examples / 1000 * _LEVELS)) % _MODULUS
    words = [int(word) for word in rest[1][:5]]
    started = time.monotonic()
    hits, tried = search(compiler, known, words, sign)
    what = f"all {tried:,} seeds in {time.monotonic() - started:.0f} s, {len(hits)} fit"
    if len(hits) != 1:
        return Outcome(False, what)
    # The generator takes the folded seed: four bytes fold to themselves.
    plain = _unmasked(wire.masked[_VICTIM], own, {FIRST_NODE: hits[0].to_bytes(4, "little")})
    return recovered(_floats(plain), _victim(2), within=_EXACT, what=what, also=fine)


def search(
    compiler: str, known: int, words: Sequence[int], sign: int, top: tuple[int, int] = (0, 128)
) -> tuple[list[int], int]:
    """The seeds that fit, and how many were tried: all whose top byte is in [top), on all cores.

    Args:
        known: the mask's first word. words: five masked words after it. sign: +1 if the mask was added.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, source = str(Path(folder, "seeds")), str(Path(__file__).parent / "seeds.c")
        subprocess.run([compiler, "-O3", "-march=native", "-w", "-o", program, source], check=True)
        workers = min(os.cpu_count() or 1, top[1] - top[0])
        edges = [top[0] + (top[1] - top[0]) * i // workers for i in range(workers + 1)]
        running = [
            subprocess.Popen(
                [program, *map(str, (a, b, sign, known, *words))], stdout=subprocess.PIPE, text=True
            )
            for a, b in itertools.pairwise(edges)
        ]
        lines = [line for one in running for line in one.communicate()[0].splitlines()]
    tried = sum(int(line.split()[1]) for line in lines if line.startswith("tried"))
    return [int(line) for line in lines if not line.startswith("tried")], tried


# ── 2, 3, 5: what the answers of the last stage open ──────────────────────────────────────────────


class _Both(Listener):
    """2: names the victim as alive and as lost, in one list each."""

    def on_request(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        if stage == Stage.UNMASK:
            configs[Key.DEAD_NODE_ID_LIST] = [_VICTIM]

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        super().on_reply(stage, node, configs, content)
        if stage == Stage.UNMASK:
            _say(configs, self.answers[node][:-1])


def both_shares() -> Outcome:
    """Every node gives both shares of the victim: of its own seed and of its key."""
    wire = _Both()
    _, fine = _run(wire)
    told = [[share for owner, share in answer if owner == _VICTIM] for answer in wire.answers.values()]
    own, key = combine_shares([t[0] for t in told]), combine_shares([t[1] for t in told])
    got = _floats(_unmasked(wire.masked[_VICTIM], own, wire.pair_keys(key)))
    return recovered(got, _victim(), within=_EXACT, what="one node's vector", also=fine)


class _Split(Listener):
    """3: tells half of the nodes that the victim is lost."""

    def __init__(self, half: set[int]) -> None:
        super().__init__()
        self.half = half

    def on_request(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        if stage == Stage.UNMASK and node in self.half:
            configs[Key.ACTIVE_NODE_ID_LIST] = [n for n in configs[Key.ACTIVE_NODE_ID_LIST] if n != _VICTIM]
            configs[Key.DEAD_NODE_ID_LIST] = [_VICTIM]

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        super().on_reply(stage, node, configs, content)
        if stage == Stage.UNMASK and node in self.half:
            _say(configs, [pair for pair in self.answers[node] if pair[0] != _VICTIM])


def split_view() -> Outcome:
    """Two survivor sets, each to t of the nodes (n = 6, threshold one half)."""
    half = {FIRST_NODE + i for i in (3, 4, 5)}
    wire = _Split(half)
    _, fine = _run(wire, n=6)
    shares = {node: dict(answer)[_VICTIM] for node, answer in wire.answers.items()}
    own = combine_shares([share for node, share in shares.items() if node not in half])
    key = combine_shares([share for node, share in shares.items() if node in half])
    got = _floats(_unmasked(wire.masked[_VICTIM], own, wire.pair_keys(key)))
    return recovered(got, _victim(6), within=_EXACT, what="one node's vector (n = 6, t = 3)", also=fine)


class _Lowered(Listener):
    """5: tells the nodes that the threshold is 1, and one of them that only the victim is left."""

    def on_request(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        if stage == Stage.SETUP:
            configs[Key.THRESHOLD] = 1
        if stage == Stage.UNMASK and node == FIRST_NODE:
            everyone = configs[Key.ACTIVE_NODE_ID_LIST]
            configs[Key.ACTIVE_NODE_ID_LIST] = [_VICTIM]
            configs[Key.DEAD_NODE_ID_LIST] = [n for n in everyone if n != _VICTIM]

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        super().on_reply(stage, node, configs, content)
        if stage == Stage.UNMASK and node == FIRST_NODE:
            _say(configs, [])


def lowered_threshold() -> Outcome:
    """One node's answer then opens the victim's vector."""
    wire = _Lowered()
    _, fine = _run(wire)
    told = dict(wire.answers[FIRST_NODE])
    public = bytes_to_public_key(wire.keys[_VICTIM][0])
    pairs = {
        node: generate_shared_key(bytes_to_private_key(combine_shares([share])), public)
        for node, share in told.items()
        if node != _VICTIM
    }
    got = _floats(_unmasked(wire.masked[_VICTIM], combine_shares([told[_VICTIM]]), pairs))
    return recovered(got, _victim(), within=_EXACT, what="threshold 1 accepted, one answer used", also=fine)


# ── 4: keys carry no signature ────────────────────────────────────────────────────────────────────


class _Between(Listener):
    """Sits between the victim and each peer with keys of its own, and passes everything on re-encrypted."""

    def __init__(self) -> None:
        super().__init__()
        self.as_peer: dict[int, Any] = {}  # what it shows the victim in place of each peer's keys
        self.as_victim = (generate_key_pairs(), generate_key_pairs())
        self.shares: list[bytes] = []
        self.opened: list[Vector] = []

    def _towards_victim(self, peer: int, which: int) -> bytes:
        return generate_shared_key(
            self.as_peer[peer][which][0], bytes_to_public_key(self.keys[_VICTIM][which])
        )

    def _towards_peer(self, peer: int, which: int) -> bytes:
        return generate_shared_key(self.as_victim[which][0], bytes_to_public_key(self.keys[peer][which]))

    def on_request(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        if stage != Stage.SHARE_KEYS:
            return
        if node != _VICTIM:
            configs[str(_VICTIM)] = [public_key_to_bytes(public) for _, public in self.as_victim]
            return
        for peer in self.as_peer:
            configs[str(peer)] = [public_key_to_bytes(public) for _, public in self.as_peer[peer]]

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        super().on_reply(stage, node, configs, content)
        if stage == Stage.SETUP and node != _VICTIM:
            self.as_peer[node] = (generate_key_pairs(), generate_key_pairs())
        if stage == Stage.SHARE_KEYS:
            boxes = []
            for receiver, box in zip(
                configs[Key.DESTINATION_LIST], configs[Key.CIPHERTEXT_LIST], strict=True
            ):
                if node == _VICTIM:
                    plain = decrypt(self._towards_victim(receiver, 1), box)
                    self.shares.append(share_keys_plaintext_separate(plain)[2])
                    box = encrypt(self._towards_peer(receiver, 1), plain)
                elif receiver == _VICTIM:
                    box = encrypt(self._towards_victim(node, 1), decrypt(self._towards_peer(node, 1), box))
                boxes.append(box)
            configs[Key.CIPHERTEXT_LIST] = boxes
        if stage == Stage.COLLECT_MASKED_VECTORS and node == _VICTIM:
            peers = [p for p in self.keys if p != _VICTIM]
            pairs = {p: self._towards_victim(p, 0) for p in peers}
            own = combine_shares(self.shares)
            self.opened = _unmasked(self.masked[node], own, pairs)
            # The peers masked towards the server: mask the vector again as they expect.
            remade = self.opened
            shapes = [a.shape for a in remade]
            seeds = [(1, own)] + [(1 if node > p else -1, self._towards_peer(p, 0)) for p in peers]
            for sign, seed in seeds:
                remade = [
                    a + sign * m for a, m in zip(remade, pseudo_rand_gen(seed, _MODULUS, shapes), strict=True)
                ]
            configs[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(a & (_MODULUS - 1)) for a in remade]


def key_substitution() -> Outcome:
    """The server puts itself between the victim and everybody else."""
    wire = _Between()
    _, fine = _run(wire)
    return recovered(_floats(wire.opened), _victim(), within=_EXACT, what="one node's vector", also=fine)


# ── 6, 8: what a node repeats, and says in clear ──────────────────────────────────────────────────


def same_round_again() -> Outcome:
    """The same round of the same model, a second time without the victim: the difference is its vector."""
    vectors, weights = _data(5)
    federation = Federation(vectors, weights, threshold=3)
    whole = federation.round() * sum(weights)
    federation.set_model([np.zeros(1, np.float32)], 1)
    federation.wire.lost = {Stage.COLLECT_MASKED_VECTORS: {_VICTIM}}
    weight = weights[_VICTIM - FIRST_NODE]
    rest = federation.round() * (sum(weights) - weight)
    fine = not federation.wire.failures
    return recovered(
        (whole - rest) / weight, _victim(), within=_EXACT, what="round 1 answered twice", also=fine
    )


def clear_text() -> Outcome:
    """Numbers of examples and metrics go beside the masked vector."""
    vectors, weights = _data(5)
    federation = Federation(vectors, weights)
    federation.round()
    seen = [[weight, metrics["loss"]] for _, weight, metrics in federation.strategy.seen]
    true = [[w, float(np.abs(v).mean())] for v, w in zip(vectors, weights, strict=True)]
    return recovered(seen, true, within=0.0, what="examples and metrics of all 5 nodes")


# ── 12: a wrong sum nobody notices ────────────────────────────────────────────────────────────────


def altered_sum() -> Outcome:
    """The server shifts the average by 1 before the next round: what do the nodes train on?"""
    vectors, weights = _data(5)
    federation = Federation(vectors, weights)
    honest = federation.round()
    federation.set_model([honest + 1.0], 2)
    federation.round()
    got = np.stack([models[-1] for models in federation.received.values()])
    return spoiled(
        got, honest, beyond=0.5, what="5 nodes trained on it", objections=len(federation.wire.failures)
    )


class _WrongShare(Listener):
    """Not the server but one node: it sends a wrong share of another's seed."""

    def on_reply(self, stage: str, node: int, configs: ConfigRecord, content: RecordDict) -> None:
        if stage == Stage.UNMASK and node == FIRST_NODE:
            shares = list(configs[Key.SHARE_LIST])
            place = list(configs[Key.NODE_ID_LIST]).index(_VICTIM)
            altered = bytearray(shares[place])
            altered[4] ^= 1  # bytes 0-3 are the share's index
            shares[place] = bytes(altered)
            configs[Key.SHARE_LIST] = shares


def wrong_share() -> Outcome:
    """One bit of one share."""
    vectors, weights = _data(5)
    wire = _WrongShare()
    got = Federation(vectors, weights, wire=wire).round()
    true = weighted_mean(vectors, weights)
    return spoiled(got, true, beyond=0.5, what="one bit of one share", objections=len(wire.failures))


def overflow() -> Outcome:
    """Honest nodes, values beyond ±8: clipped without a word."""
    vectors, weights = [20 * v for v in _data(5)[0]], _data(5)[1]
    federation = Federation(vectors, weights)
    got = federation.round()
    true = weighted_mean(vectors, weights)
    objections = len(federation.wire.failures)
    return spoiled(
        got, true, beyond=0.5, what=f"values up to {np.abs(vectors).max():.0f}", objections=objections
    )


def heavy_weights() -> Outcome:
    """Honest nodes with 300,000 examples and more (the default's maximum is 1,000): the ring wraps around."""
    vectors, weights = _data(5)[0], [1000 * w for w in _data(5)[1]]
    federation = Federation(vectors, weights)
    got = federation.round()
    objections = len(federation.wire.failures)
    return spoiled(
        got,
        weighted_mean(vectors, weights),
        beyond=0.5,
        what="300,000+ examples (each node logs a warning)",
        objections=objections,
    )


ATTACKS: dict[str, Callable[[], Outcome]] = {
    "seed": seed_search,
    "both": both_shares,
    "split": split_view,
    "keys": key_substitution,
    "threshold": lowered_threshold,
    "again": same_round_again,
    "clear": clear_text,
    "altered": altered_sum,
    "share": wrong_share,
    "overflow": overflow,
    "weights": heavy_weights,
}

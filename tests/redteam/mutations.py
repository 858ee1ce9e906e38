"""Messages gone wrong: mutations of valid ones that know their structure, and noise. Deterministic by seed."""

from __future__ import annotations

import copy
import json
import random
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel

from foedus.federation import messages as m

_RAW = "@@raw@@"
_TOKENS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "-0", "0.0", "01", "0x10", "1.5",
    "-1", str(2**53), str(2**63), str(2**64), str(-(2**63)), "1e308", "'x'", "undefined", "", ",", "[", "}", "true",
)  # fmt: skip
_STRINGS = (
    "", "\x00", "\ud800", "\U0010ffff", "A" * 65, "A" * 70_000, "../../identity.key", "$(id)", "%s%n", "{}", "=" * 44,
    "' OR 1=1 --", "\n\n\u2014 x\n", "0" * 64, "1", "-1", "99999999999999999999", "\u202e", "null", "\r\nHost: x",
)  # fmt: skip
KINDS = (
    "query",
    "query.weights",
    "query.keys_reply",
    "query.refusal",
    "train",
    "train.keys",
    "evaluate",
    "query.x" + "x" * 999,
)


def contents() -> list[type[m.Content]]:
    """Every class of message there is, later ones included."""
    found, waiting = [], [m.Content]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return sorted(found, key=lambda c: c.__name__)


def example(kind: Any, rng: random.Random) -> Any:
    """A JSON value of the right shape for a type of a message, be it one this file does not know."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return example(inner[0], rng)
    if origin in (typing.Union, types.UnionType):
        return example(rng.choice([a for a in inner if a is not type(None)]), rng)
    if origin in (list, tuple):
        return [example(inner[0], rng) for _ in range(rng.randrange(4))] if inner else []
    if origin is dict:
        if inner[1] is Any:
            return {"kind": "study", "payload": {"silo": "aster-music"}, "signatures": {"x": "AAAA"}}
        return {f"silo-{i}": example(inner[1], rng) for i in range(3)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: example(field.annotation, rng) for name, field in kind.model_fields.items()}
    plain: dict[Any, Any] = {int: rng.randrange(4), float: 0.5, bool: True, str: "1", bytes: "AAAA"}
    return plain.get(kind, "1")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


class Mutator:
    """Makes bad messages out of good ones."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._changes: list[Callable[[Any, Any, Any], None]] = [
            self._delete, self._retype, self._token, self._text, self._bend, self._swap, self._grow, self._rename, self._nest,
        ]  # fmt: skip

    def body(self, body: Any) -> bytes:
        """A body with one to three changes somewhere in its tree."""
        tree = copy.deepcopy(body)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            # half of the changes near the root: below are hundreds of signatures
            shallow = isinstance(tree, dict) and self.rng.random() < 0.5
            places = [(tree, key) for key in tree] if shallow else list(_places(tree))
            if not places:
                break
            container, key = self.rng.choice(places)
            self.rng.choice(self._changes)(container, key, tree)
        return _dump(tree)

    def _delete(self, c: Any, key: Any, tree: Any) -> None:
        del c[key]

    def _retype(self, c: Any, key: Any, tree: Any) -> None:
        old = c[key]
        c[key] = self.rng.choice(
            [None, True, -1, 0.5, "x", [], {}, [old], {"x": old}, str(old)[:50], [None] * 9]
        )

    def _token(self, c: Any, key: Any, tree: Any) -> None:
        c[key] = _RAW + self.rng.choice(_TOKENS) + _RAW

    def _text(self, c: Any, key: Any, tree: Any) -> None:
        c[key] = self.rng.choice(_STRINGS)

    def _bend(self, c: Any, key: Any, tree: Any) -> None:
        """A little of it: a character of a text (base64 mostly), a number by one."""
        old = c[key]
        if isinstance(old, str) and old:
            at = self.rng.randrange(len(old))
            c[key] = old[:at] + self.rng.choice("A/+=é\x00") + old[at + self.rng.randrange(2) :]
        elif isinstance(old, int):
            c[key] = old + self.rng.choice((-1, 1, 1000, 2**31))
        elif isinstance(old, list) and old:
            c[key] = old[:-1] if self.rng.random() < 0.5 else old[::-1] + old
        else:
            c[key] = None

    def _swap(self, c: Any, key: Any, tree: Any) -> None:
        other, place = self.rng.choice(list(_places(tree)))
        c[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(c[key])

    def _grow(self, c: Any, key: Any, tree: Any) -> None:
        if isinstance(c[key], list):
            c[key] = (c[key] or [0]) * self.rng.choice((2, 30, 300))
        elif isinstance(c[key], dict):
            c[key] = {**c[key], **{f"k{i}": 0 for i in range(self.rng.choice((1, 50)))}}
        else:
            c[key] = [c[key]] * 2

    def _rename(self, c: Any, key: Any, tree: Any) -> None:
        if isinstance(c, dict):
            c[self.rng.choice((*_STRINGS, str(key).upper(), f"{key} "))] = c.pop(key)
        else:
            c.insert(0, c[key])

    def _nest(self, c: Any, key: Any, tree: Any) -> None:
        depth = self.rng.choice((3, 50, 5000))
        c[key] = f"{_RAW}{'[' * depth}{']' * depth}{_RAW}"

    def bytes(self, data: bytes) -> bytes:
        """Bytes with bits flipped, cut, doubled, or something put in."""
        rng, at = self.rng, self.rng.randrange(len(data) + 1)
        return rng.choice(
            [
                lambda: data[:at],
                lambda: data[at:],
                lambda: data + data[:at],
                lambda: data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:],
                lambda: data[: max(0, at - 1)] + bytes([rng.randrange(256)]) + data[at:],
                lambda: b"\xef\xbb\xbf" + data,
                lambda: data.decode(errors="replace").encode("utf-16"),
                lambda: data.replace(b'"', b"\xff", 1),
                lambda: b"[" * rng.choice((10, 1000, 100_000)) + data,
                lambda: data[:1] + data[1 : at + 1] + b"," + data[1:],  # keys twice
                lambda: b" " * 1000 + data + b"\n" * 1000 + b"0",
            ]
        )()

    def noise(self) -> bytes:
        """Bytes that are nothing, or JSON that is no message."""
        rng = self.rng
        texts = (
            b"",
            b"{}",
            b"[]",
            b"null",
            b"0",
            b'""',
            b"{",
            b'{"a":}',
            b"\x00",
            b"NaN",
            b'{"run":1}',
            b"\xff\xfe",
        )
        return rng.choice((rng.randbytes(rng.randrange(600)), rng.choice(texts)))

    def record(self, action: str, body: bytes, data: bytes) -> RecordDict:
        """A Flower record of another shape than ours."""
        good = {"action": action, "body": body, "data": data}
        rng = self.rng
        name = rng.choice(list(good))
        odd = rng.choice([1, 0.5, True, "x", b"\xff", [1, 2], [b"a", b"b"], ["x"], [0.1], b"", [True]])
        shapes: list[Callable[[], RecordDict]] = [
            RecordDict,
            lambda: RecordDict({m.RECORD: ConfigRecord()}),
            lambda: RecordDict({m.RECORD: ConfigRecord({**good, name: odd})}),
            lambda: RecordDict({m.RECORD: ConfigRecord({k: v for k, v in good.items() if k != name})}),
            lambda: RecordDict({m.RECORD: ConfigRecord({**good, rng.choice(("x", "", "Body")): odd})}),
            lambda: RecordDict({rng.choice(("x", "", "Foedus")): ConfigRecord(good)}),
            lambda: RecordDict(
                {m.RECORD: ConfigRecord(good), "x": rng.choice((ConfigRecord(), MetricRecord()))}
            ),
            lambda: RecordDict({m.RECORD: MetricRecord({"action": 1, "body": 2.0, "data": [3, 4]})}),
            lambda: RecordDict(
                {m.RECORD: ArrayRecord({"w": Array("float64", (2,), "numpy.ndarray", rng.randbytes(9))})}
            ),
        ]
        return rng.choice(shapes)()


def _dump(tree: Any) -> bytes:
    text = json.dumps(tree, separators=(",", ":"))  # escapes lone surrogates, as valid JSON does
    return text.replace(f'"{_RAW}', "").replace(f'{_RAW}"', "").encode()

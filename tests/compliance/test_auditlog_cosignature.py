"""Witnesses cosign what they have checked, and a quorum of them leaves no room for two histories."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from foedus.compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from foedus.compliance.auditlog.cosignature import cosign, cosigners, require_quorum, with_lines
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey
from foedus.errors import InputError, Refused, VerificationError

ORIGIN = "treaty.example/log"
KEY = SigningKey.generate()
WITNESSES = {name: SigningKey.generate() for name in ("bank", "shop", "telecom")}
PUBLIC = {name: key.public for name, key in WITNESSES.items()}


def make(path: Path, count: int, name: str = "a") -> AuditLog:
    log = AuditLog(path, ORIGIN)
    log.append_many([(name, "b", "c", {"i": i}) for i in range(count)])
    return log


def keeper(folder: Path, name: str) -> HeadKeeper:
    return HeadKeeper(folder / f"{name}.head", ORIGIN, KEY.public)


def show(log: AuditLog, witness: HeadKeeper) -> None:
    kept = witness.head
    witness.advance(log.checkpoint(ORIGIN, KEY), log.consistency_proof(kept.size if kept else 0))


def cosigned(head: Checkpoint, *names: str, at: int = 1_790_000_000) -> str:
    lines = {name: cosign(head, name, WITNESSES[name], at) for name in names}
    return with_lines(head.sign(ORIGIN, KEY), lines)


HEAD = Checkpoint(ORIGIN, 8, b"\x05" * 32)


def test_a_witness_cosigns_the_head_it_has_on_disk(tmp_path: Path) -> None:
    log, witness = make(tmp_path / "log.db", 4), keeper(tmp_path, "bank")
    with pytest.raises(InputError, match="no head"):
        witness.cosign("bank", WITNESSES["bank"])
    show(log, witness)
    log.append("a", "b", "c", {})
    head, line = keeper(tmp_path, "bank").cosign("bank", WITNESSES["bank"], clock=lambda: 1_790_000_000.9)
    assert head.size == 4  # not the log's five: those it has not seen
    note = with_lines(head.sign(ORIGIN, KEY), {"bank": line})
    assert open_checkpoint(note, ORIGIN, KEY.public) == head
    assert cosigners(note, PUBLIC) == {"bank": 1_790_000_000}


def test_a_quorum_is_counted_by_witness() -> None:
    note = cosigned(HEAD, "bank", "shop")
    twice = note + cosign(HEAD, "bank", WITNESSES["bank"], 1_790_000_007)
    assert require_quorum(twice, PUBLIC, 2) == {"bank": 1_790_000_007, "shop": 1_790_000_000}
    with pytest.raises(Refused, match="by 2 witnesses \\(bank, shop\\); 3 must"):
        require_quorum(twice, PUBLIC, 3)
    with pytest.raises(Refused):  # an empty policy refuses
        require_quorum(HEAD.sign(ORIGIN, KEY), PUBLIC, 0)


def test_strangers_and_other_keys_do_not_count() -> None:
    other = cosign(HEAD, "bank", SigningKey.generate(), 1)
    stranger = cosign(HEAD, "mallory", SigningKey.generate(), 1)
    plain = HEAD.sign("shop", WITNESSES["shop"]).split("\n\n")[1]  # a signature, but not of a witness
    assert cosigners(HEAD.sign(ORIGIN, KEY) + other + stranger + plain, PUBLIC) == {}


@pytest.mark.parametrize("change", ["size", "root", "time", "signature", "short"])
def test_a_cosignature_that_does_not_hold_is_refused(change: str) -> None:
    note = cosigned(HEAD, "bank")
    match change:
        case "size":
            note = note.replace("\n8\n", "\n9\n")
        case "root":
            note = note.replace(HEAD.text, Checkpoint(ORIGIN, 8, b"\x06" * 32).text)
        case "short":
            line = note.splitlines()[-1]
            note = note.replace(line, line[:-8])
        case _:
            start = note.rindex("bank ") + (9 if change == "time" else 40)
            at = start + 4
            note = note[:at] + ("A" if note[at] != "A" else "B") + note[at + 1 :]
    with pytest.raises(VerificationError):
        cosigners(note, PUBLIC)


def test_lines_are_put_under_a_note_once() -> None:
    line = {"bank": cosign(HEAD, "bank", WITNESSES["bank"], 1)}
    once = with_lines(HEAD.sign(ORIGIN, KEY), line)
    assert with_lines(once, line) == once


@pytest.mark.parametrize("first", ["".join(sides) for sides in product("lr", repeat=3)])
def test_two_histories_get_no_two_quorums(tmp_path: Path, first: str) -> None:
    """Whichever each witness is shown first, it cosigns no other; so two of three cosign one history at most."""
    histories = {side: make(tmp_path / f"{side}.db", 6, side) for side in "lr"}
    lines: dict[str, dict[str, str]] = {"l": {}, "r": {}}
    for name, side in zip(WITNESSES, first, strict=True):
        witness = keeper(tmp_path, name)
        show(histories[side], witness)
        with pytest.raises(VerificationError, match="fork"):
            show(histories["l" if side == "r" else "r"], witness)
        _, lines[side][name] = witness.cosign(name, WITNESSES[name])
        assert len(list(tmp_path.glob(f"{name}.head.refused-*.json"))) == 1
    quorums = 0
    for side, log in histories.items():
        try:
            require_quorum(with_lines(log.checkpoint(ORIGIN, KEY), lines[side]), PUBLIC, 2)
            quorums += 1
        except Refused:
            continue
    assert quorums == 1


WITNESS = """
import sys
from pathlib import Path
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey
folder = Path(sys.argv[1])
key = SigningKey.load(folder / "log.key")
log = AuditLog(folder / "log.db", "treaty.example/log")
keeper = HeadKeeper(folder / "bank.head", log.origin, key.public)
print("ready", flush=True)
while True:
    log.append("a", "b", "c", {})
    kept = keeper.head
    keeper.advance(log.checkpoint(log.origin, key), log.consistency_proof(kept.size if kept else 0))
    head, line = keeper.cosign("bank", key)
    print(head.size, head.root.hex(), flush=True)
"""


def test_a_killed_witness_has_what_it_cosigned(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "log.key")
    cosigned_so_far = 0
    for kill in range(6):
        command = [sys.executable, "-c", WITNESS, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.05 * kill)
        process.send_signal(signal.SIGKILL)
        said = re.findall(r"(\d+) ([0-9a-f]{64})\n", process.stdout.read())
        process.stdout.close()
        process.wait()
        head = HeadKeeper(tmp_path / "bank.head", ORIGIN, key.public).head
        size = 0 if head is None else head.size
        assert size >= max([cosigned_so_far, *(int(size) for size, _ in said)])
        log = AuditLog(tmp_path / "log.db", ORIGIN)
        assert all(log.root(int(size)).hex() == root for size, root in said)
        cosigned_so_far = size
    assert cosigned_so_far > 0

"""A run whose log the treaty's quorum has cosigned; a server that lies to one node in it; and both verifiers on the head."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.bundles import Tampered
from support.nodes import Rehearsal, history_of
from support.orders import make_draft
from support.split import other_history

import foedus.verify_foedus as one_file
from foedus.compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from foedus.compliance.auditlog.cosignature import cosign, cosigners
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.treaty import draft
from foedus.demo.world import World
from foedus.documents import SigningKey, b64
from foedus.errors import Abandoned, FoedusError, InputError
from foedus.federation import messages as m
from foedus.federation.verification import verify
from foedus.server.coordinator import conduct

VICTIM = "birch-records"
TIME = 1_790_000_000

# ── the treaty ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("n", "c", "quorum"), [(3, 1, 3), (4, 1, 3), (4, 2, 4), (7, 2, 5), (10, 3, 7), (70, 23, 47)]
)
def test_any_two_quorums_share_more_than_the_colluders(good: Any, n: int, c: int, quorum: int) -> None:
    content = good.world.treaty.model_dump(mode="json")
    party = content["parties"][0]
    names = [f"p{i}" for i in range(n)]
    content["parties"] = [
        {**party, "name": name, "signing_key": SigningKey.generate().public, "node_key": name}
        for name in names
    ]
    content |= {"colluders": c, "min_silos": 2, "approval_chain": ["business", "dpo"]}
    content["approvers"] = [a for a in content["approvers"] if a["party"] is None]
    content["overlap"] = {"max_partners_per_customer": n, "attestation": ""}
    treaty = draft(content)
    assert treaty.quorum == quorum and 2 * quorum - n > c and quorum <= treaty.threshold <= n
    assert 2 * (quorum - 1) - n <= c  # one fewer would not do
    assert draft({**content, "witness_quorum": n}).quorum == n
    for wrong in (quorum - 1, n + 1, 0):
        with pytest.raises(InputError, match="witness_quorum"):
            draft({**content, "witness_quorum": wrong})
    del content["witness_quorum"]
    assert draft(content).quorum == quorum  # a treaty from before there was the field


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def test_the_bundle_carries_the_last_head_as_everybody_cosigned_it(good: Any) -> None:
    bundle, treaty = Tampered(good.run.evidence, good.world), good.world.treaty
    note = bundle.files["log/checkpoint.txt"].decode()
    assert set(cosigners(note, treaty.witnesses)) == set(good.world.homes)
    assert "cosigned by 4 of 4 parties" in verify(good.run.evidence).checks[4].detail
    size = int(note.split("\n")[1])
    (told,) = [data for kind, data in good.events if kind == "log-cosigned"]
    assert told == {"size": size, "by": sorted(good.world.homes), "missing": [], "quorum": 3}
    # The server and every node keep the newest head that a quorum has cosigned; nodes were shown that of the last sum.
    coordinator = treaty.coordinator
    assert (good.world.server / "log-cosigned").read_text() == note
    for home in good.world.homes.values():
        shown = (home / "log-head.cosigned").read_text()
        assert len(cosigners(shown, treaty.witnesses)) == treaty.quorum
        assert open_checkpoint(shown, coordinator.origin, coordinator.signing_key).size < size


def lying(play: Rehearsal, victim: str) -> None:
    """From set-up on one node is shown a history of its own."""
    case, honest = play.case, play.case.keys_request
    other = replace(case, log=other_history(play), heads=case.heads, log_cosigned=None, batches=[], sums=[])
    case.keys_request = lambda silo, *rest: (other.keys_request if silo == victim else honest)(silo, *rest)  # type: ignore[method-assign]


def test_a_node_that_is_shown_another_log_is_missed_and_finds_out(world: World) -> None:
    play = Rehearsal(world, make_draft(rounds=1, trip_seconds=0.3))
    lying(play, VICTIM)
    report = verify(conduct(play.grid, play.case))
    assert all(VICTIM not in silos for silos in report.survivors.values())
    assert "cosigned by 3 of 4 parties" in report.checks[4].detail
    assert play.spent(VICTIM) == 0.0
    # At the end it was asked to cosign the others' log: it keeps both heads, and takes part in nothing more.
    assert len(list(play.home(VICTIM).glob("log-head.refused-*.json"))) == 1
    said = play.ask(VICTIM, m.WitnessRequest(log=play.case.head(VICTIM)))
    assert said.refusal is not None and said.refusal.code == "LOG_CONTRADICTED"


def test_a_later_split_opens_no_sum_at_the_node_that_sees_it(world: World) -> None:
    """In round 2 one node is shown an entry of its own, and the server takes its vector all the same."""
    play = Rehearsal(world, make_draft(rounds=1, trip_seconds=0.3))
    case, honest, take = play.case, play.case.head, play.case.cosigned.take
    lies: list[m.LogHead] = []

    def head(silo: str) -> m.LogHead:
        if silo == VICTIM and len(case.sums) == 1 and not lies:
            other = other_log(play)
            note, seen = other.checkpoint(case.origin, case.key), case.heads[VICTIM]
            proof = [b64(h) for h in other.consistency_proof(seen)]
            lies.append(m.LogHead(note=note, since=seen, proof=proof, history=history_of(other, seen)))
            return lies[0]
        return honest(silo)

    def taken(silo: str, size: int, line: str) -> None:
        if silo != VICTIM or not lies:
            take(silo, size, line)

    case.head, case.cosigned.take = head, taken  # type: ignore[method-assign]
    report = verify(conduct(play.grid, case))
    assert [VICTIM in report.survivors[number] for number in (1, 2, 3)] == [True, True, False]
    refused = [details["code"] for action, details in play.journal(VICTIM) if action == "refused"]
    # It answers for no sum while the others have not cosigned its head; at the end it finds the fork.
    assert refused[0] == "NO_QUORUM" and refused[-1] == "VERIFICATION"
    assert len(list(play.home(VICTIM).glob("log-head.refused-*.json"))) == 1


def other_log(play: Rehearsal) -> AuditLog:
    """The log so far, and one entry that nobody else is shown."""
    copy = play.world.root / "split.db"
    shutil.copy(play.world.server / "audit.db", copy)
    log = AuditLog(copy, play.case.origin)
    log.append("coordinator", "study.withdrawn", "x", {})
    return log


def test_without_a_quorum_at_the_end_there_is_no_bundle(world: World) -> None:
    deaf = {100, 101}
    play = Rehearsal(
        world,
        make_draft(rounds=1, trip_seconds=0.3),
        drop=lambda node, kind, _: node in deaf and kind == "query.witness",
    )
    with pytest.raises(
        Abandoned, match="cosigned by 2 parties' nodes, 3 must; missing: aster-music, birch-records"
    ):
        conduct(play.grid, play.case)
    assert not (play.case.out / "evidence.zip").exists()


def test_a_node_that_was_out_of_the_run_may_cosign_its_end(world: World) -> None:
    lost = lambda node, kind, _: node == 103 and kind in ("query.vector", "query.keys")
    play = Rehearsal(world, make_draft(rounds=1, trip_seconds=0.3), drop=lost)
    report = verify(conduct(play.grid, play.case))
    assert {len(silos) for silos in report.survivors.values()} == {3}
    assert "cosigned by 4 of 4 parties" in report.checks[4].detail


# ── both verifiers ───────────────────────────────────────────────────────────────────────────────


class Head:
    """The head of a bundle, to be put under other lines."""

    def __init__(self, bundle: Tampered) -> None:
        self.bundle = bundle
        note = bundle.files["log/checkpoint.txt"].decode()
        self.head = open_checkpoint(note, bundle.origin, bundle.key.public)
        self.parties = sorted(bundle.world.homes)

    def line(
        self, name: str, *, key: SigningKey | None = None, head: Checkpoint | None = None, time: int = TIME
    ) -> str:
        return cosign(head or self.head, name, key or self.bundle.silo_key(name), time)

    def under(self, *lines: str) -> str:
        return self.head.sign(self.bundle.origin, self.bundle.key) + "".join(lines)


def redated(line: str) -> str:
    """The same signature, another time before it."""
    dash, name, data = line.split()
    raw = bytearray(base64.b64decode(data))
    raw[11] ^= 1
    return f"{dash} {name} {base64.b64encode(bytes(raw)).decode()}\n"


LINES: dict[str, tuple[Callable[[Head], list[str]], str]] = {
    "nobody": (lambda h: [], "missing: aster-music, birch-records, cedar-sound, dune-media"),
    "too few": (lambda h: [h.line(p) for p in h.parties[:2]], "missing: cedar-sound, dune-media"),
    "one of them twice": (
        lambda h: [*(h.line(p) for p in h.parties[:2]), h.line(h.parties[0], time=TIME + 1)],
        "missing: cedar-sound, dune-media",
    ),
    "an unknown key": (
        lambda h: [*(h.line(p) for p in h.parties[:2]), h.line(h.parties[2], key=SigningKey.generate())],
        "missing: cedar-sound, dune-media",
    ),
    "a stranger": (
        lambda h: [*(h.line(p) for p in h.parties[:2]), h.line("mallory", key=SigningKey.generate())],
        "missing: cedar-sound, dune-media",
    ),
    "the coordinator as a witness": (
        lambda h: [*(h.line(p) for p in h.parties[:2]), h.line(h.bundle.origin, key=h.bundle.key)],
        "missing: cedar-sound, dune-media",
    ),
    "plain signatures": (
        lambda h: [h.head.sign(p, h.bundle.silo_key(p)).split("\n\n")[1] for p in h.parties],
        "missing: aster-music, birch-records, cedar-sound, dune-media",
    ),
    "a party with another's key": (
        lambda h: [
            *(h.line(p) for p in h.parties[:3]),
            h.line(h.parties[3], key=h.bundle.silo_key(h.parties[0])),
        ],
        "",
    ),
    "another head's": (
        lambda h: [
            *(h.line(p) for p in h.parties[:3]),
            h.line(h.parties[3], head=replace(h.head, size=h.head.size - 1)),
        ],
        "of dune-media",
    ),
    "another root's": (
        lambda h: [h.line(p, head=replace(h.head, root=b"r" * 32)) for p in h.parties],
        "of aster-music",
    ),
    "an altered time": (
        lambda h: [*(h.line(p) for p in h.parties[:3]), redated(h.line(h.parties[3]))],
        "of dune-media",
    ),
    "a time beyond all time": (
        lambda h: [*(h.line(p) for p in h.parties[:3]), h.line(h.parties[3], time=2**63)],
        "of dune-media",
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_both_verifiers_say_the_same_of_the_cosignatures(
    good: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, why = LINES[kind]
    bundle, treaty = Tampered(good.run.evidence, good.world), good.world.server / "treaty.json"
    head = Head(bundle)
    for lines, holds in (
        ([head.line(p) for p in head.parties[1:]], True),  # a quorum, one of the four missing
        (make(head), not why),
    ):
        bundle.files["log/checkpoint.txt"] = head.under(*lines).encode()
        path = bundle.write(tmp_path / "b.zip")
        try:
            verify(path, own_treaty=treaty)
            said = ""
        except FoedusError as error:
            said = error.message
        code = one_file.main([str(path), "--treaty", str(treaty)])
        out = capsys.readouterr().out
        failed = next((line for line in out.splitlines() if line.startswith("FAILS")), "")
        assert (said == "", code == 0) == (holds, holds), (said, failed)
        if not holds:
            assert "check 5 " in said and why in said and re.search(" 5 log ", failed) and why in failed

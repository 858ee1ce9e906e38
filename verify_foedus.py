"""A second, independent verifier of foedus' evidence, in one file, to be read in one sitting.

    python verify_foedus.py evidence.zip --treaty treaty.json [--witnessed-head log-head]

Offline; Python 3.11 or newer and its standard library; no line in common with foedus. A fault of foedus' own
`foedus verify` can't be a fault here, unless both misread docs/. Exits 0 only if every check holds, else 1.

What you trust: your own copy of the treaty, this file, your Python. Everything else is checked from scratch:
the order of this file is the order of the checks, 1 to 11; the tools they use (rules of documents, JSON, Ed25519,
hash tree, arithmetic of privacy and of models) follow behind them.

What no verifier can show from a bundle: that a silo's table was true, that a silo computed its part honestly,
when things happened, that noise was drawn well. See "What they can't show" in docs/for-officers.md.
"""

# fmt: off
# Laid out by hand, so that a check fits on a screen.

import argparse
import base64
import functools
import hashlib
import json
import math
import random
import re
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import pairwise, product
from pathlib import Path
from typing import Any

NAMED = ("treaty.json", "study.json", "approvals.json", "log/entries.jsonl", "log/checkpoint.txt", "keys.json",
         "rounds.jsonl", "receipts.json", "release/model.json", "release/metrics.json", "release/table.json", "lineage.jsonl")
MAX_FILE, MAX_TOTAL = 256 << 20, 512 << 20
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError)


class Failed(Exception):
    """A check does not hold, and why."""


def must(holds: bool, why: str) -> None:
    """The one way in which a check fails."""
    if not holds:
        raise Failed(why)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verify_foedus.py", description="Re-check a foedus evidence bundle.")
    parser.add_argument("bundle", type=Path, help="evidence.zip")
    parser.add_argument("--treaty", type=Path, required=True, help="your own copy of the treaty")
    parser.add_argument("--witnessed-head", type=Path, action="append", default=[], metavar="FILE",
                        help="a head of the server's log that you or your node kept (log-head); may be repeated")
    options = parser.parse_args(arguments)
    case, failed = Case(options.bundle, options.treaty, options.witnessed_head), False
    for number, check in enumerate(case.checks(), 1):
        name = f"{number:2} {check.__name__:9}"
        if failed:
            print(f"not reached {name}")
            continue
        try:
            print(f"holds       {name} {check()}")
        except Failed as why:
            failed = True
            print(f"FAILS       {name} {shown(str(why))}")
        except MALFORMED as why:
            failed = True
            print(f"FAILS       {name} malformed content: {shown(repr(why))}")
        except OSError as why:
            failed = True
            print(f"FAILS       {name} can't be read: {shown(str(why))}")
        except (MemoryError, EOFError, RuntimeError, zipfile.BadZipFile) as why:
            failed = True
            print(f"FAILS       {name} damaged, or too large: {shown(repr(why))}")
    print("DOES NOT HOLD" if failed else f"EVERYTHING HOLDS: {case.told}")
    return 1 if failed else 0


def shown(text: str) -> str:
    """Text from a bundle, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


class Case:
    """A bundle on its way through the checks; each leaves behind what the next ones need."""

    def __init__(self, bundle: Path, treaty: Path, heads: list[Path]) -> None:
        self.path, self.treaty_path, self.heads = bundle, treaty, heads
        self.told = ""

    def checks(self) -> list[Callable[[], str]]:
        return [self.bundle, self.treaty, self.study, self.approvals, self.log, self.keys, self.rounds,
                self.epsilon, self.release, self.receipts, self.witnessed]

    def bundle(self) -> str:  # 1
        """Proves: these are the files that the treaty's coordinator signed for, and nothing else is in the zip.
        Doesn't: that any of them is true; the other checks do. Of lineage.jsonl nothing else is checked at all.
        """
        own = document(self.treaty_path.read_bytes(), "your treaty")
        told = {"min_group": 10, "witness_quorum": None, "amends": None, **own["payload"]}
        self.t, self.treaty_digest = fits(told, TREATY, "your treaty"), digest(own)
        self.parties = {p["name"]: p["signing_key"] for p in self.t["parties"]}
        self.quorum = (len(self.parties) + self.t["colluders"]) // 2 + 1
        self.threshold, self.quorum = max(self.quorum, self.t["min_silos"]), self.t["witness_quorum"] or self.quorum
        must(self.path.stat().st_size <= MAX_TOTAL, "larger than a bundle may be")
        self.files = unzip(self.path)
        must("manifest.json" in self.files, "not an evidence bundle: no manifest.json")
        manifest = document(self.files.pop("manifest.json"), "manifest.json")
        self.by_coordinator(manifest, "evidence")
        listed = manifest["payload"]["files"]
        must(set(manifest["payload"]) == {"files"} and isinstance(listed, dict), "manifest: lists no files")
        for name in sorted(set(listed) | set(self.files)):
            must(name in self.files, f"{name} is missing")
            must(name in listed, f"{name} is not in the manifest")
            must(name in NAMED, f"{name} has no place in a bundle: no check looks at it")
            must(hashlib.sha256(self.files[name]).hexdigest() == listed[name], f"{name} was changed")
        return f"{len(listed)} files are those the coordinator signed for (lineage.jsonl: not looked into)"

    def treaty(self) -> str:  # 2
        """Proves: every party signed the treaty, and the bundle's is your own copy.
        Doesn't: who holds the keys in it. That you settled when you signed.
        """
        for what, data in (("your treaty", self.treaty_path.read_bytes()), ("treaty.json", self.file("treaty.json"))):
            found = document(data, what)
            must(found["kind"] == "treaty" and digest(found) == self.treaty_digest, f"{what} is not the one you hold")
            signers, alone = set(found["signatures"]), self.t["amends"] is None  # who left has signed an amendment, too
            must(signers == set(self.parties) or (not alone and signers > set(self.parties)),
                 f"{what} is not signed by all parties, and them alone")
            for name, key in self.parties.items():
                check_signed(found, "treaty", name, key)
        return f"signed by {len(self.parties)} parties; it is your own copy"

    def study(self) -> str:  # 3
        """Proves: a scientist of the treaty signed the study; the treaty permits its purpose, ε, δ, mode and noise,
        even if only the threshold of silos answers; and no sum of it can wrap around.
        Doesn't: that it is a good study.
        """
        found = document(self.file("study.json"), "study.json")
        self.s, self.digest = study_of(found), digest(found)
        self.author_key = one(self.t["scientists"], self.s["author"], "scientist of the treaty")["signing_key"]
        check_signed(found, "study", self.s["author"], self.author_key)
        must(self.s["treaty"] == self.treaty_digest, "it is under another treaty")
        privacy = self.s["privacy"]
        must(privacy["mode"] != "central" or "central" in self.t["unsafe"], "the treaty does not permit central noise")
        terms = [p for p in self.t["purposes"] if p["purpose"] == self.s["purpose"]]
        must(len(terms) == 1, f"the treaty does not permit the purpose {self.s['purpose']!r}")
        must(privacy["delta"] <= terms[0]["delta"], "δ is over the treaty's")
        must(privacy["epsilon"] <= terms[0]["epsilon"], "ε is over the treaty's")
        self.counts = self.s["task"] == "count"
        if self.counts:
            most = len(self.parties) * self.t["max_cohort"]
            must(self.t["min_group"] <= self.s["k"] <= most, f"k = {self.s['k']} is under the treaty's, or over all customers")
        self.tasks = tasks_of(self.s)
        self.plans = {task: plan_of(task, self.s, self.t) for task in set(self.tasks)}
        most = epsilon_of([self.event(n, self.threshold) for n in range(1, len(self.tasks) + 1)], privacy["delta"])
        must(most <= privacy["epsilon"] + 1e-9, f"its noise may cost ε = {most:.6f}, it declares {privacy['epsilon']:g}")
        return f"signed by {self.s['author']}; {self.s['purpose']}; ε ≤ {privacy['epsilon']:g}, {privacy['mode']} noise"

    def approvals(self) -> str:  # 4
        """Proves: when the run started every seat of the approval chain had signed for this very study, its purpose
        and ε, in force at that time; nobody approved their own, and nobody rejected it.
        Doesn't: the time itself, which is the server's word in its log; that no rejection was kept back.
        """
        self.read_log()
        started = [(i, e) for i, e in self.mine("run.started") if e["details"]["run"] == self.run]
        must(len(started) == 1, f"the log has {len(started)} starts of this run")
        self.started, moment = started[0][0], instant(started[0][1]["time"])
        filled: set[tuple[str, str | None]] = set()
        given = parse(self.file("approvals.json"), "approvals.json")
        for found in map(envelope, given):
            told = fits(found["payload"], APPROVAL, "approval")
            name = told["approver"]
            must((told["treaty"], told["study"]) == (self.treaty_digest, self.digest), f"{name} approved something else")
            who = one(self.t["approvers"], name, "approver of the treaty")
            must((who["level"], who["party"]) == (told["level"], told["party"]), f"{name} has another seat")
            check_signed(found, "approval", name, who["signing_key"])
            must(name != self.s["author"] and who["signing_key"] != self.author_key, f"{name} approved their own study")
            must(told["decision"] == "approve", f"{name} rejected the study")
            in_force = instant(told["time"]) <= moment + timedelta(minutes=5) and moment < instant(told["expires"])
            if in_force and told["purpose"] == self.s["purpose"] and told["epsilon"] >= self.s["privacy"]["epsilon"]:
                filled.add((told["level"], told["party"]))
        seats = [(level, party) for level in self.t["approval_chain"]
                 for party in (self.parties if level == "partner" else [None])]
        lacking = [f"{level} {party or ''}".strip() for level, party in seats if (level, party) not in filled]
        must(not lacking, f"not approved, when the run started, by: {', '.join(lacking)}")
        self.seats = len(seats)
        return f"{len(seats)} seats filled by signature ({', '.join(self.t['approval_chain'])}); none by the author"

    def log(self) -> str:  # 5
        """Proves: the log hashes (RFC 6962) to a head that the coordinator signed; in it stand the study's
        submission, an approval for every seat, then the run's start, in this order; nobody took theirs back before the end. So many parties' nodes have cosigned
        that head that any two such groups share an honest one (treaty: witness_quorum), so it is no second history.
        Doesn't: that nobody was shown one before that; checks 10 and 11 do, as far as receipts and kept heads reach.
        """
        self.size, root, self.cosigned = self.open_head(self.file("log/checkpoint.txt"))
        must(self.size == len(self.lines), f"the head is of {self.size} entries, the bundle has {len(self.lines)}")
        self.tree = Tree(self.lines)
        must(self.tree.root(self.size) == root, "the entries do not hash to the signed head: one was changed")
        submitted, approved = ([i for i, _ in self.mine(a)] for a in ("study.submitted", "study.approved"))
        must(bool(submitted) and len(approved) >= self.seats, "the log lacks the submission, or approvals")
        before = [i for i in approved if i < self.started]  # a second approver of a seat may come later
        must(len(before) >= self.seats and submitted[0] < before[0], "submitted, approved, started: not in this order")
        done = [i for a in ("round.summed", "released") for i, e in self.mine(a) if e["details"]["run"] == self.run]
        must(all(i > max(done, default=0) for i, _ in self.mine("study.rejected")),
             "an approver has taken back their approval, and yet it went on or was released")
        missing = ", ".join(sorted(set(self.parties) - set(self.cosigned)))
        must(len(self.cosigned) >= self.quorum,
             f"the head is cosigned by {len(self.cosigned)} parties, {self.quorum} must; missing: {missing}")
        return f"{self.size} entries hash to the signed head; order holds; cosigned by: {', '.join(self.cosigned)}"

    def keys(self) -> str:  # 6
        """Proves: every silo signed the keys it used, for this treaty, study, run and batch of rounds.
        Doesn't: that the private halves were kept private.
        """
        self.contexts: dict[str, dict[str, Any]] = {}
        count = 0
        for batch in parse(self.file("keys.json"), "keys.json"):
            context = fits(batch, {"context": CONTEXT, "keys": list}, "keys")["context"]
            must((context["treaty"], context["study"], context["run"]) == (self.treaty_digest, self.digest, self.run),
                 "keys of another treaty, study or run")
            silos: dict[str, str] = {}
            for found in map(envelope, batch["keys"]):
                told = fits(found["payload"], KEYS, "keys")
                silo = told["silo"]
                must(silo in self.parties, f"{silo} is no party")
                check_signed(found, "secure-sum-keys", silo, self.parties[silo])
                must(canonical(told["context"]) == canonical(context), f"keys of {silo}: made for something else")
                for name in ("mask_keys", "seed_commitments"):
                    must(len(told[name]) == len(context["rounds"]), f"keys of {silo}: not one a round")
                    must(all(len(unb64(k)) == 32 for k in told[name]), f"keys of {silo}: malformed")
                must(len(unb64(told["share_key"])) == 32, f"keys of {silo}: malformed")
                must(silo not in silos, f"{silo} signed two sets of keys for one batch")
                silos[silo] = digest(found)
                count += 1
            name = digest({"kind": "secure-sum-context", "payload": context})
            must(name not in self.contexts, "a batch occurs twice")
            self.contexts[name] = {"rounds": context["rounds"], "silos": silos}
        return f"{count} sets of keys in {len(self.contexts)} batches, each signed by its silo for this run"

    def rounds(self) -> str:  # 7
        """Proves: for every round, at least threshold many silos signed the header of a vector of the
        study's shape, worked out from the model shown here; threshold many signed that they opened the sum over exactly
        these silos; and the sum shown here is the one in the log.
        Doesn't: that the sum is that of the vectors (they are masked): the receipts of check 10 say so.
        """
        logged = {e["details"]["round"]: e["details"]["sum"] for _, e in self.mine("round.summed")
                  if e["details"]["run"] == self.run}
        self.survivors: dict[int, list[str]] = {}
        self.totals: dict[int, list[int]] = {}
        self.sent: dict[int, tuple[float, ...]] = {}
        for line in self.file("rounds.jsonl").splitlines():
            record = fits(parse(line, "rounds.jsonl"), ROUND, "rounds.jsonl")
            n, survivors, total = record["round"], record["survivors"], record["total"]
            must(1 <= n <= len(self.tasks) and n not in self.survivors, f"round {n}: twice, or not of this study")
            must(len(set(survivors)) == len(survivors) >= self.threshold,
                 f"round {n}: {len(survivors)} silos, {self.threshold} are needed")
            spoken = record["transcript"]
            uploads = self.statements(spoken["uploads"], "secure-sum-upload", n, UPLOAD)
            answers = self.statements(spoken["answers"], "secure-sum-answer", n, ANSWER)
            confirmed = self.statements(spoken["confirmations"], "secure-sum-confirm", n, CONFIRM)
            must(set(uploads) == set(survivors), f"round {n}: the uploads are not those of the survivors")
            must(len(answers) >= self.threshold and set(answers) <= set(survivors), f"round {n}: too few answers")
            must(all(a["survivors"] == names(survivors) for a in [*answers.values(), *confirmed.values()]),
                 f"round {n}: the silos were told different survivors")
            must(all(a["answering"] == names([] if confirmed else answers) for a in answers.values()),
                 f"round {n}: the silos were told that others answer")
            told = {tuple(s[k] for k in ("context", "topology", "participants")) for s in uploads.values()}
            must(len(told) == 1, f"round {n}: the silos masked with different participants")
            model = unb64(record["model"])
            plan = self.plans[self.tasks[n - 1]]
            shape = (plan["dimension"], plan["bits"], self.tasks[n - 1], hashlib.sha256(model).hexdigest())
            must(all((u["dimension"], u["bits"], u["task"], u["model"]) == shape for u in uploads.values()),
                 f"round {n}: vectors of another shape than the study's, or from another model than the one shown")
            must(len(total) == plan["dimension"], f"round {n}: the sum has another length")
            must(logged.get(n) == sum_digest(total), f"round {n}: the sum is not the one in the log")
            self.survivors[n], self.totals[n] = survivors, total
            self.sent[n] = struct.unpack(f"<{len(model) // 8}d", model)
        must(bool(self.survivors) and max(self.survivors) == len(self.tasks), "the last round of the study is not there")
        smallest = min(map(len, self.survivors.values()))
        return f"{len(self.survivors)} sums over {smallest} or more silos; every upload and answer signed"

    def epsilon(self) -> str:  # 8
        """Proves: what the rounds that took place cost a customer, from their noise and the silos that were in them,
        by the closed form of docs/protocols/accounting.md §1–2, is within study and treaty.
        Doesn't: need a numerical accountant. All sums of a study are discrete Gaussians; anything else is refused.
        """
        events = [self.event(n, len(silos)) for n, silos in self.survivors.items()]
        self.e, allowed = epsilon_of(events, self.s["privacy"]["delta"]), self.s["privacy"]["epsilon"]
        must(self.e <= allowed + 1e-9, f"ε = {self.e:.6f} is over the study's {allowed:g}")
        self.told = f"ε = {self.e:.4f} at δ = {self.s['privacy']['delta']:g} a customer, {self.s['privacy']['mode']} noise"
        return f"ε = {self.e:.6f} recomputed from {len(events)} sums; nothing left out; allowed {allowed:g}"

    def release(self) -> str:  # 9
        """Proves: every model the nodes were sent, and the released model and metrics, follow from the sums by the
        study's own arithmetic; ε and δ claimed are those recomputed; releases are signed, logged, and permitted.
        Doesn't: that the sums are right (7 and 10), or that the model is of use.
        """
        if self.counts:
            return self.released_table()
        state, number, due = State(self.s), 1, set[int]()
        while True:
            due.add(number)
            must(number in self.totals, f"round {number} is due by the sums before it, and is not there")
            close(self.sent[number], [*state.weights, *state.learned], f"the model that round {number} was sent")
            if number == len(self.tasks):
                break
            state.take(self.tasks[number - 1], self.totals[number], len(self.survivors[number]))
            number = len(self.tasks) if state.stopped else number + 1
        must(due == set(self.totals), "rounds were run after training was over")
        metrics = metrics_of(self.totals[number], self.s, len(self.survivors[number]))
        logged = {e["details"]["file"]: e["details"] for _, e in self.mine("released") if e["details"]["run"] == self.run}
        must("release/table.json" not in self.files and "table.json" not in logged, "a table, released by a study that trains")
        shown = []
        for what in ("model", "metrics"):
            name = f"release/{what}.json"
            if not self.s["release"][what]:
                must(name not in self.files and f"{what}.json" not in logged, f"{name}: against the release rule")
                continue
            shown.append(what)
            copied = ("purpose", "table", "model", "features", "scaling", "label") if what == "model" else ()
            numbers = {"learned", "weights"} if what == "model" else {"metrics"}
            told = self.released(what, {k: self.s[k] for k in copied}, numbers, logged)
            if what == "model":
                close(told["weights"], state.weights, f"{name}: the weights")
                close(told["learned"], state.learned, f"{name}: the scales")
                continue
            must(set(told["metrics"]) == set(metrics), f"{name}: other metrics than the sums give")
            for key, value in metrics.items():
                claimed = told["metrics"][key]
                if key == "roc":
                    must(all(len(point) == 2 for point in claimed), f"{name}: roc")
                    claimed = [x for point in claimed for x in point]
                close(claimed if key == "roc" else [claimed], value, f"{name}: {key}")
        return f"every model sent is what the sums give; released and recomputed: {', '.join(shown) or 'nothing'}"

    def released(self, what: str, copied: dict[str, Any], more: set[str], logged: dict[str, Any]) -> dict[str, Any]:
        """A release's content: signed by the coordinator, in the log, of this run, at the ε recomputed, with these fields."""
        name, privacy = f"release/{what}.json", self.s["privacy"]
        found = document(self.file(name), name)
        self.by_coordinator(found, "release")
        told, entry = found["payload"], logged.get(f"{what}.json", {})
        must(entry.get("digest") == digest(found), f"{name} is not the release in the log")
        expected = {"study": self.digest, "run": self.run, "what": what, "mode": privacy["mode"], "delta": privacy["delta"]}
        expected["per"] = {
            "unit": "customer", "partners": self.t["overlap"]["max_partners_per_customer"],
            "budget": next(p for p in self.t["purposes"] if p["purpose"] == self.s["purpose"]),
        }
        expected |= copied
        must(set(told) == set(expected) | more | {"epsilon"}, f"{name}: other fields than a release has")
        for key, value in expected.items():
            must(canonical(told[key]) == canonical(value), f"{name}: its {key} is not the study's")
        for claimed in (told["epsilon"], entry["epsilon"]):
            close([claimed], [self.e], f"{name}: the ε it claims", 1e-6)
        return told  # type: ignore[no-any-return]

    def released_table(self) -> str:
        """Of a counting study check 9 proves: exactly those cells are shown whose noisy count is (k − 1)·m and a margin
        or more, so that any holds fewer than k people with a probability of 10⁻⁶ at most; their numbers are the sum's.
        Doesn't: that silos counted honestly. The noisy sums of suppressed cells are in this bundle: do not pass it on.
        """
        must(set(self.totals) == {1} and self.sent[1] == (), "a counting study has one sum, and sends no model")
        logged = {e["details"]["file"]: e["details"] for _, e in self.mine("released") if e["details"]["run"] == self.run}
        other = {"model.json", "metrics.json"}
        must(not other & set(logged) and not {f"release/{n}" for n in other} & set(self.files), "a model, released by a count")
        told = self.released("table", {k: self.s[k] for k in ("purpose", "count")}, {"table"}, logged)["table"]
        ours = table_of(self.totals[1], self.s, len(self.survivors[1]), self.t["overlap"]["max_partners_per_customer"])
        must(set(told) == set(ours) and len(told["cells"]) == len(ours["cells"]), "the table has other fields or cells")
        for theirs, cell in zip(told["cells"], ours["cells"], strict=True):
            where = " / ".join(cell["cell"])
            must(theirs.get("count") is None or cell["count"] is not None,
                 f"the cell {where} is shown, and does not pass the gate of k = {self.s['k']}")
            must(set(theirs) == set(cell) and theirs["cell"] == cell["cell"], f"the cell {where}: other fields or labels")
            must((theirs["count"] is None) == (cell["count"] is None), f"the cell {where} passes the gate, and is not shown")
            for key in set(cell) - {"cell"} if cell["count"] is not None else ():
                close([theirs[key]], [cell[key]], f"the {key} of the cell {where}")
        must((told["by"], told["of"]) == (ours["by"], ours["of"]), "the table names other columns")
        for key in ("k", "under_k", "least", "noise", "silos", "shown"):
            close([told[key]], [ours[key]], f"the table's {key}")
        return f"{ours['shown']} of {len(ours['cells'])} cells pass the gate of k = {self.s['k']}; the table recomputed: equal"

    def receipts(self) -> str:  # 10
        """Proves: threshold or more nodes signed what the rounds cost, no less than recomputed here; they saw a beginning
        of this very log; every sum is one that more nodes than may collude say they checked (central noise: were shown);
        and no head of any node's ledger in the log goes back behind an earlier one. Each names, for every round, the entry of
        its own log with the round's cohort. Doesn't: show that entry, which stays at the silo and is for its customers'
        proofs; anything of nodes without a receipt: they are named, ask them.
        """
        logged = {e["details"]["silo"]: e["details"] for _, e in self.mine("receipt") if e["details"]["run"] == self.run}
        seen: set[str] = set()
        checked: dict[int, set[str]] = {n: set() for n in self.survivors}
        delta = self.s["privacy"]["delta"]
        for found in map(envelope, parse(self.file("receipts.json"), "receipts.json")):
            told = fits(found["payload"], RECEIPT, "receipt")
            silo = told["silo"]
            must(silo in self.parties and silo not in seen, f"{silo}: no party, or two receipts")
            check_signed(found, "receipt", silo, self.parties[silo])
            must((told["treaty"], told["study"], told["run"]) == (self.treaty_digest, self.digest, self.run),
                 f"the receipt of {silo} is of another treaty, study or run")
            seen.add(silo)
            entry = logged.get(silo, {})
            must(entry.get("digest") == digest(found), f"the receipt of {silo} is not the one in the log")
            must(canonical(entry["ledger"]) == canonical(told["ledger"]), f"{silo}: another head of its ledger in the log")
            size = told["log"]["size"]
            must(0 < size <= self.size and self.tree.root(size).hex() == told["log"]["root"],
                 f"{silo} saw another log than this one: the server showed two histories")
            for n, sha in told["cohorts"].items():
                must(n in map(str, range(1, len(self.tasks) + 1)), f"{silo} states a cohort of a round there is not")
                fits(sha, DIGEST, f"{silo}: cohort of round {n}")
            for entry in told["rounds"]:
                n = entry["round"]
                must(str(n) in told["cohorts"], f"{silo} states round {n}, and not its cohort")
                must(type(n) is int and silo in self.survivors.get(n, []), f"{silo} states a round it had no part in")
                mine = {"round": n, "task": self.tasks[n - 1], "event": "distributed_discrete_gaussian"}
                event = self.event(n, len(self.survivors[n]))
                must(set(entry) == set(mine) | set(event) and all(entry[k] == v for k, v in mine.items()), f"{silo}: round {n}")
                close([entry[k] for k in event], list(event.values()), f"{silo} and the transcript disagree: round {n}", 1e-9)
            # A node that was restarted has forgotten its earlier rounds, not what they cost: its ledger has it.
            part = [self.event(n, len(s)) for n, s in self.survivors.items() if silo in s]
            must(told["delta"] == delta, f"{silo} states its cost at another δ")
            must(told["epsilon"] + 1e-9 >= epsilon_of(part, delta), f"{silo}'s ledger says less than its rounds cost")
            for n, sha in told["sums"].items():
                must(n.isdecimal() and int(n) in self.totals, f"{silo} checked a round there was not")
                must(sha == sum_digest(self.totals[int(n)]), f"{silo} saw another sum of round {n}: it was altered afterwards")
                checked[int(n)].add(silo)
        heads = check_ledgers(self.stated, self.parties)
        must(len(seen) >= self.threshold, f"{len(seen)} receipts, {self.threshold} are needed")
        least = min(map(len, checked.values()))
        must(least > self.t["colluders"], f"a sum was checked by {least}; more than {self.t['colluders']} must")
        word = "shown, and checked by nobody, to" if self.s["privacy"]["mode"] == "central" else "checked by"
        silent = ", ".join(sorted(set(self.parties) - seen))
        return (f"{len(seen)} nodes signed what they paid and saw this log; every sum {word} {least} or more; "
                f"{heads} ledger heads in order; without a receipt: {silent or 'nobody'}")

    def witnessed(self) -> str:  # 11
        """Proves: the heads you kept are of this very log, at an earlier size: nothing before them was changed since.
        Doesn't: without a kept head, anything. Keep one of every bundle and of your node (its file log-head).
        """
        for path in self.heads:
            size, root, _ = self.open_head(path.read_bytes())
            must(size <= self.size, f"{path}: of {size} entries, the bundle ends at {self.size}: take an older one")
            must(self.tree.root(size) == root, f"{path}: this log does not continue the head you kept: it was rewritten")
        return f"{len(self.heads)} kept heads are continued by this log" if self.heads else "no kept head was given"

    # ── what several checks share ──

    def file(self, name: str) -> bytes:
        must(name in self.files, f"the bundle has no {name}")
        return self.files[name]

    def by_coordinator(self, found: dict[str, Any], kind: str) -> None:
        coordinator = self.t["coordinator"]
        check_signed(found, kind, coordinator["origin"], coordinator["signing_key"])

    def event(self, n: int, survivors: int) -> dict[str, float]:
        return event_of(self.plans[self.tasks[n - 1]], survivors, self.s["privacy"]["mode"], self.t)

    def read_log(self) -> None:
        """One pass over the log: entries about this study, and the ledger heads of all studies."""
        self.lines = self.file("log/entries.jsonl").splitlines()
        keys = parse(self.file("keys.json"), "keys.json")
        must(isinstance(keys, list) and bool(keys), "keys.json is empty")
        self.run = keys[0]["context"]["run"]
        self.about: list[tuple[int, dict[str, Any]]] = []
        self.stated: list[tuple[str, Any]] = []
        for i, line in enumerate(self.lines):
            entry = parse(line, f"log entry {i}")
            action, details = entry["action"], entry["details"]
            if entry["subject"] == self.digest:
                self.about.append((i, entry))
            if action == "run.set-up" and isinstance(details.get("ledgers"), dict):
                self.stated += details["ledgers"].items()
            elif action == "receipt" and isinstance(details.get("silo"), str) and "ledger" in details:
                self.stated.append((details["silo"], details["ledger"]))

    def mine(self, action: str) -> list[tuple[int, dict[str, Any]]]:
        return [(i, e) for i, e in self.about if e["action"] == action]

    def statements(self, said: list[Any], kind: str, n: int, shape: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What silos signed in a round, each once, each among those who advertised keys for it."""
        found: dict[str, dict[str, Any]] = {}
        for statement in map(envelope, said):
            told = fits(statement["payload"], shape, kind)
            silo, context = told["silo"], self.contexts.get(told["context"])
            must(silo in self.parties, f"round {n}: {silo} is no party")
            check_signed(statement, kind, silo, self.parties[silo])
            must(context is not None and told["round"] == n and n in context["rounds"] and silo in context["silos"],
                 f"round {n}: a statement of {silo} about another round or run, or without keys")
            must(silo not in found, f"round {n}: {silo} speaks twice")
            found[silo] = told
        return found

    def open_head(self, note: bytes) -> tuple[int, bytes, list[str]]:
        """Size, root and cosigning parties of a signed head (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature)."""
        must(len(note) <= 1 << 22, "head: too long")
        body, separator, tail = note.decode().rpartition("\n\n")
        lines, text = body.split("\n"), (body + "\n").encode()
        must(bool(separator) and tail.endswith("\n") and len(lines) == 3, "head: three lines, an empty one, signatures")
        must(lines[0] == self.t["coordinator"]["origin"], "head: of another log")
        must(re.fullmatch(r"0|[1-9][0-9]{0,17}", lines[1], re.ASCII) is not None, "head: its size is no number")
        root = unb64(lines[2])
        must(len(root) == 32 and base64.b64encode(root).decode() == lines[2], "head: its root is no hash")
        known = {**self.parties, lines[0]: self.t["coordinator"]["signing_key"]}
        signers = set()
        for line in tail[:-1].split("\n"):
            found = re.fullmatch(r"— ([^\s+]+) (\S+)", line)
            name, data = (found[1], unb64(found[2])) if found else ("", b"")
            must(len(data) > 4, "head: a malformed signature line")
            key = unb64(known.get(name, ""))
            for kind, skip in ((b"\x01", 4), (b"\x04", 12)):  # plain, and cosignature/v1 with its time
                if name in known and data[:4] == hashlib.sha256(name.encode() + b"\n" + kind + key).digest()[:4]:
                    time = b"cosignature/v1\ntime %d\n" % int.from_bytes(data[4:12], "big") if skip == 12 else b""
                    must(not time or data[4] < 128, f"head: the signature of {name} is dated beyond all time")
                    must(verify(key, data[skip:], time + text), f"head: the signature of {name} does not hold")
                    signers.add((name, skip))
        must((lines[0], 4) in signers, "head: the coordinator has not signed it with the treaty's key")
        return int(lines[1]), root, sorted({name for name, skip in signers if skip == 12} - {lines[0]})


def check_ledgers(stated: list[tuple[str, Any]], parties: dict[str, str]) -> int:
    """Each silo's stated ledger heads are signed, and in the order of the log as the silo saw it none goes back."""
    heads: dict[str, list[tuple[int, int, int, str]]] = {}
    for silo, told in stated:
        must(silo in parties, f"a ledger head of {silo}, who is no party")
        told = fits(told, {**LEDGER, "signature": str}, f"ledger head of {silo}")
        payload = {"silo": silo} | {k: told[k] for k in LEDGER}
        signed = {"kind": "ledger-head", "payload": payload, "signatures": {silo: told["signature"]}}
        check_signed(signed, "ledger-head", silo, parties[silo])
        heads.setdefault(silo, []).append((told["log"], told["write_offs"], told["size"], told["hash"]))
    for silo, found in heads.items():
        found.sort()
        why = f"{silo}'s ledger went back: ask its officer whether an old copy of the node was restored"
        for one_, next_ in pairwise(found):
            must(one_[1:3] <= next_[1:3], why)
            must(one_[1:3] != next_[1:3] or one_[3] == next_[3], why)
    return len(stated)


# ── zip, JSON, signed documents ──


def unzip(path: Path) -> dict[str, bytes]:
    """A zip's files in memory: plain names, each once, none larger than it may be. Nothing is written to disk."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        must(len(entries) <= 200, "more files than a bundle may have")
        must(len({e.filename for e in entries}) == len(entries), "a file occurs twice")
        must(sum(e.file_size for e in entries) <= MAX_TOTAL, "larger than a bundle may be")
        files = {}
        for entry in entries:
            must(re.fullmatch(r"[a-z]+(/[a-z]+)?\.[a-z]+", entry.filename) is not None, f"a path trick: {entry.filename}")
            must(entry.orig_filename == entry.filename, f"a path trick: {entry.orig_filename}")
            must(stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG), f"not a plain file: {entry.filename}")
            must(entry.file_size <= MAX_FILE, f"{entry.filename}: larger than a file may be")
            try:
                with archive.open(entry) as stream:
                    files[entry.filename] = stream.read(entry.file_size + 1)
            except Exception as error:  # zlib, lzma and bz2 each have errors of their own
                raise Failed(f"{entry.filename}: damaged ({error!r})") from error
            must(len(files[entry.filename]) == entry.file_size, f"{entry.filename}: damaged")
        return files


def parse(data: bytes, what: str) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN or infinity, no whole number beyond 2^53."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        must(len(made) == len(found), f"{what}: a key twice")
        return made

    def constant(name: str) -> Any:
        raise Failed(f"{what}: {name} is not JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except ValueError as error:
        raise Failed(f"{what}: not JSON ({error})") from error
    return value


def canonical(value: Any) -> bytes:
    """RFC 8785: the one spelling of a JSON value, which is what is signed."""
    out: list[str] = []

    def write(v: Any) -> None:
        if v is None or v is True or v is False:
            out.append({None: "null", True: "true", False: "false"}[v])
        elif type(v) is str:
            out.append(json.dumps(v, ensure_ascii=False))
        elif type(v) is int:
            must(abs(v) < 2**53, "a whole number of 2^53 or more")
            out.append(str(v))
        elif type(v) is float:
            out.append(shortest(v))
        elif type(v) is dict:
            for i, key in enumerate(sorted(v, key=lambda k: k.encode("utf-16-be"))):
                out.append(("," if i else "{") + json.dumps(key, ensure_ascii=False) + ":")
                write(v[key])
            out.append("}" if v else "{}")
        elif type(v) in (list, tuple):
            out.append("[")
            for i, item in enumerate(v):
                out.append("," if i else "")
                write(item)
            out.append("]")
        else:
            raise Failed(f"a {type(v).__name__} is not JSON")

    write(value)
    return "".join(out).encode()


def shortest(x: float) -> str:
    """A float as ECMAScript writes it: Python's shortest digits, with the point where JavaScript puts it."""
    must(math.isfinite(x), "a number that is not finite")
    if x == 0:
        return "0"
    mantissa, _, exponent = repr(abs(x)).partition("e")
    before, _, after = mantissa.partition(".")
    all_digits = before + after
    digits = all_digits.strip("0")
    point = len(before) + int(exponent or 0) - (len(all_digits) - len(all_digits.lstrip("0")))
    if 0 < point <= 21:
        made = digits.ljust(point, "0") if len(digits) <= point else f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        made = "0." + "0" * -point + digits
    else:
        made = digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{point - 1:+d}"
    return ("-" if x < 0 else "") + made


def envelope(value: Any) -> dict[str, Any]:
    """A signed document: kind, payload, and signatures by name."""
    must(isinstance(value, dict) and set(value) == {"kind", "payload", "signatures"}, "not a signed document")
    must(type(value["kind"]) is str and type(value["payload"]) is dict, "not a signed document")
    signatures = value["signatures"]
    must(type(signatures) is dict and all(type(s) is str for s in signatures.values()), "not a signed document")
    return value  # type: ignore[no-any-return]


def document(data: bytes, what: str) -> dict[str, Any]:
    return envelope(parse(data, what))


def covered(found: dict[str, Any]) -> bytes:
    """What a signature over a document covers: its kind, so that it passes for no other, and its payload."""
    kind: str = found["kind"]
    return b"foedus/v1/" + kind.encode() + b"\n" + canonical(found["payload"])


def digest(found: dict[str, Any]) -> str:
    return hashlib.sha256(covered(found)).hexdigest()


def check_signed(found: dict[str, Any], kind: str, signer: str, key: str) -> None:
    must(found["kind"] == kind, f"a {kind} was expected, this is a {found['kind']}")
    must(signer in found["signatures"], f"{kind}: {signer} has not signed it")
    must(kind == "treaty" or len(found["signatures"]) == 1, f"{kind}: there are signatures on it that nobody checks")
    holds = verify(unb64(key), unb64(found["signatures"][signer]), covered(found))
    must(holds, f"{kind}: the signature of {signer} does not hold")


def unb64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise Failed("not base64") from error


def names(silos: Iterable[str]) -> str:
    """How silos sign a set of silos."""
    return hashlib.sha256("".join(f"\0{s}" for s in sorted(silos)).encode()).hexdigest()


def sum_digest(total: list[int]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(total)}q", *total)).hexdigest()


def instant(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    must(moment.tzinfo is not None, "a time without a zone")
    return moment


def one(people: list[dict[str, Any]], name: str, what: str) -> dict[str, Any]:
    found = [p for p in people if p["name"] == name]
    must(len(found) == 1, f"{name} is no {what}")
    return found[0]


class Tree:
    """The hash tree of RFC 6962 §2.1 over log lines, with its root at every size."""

    def __init__(self, lines: list[bytes]) -> None:
        self.edges: list[tuple[bytes, ...]] = [()]  # after each leaf: roots of the complete subtrees, largest first
        edge: list[bytes] = []
        for size, line in enumerate(lines):
            node = hashlib.sha256(b"\0" + line).digest()
            while size & 1:
                node, size = hashlib.sha256(b"\1" + edge.pop() + node).digest(), size >> 1
            edge.append(node)
            self.edges.append(tuple(edge))

    def root(self, size: int) -> bytes:
        if size == 0:
            return hashlib.sha256(b"").digest()
        *left, node = self.edges[size]
        for other in reversed(left):
            node = hashlib.sha256(b"\1" + other + node).digest()
        return node


# ── Ed25519 (RFC 8032 §5.1), verification only ──
# Accepts what OpenSSL (Python's `cryptography`) accepts: S < L, and R compared byte by byte with S·B − h·A, without
# cofactor. Stricter in one point: OpenSSL takes public keys of small order (for which anybody can sign) and keys
# spelt with y ≥ p or as −0; here they never verify.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of −1
Point = tuple[int, int, int, int]  # X, Y, Z, T: x = X/Z, y = Y/Z, xy = T/Z
NEUTRAL: Point = (0, 1, 1, 0)


def ready(p: Point) -> Point:
    """A point as it is best added: Y + X, Y − X, 2Z, 2dT."""
    return (p[1] + p[0]) % P, (p[1] - p[0]) % P, 2 * p[2] % P, 2 * D * p[3] % P


def add(p: Point, q: Point) -> Point:
    """p + q, q `ready` (Hisil, Wong, Carter, Dawson 2008; complete on this curve)."""
    x, y, z, t = p
    a, b, c, d = (y - x) * q[1] % P, (y + x) * q[0] % P, t * q[3] % P, z * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def decode(data: bytes) -> Point | None:
    """The point that 32 bytes spell in the one proper way, or None."""
    y, sign = int.from_bytes(data, "little") & (1 << 255) - 1, data[31] >> 7
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT % P
    if x * x % P != square or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def encode(p: Point) -> bytes:
    z = pow(p[2], -1, P)
    return (p[1] * z % P | (p[0] * z % P & 1) << 255).to_bytes(32, "little")


def multiples(p: Point, width: int) -> list[list[Point]]:
    """For each `width` bits of a scalar, the multiples of p they may ask for, ready to add."""
    table = []
    for _ in range(-(-256 // width)):
        row, step = [NEUTRAL], ready(p)
        for _ in range(2**width - 1):
            row.append(add(row[-1], step))
        table.append([ready(q) for q in row])
        p = add(row[-1], step)
    return table


@functools.cache
def base_multiples() -> list[list[Point]]:
    base = decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    return multiples(base or NEUTRAL, 8)


@functools.lru_cache(4096)
def key_multiples(key: bytes) -> list[list[Point]] | None:
    """Of −A; None if the key is malformed or of small order. A key signs many times: the table pays after five."""
    a = decode(key)
    if a is None:
        return None
    eight = a
    for _ in range(3):
        eight = add(eight, ready(eight))
    if eight[0] == 0:
        return None
    return multiples((P - a[0], a[1], 1, P - a[3]), 4)


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that of `message` by `key`."""
    if len(key) != 32 or len(signature) != 64:
        return False
    table, s = key_multiples(key), int.from_bytes(signature[32:], "little")
    if table is None or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    p = NEUTRAL
    for row, digit in zip(base_multiples(), s.to_bytes(32, "little"), strict=True):
        if digit:
            p = add(p, row[digit])
    for row in table:
        if h & 15:
            p = add(p, row[h & 15])
        h >>= 4
    return encode(p) == signature[:32]


# ── what documents must say: exactly these fields. What else foedus asks of a treaty and a study (ranges that nothing
# here rests on, names listed twice) its signers and every node have checked ──

def fits(value: Any, shape: Any, what: str) -> Any:
    """`value`, if it has this shape: a type, a set of words, a pattern, a list of one shape, fields, (shape, None)."""
    if isinstance(shape, dict):
        must(type(value) is dict, f"{what}: not an object")
        other = sorted(set(value) ^ set(shape))
        must(not other, f"{what}: fields that are missing or unknown: {', '.join(other)}")
        for name, inner in shape.items():
            fits(value[name], inner, f"{what}: {name}")
    elif isinstance(shape, list):
        must(type(value) is list, f"{what}: not a list")
        for item in value:
            fits(item, shape[0], what)
    elif isinstance(shape, tuple):
        _ = value is None or fits(value, shape[0], what)
    elif isinstance(shape, re.Pattern):
        must(type(value) is str and shape.fullmatch(value) is not None, f"{what}: malformed")
    elif isinstance(shape, set):
        must(type(value) is str and value in shape, f"{what}: none of {', '.join(sorted(shape))}")
    else:
        must(type(value) is shape or (shape is float and type(value) is int), f"{what}: not a {shape.__name__}")
    return value


NAME, DIGEST = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}"), re.compile("[0-9a-f]{64}")
LEVEL, TASKS = {"business", "dpo", "partner"}, ("statistics", "curvature", "train", "validate", "evaluate")
PERSON = {"name": NAME, "signing_key": str}
TREATY = {
    "name": str, "version": int, "parties": [{**PERSON, "node_key": str}],
    "coordinator": {"origin": str, "signing_key": str}, "scientists": [PERSON],
    "approvers": [{**PERSON, "level": LEVEL, "party": (NAME, None)}], "approval_chain": [LEVEL],
    "purposes": [{"purpose": str, "epsilon": float, "delta": float, "period": (str, None)}],
    "min_silos": int, "min_cohort": int, "max_cohort": int, "min_group": int, "colluders": int,
    "overlap": {"max_partners_per_customer": int, "attestation": str}, "retention_days": int, "unsafe": [{"central"}],
    "witness_quorum": (int, None), "amends": (DIGEST, None),
}
NUMBER = {"log": bool, "lower": (float, None), "upper": (float, None)}
FEATURES = {
    "name": {**NUMBER, "name": str}, "fill": {**NUMBER, "column": str, "fill": (float, None)},
    "levels": {"column": str, "levels": [str]},
}
LABELS = {
    "churn": {"kind": str, "horizon_days": int, "train_as_of": str, "test_as_of": str},
    "column": {"kind": str, "column": str, "positive": str, "negative": ([str], None)},
}
STUDY = {
    "title": str, "author": NAME, "purpose": str, "task": {"train"}, "treaty": DIGEST, "created": str, "nonce": str,
    "table": dict.fromkeys(("name", "customer", "date", "amount"), str), "label": dict, "features": [dict],
    "split": {"by": {"hash", "column"}, "salt": str, "train": float, "column": str}, "trip_seconds": float,
    "scaling": {"share": float, "cells": int, "unit": float, "limit": float, "tail": float, "margin": float},
    "model": {"kind": {"logistic_regression", "mlp"}, "hidden": int, "skip": bool, "seed": int},
    "training": {
        "optimiser": {"fixed_hessian", "adam"}, "rounds": int, "learning_rate": (float, None), "l2": float,
        "curvature_share": float, "curvature_clip": float, "clip": float, "class_weight": ({"balanced"}, None),
        "early_stopping": ({"every": int, "patience": int, "part": float, "share": float}, None),
    },
    "evaluation": {"bins": int, "lower": float, "upper": float}, "release": {"model": bool, "metrics": bool},
    "privacy": {
        "mode": {"distributed", "local", "central"}, "epsilon": float, "delta": float, "evaluation_share": float,
        **{f"scale_bits_{task}": int for task in TASKS}, **{f"sigma_{task}": int for task in TASKS},
    },
}
KEY = {
    "column": (str, None), "name": (str, None), "levels": ([str], None), "groups": (dict, None), "cuts": ([float], None),
    "other": (str, None),
}
MEASURED = {"column": (str, None), "name": (str, None), "lower": float, "upper": float}
COUNT_STUDY = {
    **{key: STUDY[key] for key in ("title", "author", "purpose", "treaty", "created", "nonce", "table", "trip_seconds")},
    "task": {"count"}, "k": int, "count": {"by": [KEY], "of": (MEASURED, None), "as_of": (str, None)},
    "privacy": {
        "mode": {"distributed", "local", "central"}, "epsilon": float, "delta": float, "scale_bits_count": int,
        "sigma_count": int,
    },
}
APPROVAL = {
    "study": DIGEST, "treaty": DIGEST, "approver": NAME, "level": LEVEL, "party": (NAME, None), "purpose": str,
    "epsilon": float, "decision": {"approve", "reject"}, "time": str, "expires": str,
}
CONTEXT = {"treaty": DIGEST, "study": DIGEST, "run": str, "batch": int, "rounds": [int]}
KEYS = {"context": CONTEXT, "silo": NAME, "share_key": str, "mask_keys": [str], "seed_commitments": [str]}
SAID = {"context": DIGEST, "round": int, "silo": NAME}
UPLOAD = {
    **SAID, "task": str, "topology": DIGEST, "participants": DIGEST, "dimension": int, "bits": int, "model": DIGEST,
    "vector": DIGEST, "check": str,
}
ANSWER = {**SAID, "survivors": DIGEST, "answering": DIGEST, "shares": DIGEST}
CONFIRM = {**SAID, "topology": DIGEST, "survivors": DIGEST}
SPOKEN = {"uploads": list, "confirmations": list, "answers": list}
ROUND = {"round": int, "survivors": [NAME], "total": [int], "model": str, "transcript": SPOKEN}
LEDGER = {"size": int, "hash": DIGEST, "write_offs": int, "log": int}
RECEIPT = {
    "silo": NAME, "treaty": DIGEST, "study": DIGEST, "run": str, "rounds": [dict], "epsilon": float, "delta": float,
    "sums": dict, "cohorts": dict, "ledger": {**LEDGER, "signature": str}, "log": {"size": int, "root": DIGEST},
}


def study_of(found: dict[str, Any]) -> dict[str, Any]:
    """A study's content. Sizes are bounded, so that nobody can keep this program busy for ever."""
    if found["payload"].get("task") == "count":
        return count_study_of(found)
    s: dict[str, Any] = fits(found["payload"], STUDY, "study")
    fits(s["label"], LABELS[s["label"]["kind"]], "study: label")
    for f in s["features"]:
        fits(f, FEATURES[next(kind for kind in FEATURES if kind in f)], "study: feature")
        must("levels" in f or f["upper"] is not None or not (f["log"] or f["lower"]), "study: bounds of a feature")
    sizes = ((s["training"]["rounds"], 500), (s["scaling"]["cells"], 4096), (s["model"]["hidden"], 1024),
             (s["evaluation"]["bins"], 1000), (len(s["features"]), 64))
    must(all(1 <= size <= most for size, most in sizes), "study: a size out of its range")
    must(all(4 <= s["privacy"][f"sigma_{task}"] < 2**30 for task in TASKS), "study: noise under 4 is not accounted for")
    must(all(0 <= s["privacy"][f"scale_bits_{task}"] <= 30 for task in TASKS), "study: a scale out of its range")
    must(0 < s["privacy"]["epsilon"] <= 100 and 0 < s["privacy"]["delta"] < 1e-3, "study: ε or δ out of its range")
    hessian = s["training"]["optimiser"] == "fixed_hessian"
    must(not hessian or s["model"]["kind"] == "logistic_regression", "study: that optimiser is not for that model")
    return s


def count_study_of(found: dict[str, Any]) -> dict[str, Any]:
    """The content of a study that counts."""
    s: dict[str, Any] = fits(found["payload"], COUNT_STUDY, "study")
    privacy, cells = s["privacy"], 1
    for key in s["count"]["by"]:
        must(sum(key[kind] is not None for kind in ("levels", "groups", "cuts")) == 1, "study: a key without its groups")
        labels = labels_of(key)
        must(len(labels) > 0 and len(set(labels)) == len(labels), "study: a key's label is there twice, or there is none")
        cells *= len(labels)
        must(cells <= 16384, "study: too many cells")
    must(cells >= 2 and s["k"] >= 2, "study: a table of one cell, or of single people")
    must(s["count"]["of"] is None or s["count"]["of"]["lower"] < s["count"]["of"]["upper"], "study: bounds")
    must(4 <= privacy["sigma_count"] < 2**30, "study: noise under 4 is not accounted for")
    must(0 <= privacy["scale_bits_count"] <= 30, "study: a scale out of its range")
    must(0 < privacy["epsilon"] <= 100 and 0 < privacy["delta"] < 1e-3, "study: ε or δ out of its range")
    return s


def labels_of(key: dict[str, Any]) -> list[str]:
    """The groups of one side of a table, in their order."""
    if key["cuts"] is not None:
        cuts = [f"{c:.12g}" for c in key["cuts"]]
        own = [f"< {cuts[0]}", *(f"{a} to < {b}" for a, b in pairwise(cuts)), f">= {cuts[-1]}"]
    elif key["levels"] is not None:
        own = list(key["levels"])
    else:
        own = sorted(key["groups"])
    return own if key["other"] is None else [*own, key["other"]]


def table_of(total: list[int], s: dict[str, Any], silos: int, partners: int) -> dict[str, Any]:
    """The table a noisy sum gives: counts of the cells that pass the gate, null for the others."""
    sides, of, privacy = [labels_of(key) for key in s["count"]["by"]], s["count"]["of"], s["privacy"]
    cells, scale = list(product(*sides)), 2.0 ** privacy["scale_bits_count"]
    noise = privacy["sigma_count"] * spread(privacy["mode"], silos)
    # Fewer than k people, at m partners each, count (k − 1)·m at most; noise passes the margin in any cell with P ≤ 10⁻⁶.
    least = math.ceil((s["k"] - 1) * partners * scale + noise * math.sqrt(2 * math.log(len(cells) / 1e-6)))
    made = []
    for place, labels in enumerate(cells):
        cell: dict[str, Any] = {"cell": list(labels), "count": None}
        if total[place] >= least:
            n = cell["count"] = total[place] / scale
            if of is not None:
                middle, half, summed = (of["lower"] + of["upper"]) / 2, (of["upper"] - of["lower"]) / 2, total[len(cells) + place] / scale
                at = min(max(summed / n, -1.0), 1.0)
                cell |= {"sum": middle * n + half * summed, "sum_noise": noise / scale * math.hypot(middle, half),
                         "mean": middle + half * at, "mean_noise": half * noise / scale / n * math.hypot(1, at)}
        made.append(cell)
    return {"by": [key["column"] or key["name"] for key in s["count"]["by"]], "of": of and (of["column"] or of["name"]),
            "k": s["k"], "under_k": 1e-6, "least": least / scale, "noise": noise / scale, "silos": silos,
            "shown": sum(cell["count"] is not None for cell in made), "cells": made}


# ── privacy: the shape of each sum, its noise, its cost (docs/protocols/accounting.md) ──


def inputs_of(s: dict[str, Any]) -> int:
    return sum(len(f["levels"]) - 1 if "levels" in f else 1 for f in s["features"])


def learned_of(s: dict[str, Any]) -> int:
    """How many features have their scale learned."""
    return sum("levels" not in f and f["upper"] is None for f in s["features"])


def parameters_of(s: dict[str, Any]) -> int:
    inputs, hidden = inputs_of(s), int(s["model"]["hidden"])
    if s["model"]["kind"] == "logistic_regression":
        return inputs + 1
    return (inputs + 1) * hidden + hidden + 1 + (inputs if s["model"]["skip"] else 0)


def tasks_of(s: dict[str, Any]) -> list[str]:
    """What each sum of a study is for, in order."""
    if s["task"] == "count":
        return ["count"]
    training, tasks = s["training"], []
    if learned_of(s) or training["class_weight"]:
        tasks.append("statistics")
    if training["optimiser"] == "fixed_hessian":
        tasks.append("curvature")
    stopping = training["early_stopping"]
    for n in range(1, training["rounds"] + 1):
        tasks.append("train")
        if stopping and (n % stopping["every"] == 0 or n == training["rounds"]):
            tasks.append("validate")
    return [*tasks, "evaluate"]


def plan_of(task: str, s: dict[str, Any], t: dict[str, Any]) -> dict[str, Any]:
    """Length of a vector, L2 sensitivity in whole-number units, noise, and the modulus that holds the sum."""
    if s["task"] == "count":
        cells = math.prod(len(labels_of(key)) for key in s["count"]["by"])
        dimension, norm = (cells, 1.0) if s["count"]["of"] is None else (2 * cells, math.sqrt(2))
        return sized(task, dimension, norm, 1.0, False, s["privacy"], t)
    inputs, clip = inputs_of(s), s["training"]["clip"] * math.sqrt(inputs_of(s) + 1)
    narrow = min(s["training"]["curvature_clip"] * math.sqrt(inputs + 1), math.sqrt(len(s["features"]) + 1))
    row, learned = clip * math.sqrt(1 + 0.25**2), learned_of(s)
    dimension, norm, entry, rounded = {
        "statistics": (learned * s["scaling"]["cells"] + 2, math.sqrt(learned + 1), 1.0, False),
        "curvature": ((inputs + 1) * (inputs + 2) // 2, math.sqrt((narrow**4 + narrow**2) / 2), 1.0, True),
        "train": (parameters_of(s) + 1, row * (1 + 2.0**-12), row, True),
        "validate": (2, math.sqrt(2), 1.0, True),
        "evaluate": (2 * s["evaluation"]["bins"], 1.0, 1.0, False),
    }[task]
    return sized(task, dimension, norm, entry, rounded, s["privacy"], t)


def sized(task: str, dimension: int, norm: float, entry: float, rounded: bool, privacy: dict[str, Any],
          t: dict[str, Any]) -> dict[str, Any]:
    """The same, from a customer's row: its length, L2 bound and largest entry."""
    silos, overlap = len(t["parties"]), t["overlap"]["max_partners_per_customer"]
    scale, sigma = 2.0 ** privacy[f"scale_bits_{task}"], privacy[f"sigma_{task}"]
    sensitivity = norm * scale + (math.sqrt(dimension) if rounded else 0)
    sensitivity *= math.sqrt(overlap) if privacy["mode"] == "local" else overlap
    # No sum may wrap around: all rows at their largest, and noise that passes its bound with probability < 2^-40.
    tail = math.sqrt(2 * math.log(2 * dimension * 2.0**40))
    reach = silos * t["max_cohort"] * (entry * scale + rounded) + tail * spread(privacy["mode"], silos) * sigma
    bits = [b for b in (16, 20, 24, 32) if reach < 1 << (b - 1)]
    must(bool(bits), "a sum could wrap around the widest modulus")
    return {"dimension": dimension, "sensitivity": sensitivity, "sigma": sigma, "bits": bits[0]}


def spread(mode: str, silos: int) -> float:
    """Deviation of a sum's noise, in σ."""
    return 1.0 if mode == "central" else math.sqrt(silos)


def event_of(plan: dict[str, Any], survivors: int, mode: str, t: dict[str, Any]) -> dict[str, float]:
    """What a round did to a customer's data. Of distributed noise the colluders' shares don't count; of local noise
    only one share does, and all the vectors a customer may be in are seen."""
    shares = survivors - t["colluders"] if mode == "distributed" else 1
    seen = t["overlap"]["max_partners_per_customer"] if mode == "local" else 1
    return {"sensitivity": plan["sensitivity"], "sigma": plan["sigma"], "shares": shares, "dimension": plan["dimension"] * seen}


def epsilon_of(events: list[dict[str, float]], delta: float) -> float:
    """ε at δ: with mu² and a added up over the rounds, the least ε with e^a·δ_mu(ε − 2a) ≤ δ (accounting.md, §1).

    The concentrated-DP bound that foedus also tries never wins where σ ≥ 4, as study and check 3 demand.
    """
    mu2 = slack = 0.0
    for e in events:
        variance, d = e["shares"] * e["sigma"] ** 2, e["dimension"]
        r2 = math.log(1600 * d * variance**1.5 / e["sensitivity"]) / (2 * math.pi**2)
        r2 = min(max(0.5, r2), variance / 2)
        slack += d * (ripple(r2) + sum(ripple(e["sigma"] ** 2 * k / (k + 1)) for k in range(1, int(e["shares"]))))
        mu2 += e["sensitivity"] ** 2 / (variance - r2)
    mu, low, high = math.sqrt(mu2), 0.0, 700.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        x = middle - 2 * slack
        cost = (math.erfc((x / mu - mu / 2) / math.sqrt(2)) - math.exp(x) * math.erfc((x / mu + mu / 2) / math.sqrt(2))) / 2
        low, high = (middle, high) if math.exp(slack) * cost > delta else (low, middle)
    return high


def ripple(u: float) -> float:
    """w(u) of accounting.md: how much a sum over the whole numbers of a Gaussian of variance u can vary."""
    eta = 2 * sum(math.exp(-2 * math.pi**2 * u * k * k) for k in range(1, 8))
    must(eta < 1, "a noise too small to be accounted for")
    return 2 * math.atanh(eta)


# ── models and metrics, recomputed from the sums ──


def close(claimed: Any, ours: Iterable[float], what: str, tolerance: float = 1e-7) -> None:
    """Equal but for the last digits, in which another processor's arithmetic may differ."""
    ours, theirs = list(ours), list(claimed)
    must(len(ours) == len(theirs), f"{what}: another number of numbers")
    for a, b in zip(ours, theirs, strict=True):
        must(type(b) in (int, float) and abs(a - b) <= tolerance * (1 + abs(a)), f"{what}: {b!r}, recomputed {a!r}")


class State:
    """A model between two sums: its weights, the scales it learned, and what its optimiser remembers."""

    def __init__(self, s: dict[str, Any]) -> None:
        self.s, self.p = s, s["privacy"]
        self.weights = first_weights(s)
        self.learned = [-1.0, 1.0] * learned_of(s) + [1.0, 1.0] * bool(s["training"]["class_weight"])
        self.mean, self.square = [0.0] * len(self.weights), [0.0] * len(self.weights)
        self.counts: list[float] = []
        self.looks: list[float] = []
        self.best: list[float] = []
        self.inverse: list[list[float]] = []
        self.stopped = False

    def take(self, task: str, total: list[int], silos: int) -> None:
        """The state after a sum over so many silos."""
        scale = 2.0 ** self.p[f"scale_bits_{task}"]
        values = [x / scale for x in total]
        noise = self.p[f"sigma_{task}"] / scale * spread(self.p["mode"], silos)
        {"statistics": self.scales, "curvature": self.curve, "train": self.step, "validate": self.look}[task](values, noise)

    def scales(self, counts: list[float], noise: float) -> None:
        """Bounds of features from quantiles of noisy histograms; weights of labels from their noisy counts."""
        c = self.s["scaling"]
        cells, end = c["cells"], math.asinh(c["limit"] / c["unit"])
        grid = [-end + i * (2 * end / cells) for i in range(cells)] + [end]
        self.learned = []
        for i in range(learned_of(self.s)):
            histogram = counts[i * cells : (i + 1) * cells]
            kept = [max(x, 0.0) if x > 3.2 * noise else 0.0 for x in histogram]
            if sum(kept) <= 0:
                kept[histogram.index(max(histogram))] = 1.0
            whole_, sums = sum(kept), [0.0]
            for x in kept:
                sums.append(sums[-1] + x)
            wanted = (c["tail"], 1 - c["tail"])
            places = [max(j for j, x in enumerate(sums) if x / whole_ <= share) for share in wanted]
            if places[0] == places[1]:
                full = [j for j, x in enumerate(kept) if x]
                bounds = [grid[full[0]], grid[full[-1] + 1]]
            else:
                bounds = [grid[j] + (share - sums[j] / whole_) / kept[j] * whole_ * (grid[1] - grid[0])
                          for j, share in zip(places, wanted, strict=True)]
            low, high = (math.sinh(x) * c["unit"] for x in bounds)
            self.learned += [low - c["margin"] * (high - low), high + c["margin"] * (high - low)]
        if self.s["training"]["class_weight"]:
            labels = [max(x, 1.0, 2 * noise) for x in counts[-2:]]
            self.learned += [sum(labels) / (2 * x) for x in labels]

    def curve(self, products: list[float], noise: float) -> None:
        """The inverse of ¼·(second moments) + l2, eigenvalues floored at the noise (Böhning and Lindsay 1988)."""
        p, at = inputs_of(self.s) + 1, iter(products)
        moments = [[0.0] * p for _ in range(p)]
        for i in range(p):
            for j in range(i, p):
                moments[i][j] = moments[j][i] = next(at)
        customers = max(1.0, moments[-1][-1])
        floor = 3 * noise * math.sqrt(p) / customers + 1e-6
        values, vectors = eigen([[x / customers for x in row] for row in moments])
        self.inverse = [[0.0] * p for _ in range(p)]
        for value, v in zip(values, vectors, strict=True):
            factor = 1 / (max(value, floor) / 4 + self.s["training"]["l2"])
            for row, a in zip(self.inverse, v, strict=True):
                row[:] = [x + factor * a * b for x, b in zip(row, v, strict=True)]

    def step(self, summed: list[float], noise: float) -> None:
        """A fixed-Hessian step, or one of Adam (Kingma and Ba 2015, Algorithm 1; β₂ = 0.99), on the noisy mean gradient."""
        training = self.s["training"]
        clip = training["clip"] * math.sqrt(inputs_of(self.s) + 1)
        self.counts.append(summed[-1] / (clip * 0.25))
        customers, t = max(1.0, sum(self.counts) / len(self.counts)), len(self.counts)
        gradient = [g / customers + training["l2"] * w for g, w in zip(summed, self.weights, strict=False)]
        rate = training["learning_rate"]
        if training["optimiser"] == "fixed_hessian":
            moves = [sum(a * g for a, g in zip(row, gradient, strict=True)) for row in self.inverse]
            rate = 1.0 if rate is None else rate
        else:
            self.mean = [0.9 * m + (1 - 0.9) * g for m, g in zip(self.mean, gradient, strict=True)]
            self.square = [0.99 * v + (1 - 0.99) * g * g for v, g in zip(self.square, gradient, strict=True)]
            one, two = 1 - 0.9**t, 1 - 0.99**t
            moves = [(m / one) / (math.sqrt(v / two) + 1e-8) for m, v in zip(self.mean, self.square, strict=True)]
            rate = (0.1 if rate is None else rate) * (0.55 + 0.45 * math.cos(math.pi * (t - 1) / training["rounds"]))
        self.weights = [w - rate * m for w, m in zip(self.weights, moves, strict=True)]

    def look(self, values: list[float], noise: float) -> None:
        """The held-out loss: training stops when it no longer falls, with the weights of the best look."""
        loss, customers = values
        stopping = self.s["training"]["early_stopping"]
        self.looks.append(4.0 * loss / max(1.0, customers))
        at = self.looks.index(min(self.looks))
        if at == len(self.looks) - 1:
            self.best = self.weights
        self.stopped = len(self.looks) - 1 - at >= stopping["patience"]
        if self.stopped or len(self.looks) == tasks_of(self.s).count("validate"):
            self.weights = self.best


def first_weights(s: dict[str, Any]) -> list[float]:
    """Zeros; for a perceptron PyTorch's uniform numbers of the study's seed (MT19937, two words a number)."""
    inputs, model = inputs_of(s), s["model"]
    if model["kind"] == "logistic_regression":
        return [0.0] * (inputs + 1)
    state = [model["seed"]]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    twister = random.Random()  # noqa: S311 - public numbers, the same for everybody
    twister.setstate((3, (*state, 624), None))

    def uniform(count: int, bound: float) -> list[float]:
        draws = [twister.getrandbits(32) << 32 | twister.getrandbits(32) for _ in range(count)]
        return [(x % 2**53) * 2.0**-53 * (2 * bound) - bound for x in draws]

    hidden = model["hidden"]
    weights = uniform(inputs * hidden, 1.7 / math.sqrt(inputs)) + uniform(hidden, 0.5)
    weights += [*uniform(hidden, 1 / math.sqrt(hidden)), 0.0]
    return weights + [0.0] * (inputs if model["skip"] else 0)


def eigen(matrix: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Eigenvalues and -vectors of a symmetric matrix: one-sided Jacobi on the matrix shifted to be positive."""
    n = len(matrix)
    shift = max(sum(map(abs, row)) for row in matrix) + 1e-300
    image = [[x + shift * (i == j) for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    vectors = [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(60):
        turned = False
        for i in range(n):
            for j in range(i + 1, n):
                a, b = image[i], image[j]
                c = sum(x * y for x, y in zip(a, b, strict=True))
                aa, bb = sum(x * x for x in a), sum(x * x for x in b)
                if abs(c) <= 1e-14 * math.sqrt(aa * bb):
                    continue
                turned = True
                z = (bb - aa) / (2 * c)
                tangent = math.copysign(1, z) / (abs(z) + math.hypot(1, z))
                cos = 1 / math.hypot(1, tangent)
                sin = cos * tangent
                for rows in (image, vectors):
                    x, y = rows[i], rows[j]
                    rows[i] = [cos * u - sin * v for u, v in zip(x, y, strict=True)]
                    rows[j] = [sin * u + cos * v for u, v in zip(x, y, strict=True)]
        if not turned:
            break
    return [math.hypot(*row) - shift for row in image], vectors


def metrics_of(total: list[int], s: dict[str, Any], silos: int) -> dict[str, list[float]]:
    """AUC and the rest, from the noisy histogram of scores by label; cells below 0 count as 0 for the curves."""
    bins, privacy = s["evaluation"]["bins"], s["privacy"]
    scale = 2.0 ** privacy["scale_bits_evaluate"]
    cells = [x / scale for x in total]
    stayed, churned, customers = cells[:bins], cells[bins:], sum(cells)
    n0, n1 = max(sum(stayed), 1.0), max(sum(churned), 1.0)
    below = [sum(stayed[:i]) + stayed[i] / 2 for i in range(bins)]
    above = [sum(churned[i + 1 :]) + churned[i] / 2 for i in range(bins)]
    auc = sum(c * b for c, b in zip(churned, below, strict=True)) / (n0 * n1)
    slope = [x / (n0 * n1) - auc / n0 for x in above] + [x / (n0 * n1) - auc / n1 for x in below]
    error = privacy["sigma_evaluate"] / scale * spread(privacy["mode"], silos) * math.hypot(*slope)
    true, false, roc, pr = 0.0, 0.0, [0.0, 0.0], 0.0
    positives = max(sum(max(x, 0.0) for x in churned), 1e-9)
    negatives = max(sum(max(x, 0.0) for x in stayed), 1e-9)
    for c, k in zip(reversed(churned), reversed(stayed), strict=True):
        true, false = true + max(c, 0.0), false + max(k, 0.0)
        pr += max(c, 0.0) / positives * true / max(true + false, 1e-9)
        roc += [false / negatives, true / positives]
    clamp = functools.partial(min, 1.0)
    return {"auc": [max(0.0, clamp(auc))], "auc_error": [error], "pr_auc": [pr], "customers": [customers],
            "churn_rate": [max(0.0, clamp(sum(churned) / max(customers, 1.0)))], "roc": roc}


if __name__ == "__main__":
    sys.exit(main())

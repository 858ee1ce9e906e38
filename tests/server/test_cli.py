"""The two command lines, as people use them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.treaties import PURPOSE, make_study, make_treaty
from typer.testing import CliRunner, Result

from foedus.compliance.auditlog.log import AuditLog
from foedus.documents import Envelope, SigningKey
from foedus.errors import Abandoned, InputError, Refused, VerificationError
from foedus.server import certificates
from foedus.server.cli import server_app, study_app
from foedus.server.client import ApiClient

from .conftest import World

DRAFT = {
    "title": "churn",
    "author": "alice",
    "purpose": PURPOSE,
    "label": {"train_as_of": "2024-06-01", "test_as_of": "2024-09-01"},
    "privacy": {"epsilon": 4.0},
}


def invoke(app: object, *arguments: object, **environment: str) -> Result:
    """Run a command; its FoedusError, if any, is raised here as at the top-level command line."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"} | environment)
    result = runner.invoke(app, [str(a) for a in arguments])  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_server_is_made_key_first(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shown = invoke(server_app, "init", home).output.split()
    key = SigningKey.load(home / "server.key")
    assert key.public in shown
    document, _, keys = make_treaty()
    (tmp_path / "treaty.json").write_bytes(document.dumps())
    with pytest.raises(VerificationError, match="coordinator"):
        invoke(server_app, "init", home, "--treaty", tmp_path / "treaty.json")
    assert not (home / "treaty.json").exists()

    (home / "server.key").unlink()
    keys.coordinator.save(home / "server.key")
    invoke(server_app, "init", home, "--treaty", tmp_path / "treaty.json")
    invoke(server_app, "init", home, "--treaty", tmp_path / "treaty.json")
    assert {p.name for p in home.iterdir()} == {
        "server.key",
        "treaty.json",
        "server.db",
        "audit.db",
        "evidence",
    }
    assert all(p.stat().st_mode & 0o077 == 0 for p in (home, home / "server.db", home / "audit.db"))

    token = invoke(server_app, "token", home, "--name", "alice", "--role", "scientist").stdout.strip()
    assert token.startswith("foedus_") and len(token) == 7 + 8 + 1 + 64
    entry = next(AuditLog(home / "audit.db", "coordinator.example/log").entries()).record
    assert (entry["action"], entry["subject"]) == ("token.created", token[7:15])
    assert token[-64:] not in str(entry)


def test_another_treaty_does_not_replace_the_first(tmp_path: Path) -> None:
    _, treaty, keys = make_treaty()
    for version in (1, 2):
        changed = treaty.model_copy(update={"version": version}).envelope()
        for name, key in keys.parties.items():
            changed = changed.signed(name, key)
        (tmp_path / f"{version}.json").write_bytes(changed.dumps())
    keys.coordinator.save(tmp_path / "home" / "server.key")
    invoke(server_app, "init", tmp_path / "home", "--treaty", tmp_path / "1.json")
    with pytest.raises(InputError, match="another treaty"):
        invoke(server_app, "init", tmp_path / "home", "--treaty", tmp_path / "2.json")


def test_a_study_from_draft_to_results(world: World, tmp_path: Path) -> None:
    treaty, draft, signed = tmp_path / "treaty.json", tmp_path / "churn.yaml", tmp_path / "churn.json"
    treaty.write_bytes(world.document.dumps())
    draft.write_text(yaml.safe_dump(DRAFT))
    for name, key in (world.keys.scientists | world.keys.approvers).items():
        key.save(tmp_path / f"{name}.key")
    for role, token in world.tokens.items():
        (tmp_path / role).write_text(token + "\n")

    def online(role: str, command: str, *arguments: object) -> str:
        return invoke(
            study_app, command, *arguments, "--server", world.url, "--token-file", tmp_path / role
        ).output

    priced = invoke(study_app, "price", draft, "--treaty", treaty).output
    unit = world.desk.treaty.unit
    assert unit in " ".join(priced.split())
    assert "4 of 4" in priced and "3 of 4" in priced and "2 of 4" not in priced
    signing = ("sign", draft, "--treaty", treaty, "--out", signed)
    with pytest.raises(InputError, match="its author is alice"):
        invoke(study_app, *signing, "--author", "bob", "--key", tmp_path / "bob.key")
    with pytest.raises(VerificationError):
        invoke(study_app, *signing, "--author", "alice", "--key", tmp_path / "bob.key")
    assert not signed.exists()
    invoke(study_app, *signing, "--author", "alice", "--key", tmp_path / "alice.key")
    digest = Envelope.load(signed).digest

    assert "submitted" in online("scientist", "submit", signed)
    assert digest[:12] in online("officer", "list") and digest in online("officer", "show", digest[:8])
    assert unit in " ".join(online("officer", "list").split())
    whole = re.sub(r"[│\s]+", " ", online("officer", "show", digest[:8]))
    assert unit in whole and "for life" in whole
    with pytest.raises(VerificationError, match="not the key of dora"):
        online(
            "officer",
            "approve",
            digest,
            "--approver",
            "dora",
            "--key",
            tmp_path / "bianca.key",
            "--treaty",
            treaty,
        )
    with pytest.raises(Refused, match="no approver"):
        online(
            "officer",
            "approve",
            digest,
            "--approver",
            "eve",
            "--key",
            tmp_path / "dora.key",
            "--treaty",
            treaty,
        )
    for name in world.keys.approvers:
        said = online(
            "officer",
            "approve",
            digest[:9],
            "--approver",
            name,
            "--key",
            tmp_path / f"{name}.key",
            "--treaty",
            treaty,
        )
    assert "still to approve: nobody" in said and unit in " ".join(said.split())
    assert "approved" in online("officer", "show", digest)

    said = online("scientist", "run", digest[:10])
    run = said.split()[1]
    folder = world.desk.home / "evidence" / "x"
    folder.mkdir()
    (folder / "model.json").write_bytes(b"{}")
    store = world.desk.store
    store.add_release(
        world.desk.home / "evidence", folder / "model.json", study=digest, run=run, kind="model"
    )
    store.add_event(run, "round", {"round": 1})
    store.add_event(run, "finished", {})
    followed = online("scientist", "follow", run)
    assert 'round {"round": 1}' in followed and "finished" in followed
    online("partner", "results", digest, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.json").read_bytes() == b"{}"
    with pytest.raises(InputError, match="exists"):
        online("partner", "results", digest, "--out", tmp_path / "out")


def test_an_approver_does_not_sign_what_the_treaty_forbids(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that lies: it shows a forged study under the digest that was asked for.
    forged = make_study(world.document, world.treaty, world.keys, title="harmless")
    forged = Envelope("study", forged.payload | {"title": "harmful"}, forged.signatures)
    real = world.submitted()
    (tmp_path / "treaty.json").write_bytes(world.document.dumps())
    world.keys.approvers["dora"].save(tmp_path / "dora.key")
    common = (
        "--approver",
        "dora",
        "--key",
        tmp_path / "dora.key",
        "--treaty",
        tmp_path / "treaty.json",
        "--server",
        world.url,
    )
    monkeypatch.setattr(ApiClient, "study", lambda *_: {"envelope": forged.to_json()})
    token = {"FOEDUS_TOKEN": world.tokens["officer"]}
    with pytest.raises(VerificationError, match="the server shows"):
        invoke(study_app, "approve", real.digest, *common, **token)
    with pytest.raises(VerificationError, match="does not hold"):
        invoke(study_app, "approve", forged.digest, *common, **token)
    assert world.desk.store.approvals(real.digest) == []


def test_following_a_run_that_fails(world: World) -> None:
    environment = {"FOEDUS_SERVER": world.url, "FOEDUS_TOKEN": world.tokens["scientist"]}
    _, run = world.started()
    world.desk.store.add_event(run, "failed", {"reason": "too few", "code": "TOO_FEW"})
    with pytest.raises(Refused, match="too few"):
        invoke(study_app, "follow", run, **environment)
    _, run = world.started()
    with world.client("admin") as admin:
        admin.stop(run)
    with pytest.raises(Abandoned):
        invoke(study_app, "follow", run, **environment)


def test_no_token_and_no_tls() -> None:
    with pytest.raises(InputError, match="no token"):
        invoke(study_app, "list", FOEDUS_TOKEN="")
    with pytest.raises(InputError, match="not an https"):
        invoke(study_app, "list", "--server", "http://example.org", FOEDUS_TOKEN="x")
    with pytest.raises(InputError, match="certificates"):
        invoke(server_app, "run", "nowhere")
    with pytest.raises(InputError, match="loopback only"):
        invoke(server_app, "run", "nowhere", "--certificates", "c", "--superlink", "10.0.0.1:9092")


@pytest.mark.parametrize("app", [server_app, study_app])
def test_every_command_has_an_example(app: object) -> None:
    for command in app.registered_commands:  # type: ignore[attr-defined]
        name = command.name or command.callback.__name__
        assert "Example: foedus " in invoke(app, name, "--help").output, name


@pytest.mark.deployment
def test_the_real_server_over_tls(tmp_path: Path) -> None:
    document, _, keys = make_treaty()
    home, certs = tmp_path / "home", tmp_path / "certs"
    (tmp_path / "treaty.json").write_bytes(document.dumps())
    keys.coordinator.save(home / "server.key")
    invoke(server_app, "init", home, "--treaty", tmp_path / "treaty.json")
    token = invoke(server_app, "token", home, "--name", "olga", "--role", "officer").stdout.strip()
    files = certificates.create(certs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from foedus.server.cli import server_app; server_app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", home, "--port", str(port), "--certificates", certs,
         "--superlink", "127.0.0.1:1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )  # fmt: skip
    try:
        with ApiClient(f"https://localhost:{port}", token, files.ca_cert) as olga:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert olga.treaty() == document
                    break
                except Exception:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert b"Traceback" not in output, output.decode()

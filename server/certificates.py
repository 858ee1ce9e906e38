"""A CA of one's own and the server's certificate, for a first start, tests and demonstrations.

A company with a certificate authority brings its own files instead; nothing else here depends on how
they were made.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..documents import read_private_file, write_private_file
from ..errors import InputError

_CA, _CA_KEY, _SERVER, _SERVER_KEY = "ca.crt", "ca.key", "server.crt", "server.key"


@dataclass(frozen=True)
class Certificates:
    """Files of a TLS server: what clients trust, and what the server shows and keeps (all PEM)."""

    ca_cert: Path
    server_cert: Path
    server_key: Path


def create(
    directory: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"), days: int = 365
) -> Certificates:
    """Make a CA and a server certificate for `hosts` (names or IP addresses), valid for `days`.

    The CA's key stays beside them (``ca.key``, 0600), to sign the next certificate; move it off the
    server if you can.

    Raises:
        InputError: no hosts, `days` under 1, or the directory holds such files already.
    """
    if not hosts or days < 1:
        raise InputError("a server certificate needs at least one host and one day")
    for name in (_CA, _CA_KEY, _SERVER, _SERVER_KEY):
        if (directory / name).exists():
            raise InputError(f"{directory / name}: exists already", remedy="choose another directory")
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    end = start + datetime.timedelta(days=days)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name("foedus CA")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), ca_key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _builder(_name(hosts[0]), ca_name, server_key.public_key(), ca_key, start, end)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private_file(directory / _CA_KEY, _private_pem(ca_key))
    write_private_file(directory / _SERVER_KEY, _private_pem(server_key))
    (directory / _CA).write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / _SERVER).write_bytes(server.public_bytes(serialization.Encoding.PEM))
    return load(directory)


def load(directory: Path) -> Certificates:
    """The files `create` wrote.

    Raises:
        InputError: one is missing or unreadable, the key is readable by others, a certificate has expired.
    """
    found = Certificates(directory / _CA, directory / _SERVER, directory / _SERVER_KEY)
    read_private_file(found.server_key)
    for path in (found.ca_cert, found.server_cert):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"{path}: not a PEM certificate") from error
        if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
            raise InputError(f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return found


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""A CA of one's own and the server's certificate, for a first start, tests and demonstrations.

A company with a certificate authority brings its own files instead; nothing else here depends on how
they were made. The CA lives ten years, the server's certificate one: renewing it (`renew`) changes one file,
and nobody who trusts the CA notices.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
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
_CA_DAYS = 3650
_RENEW = "foedus server certificates DIR --renew makes another, under the same CA"


@dataclass(frozen=True)
class Certificates:
    """Files of a TLS server: what clients trust, and what the server shows and keeps (all PEM)."""

    ca_cert: Path
    server_cert: Path
    server_key: Path


def create(
    directory: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"), days: int = 365
) -> Certificates:
    """Make a CA, valid for ten years, and a server certificate for `hosts` (names or IP addresses).

    The CA's key stays beside them (``ca.key``, 0600), to sign the next certificate; move it off the
    server if you can.

    Args:
        days: how long the server's certificate is valid.

    Raises:
        InputError: no hosts, `days` under 1, or the directory holds such files already.
    """
    if not hosts or days < 1:
        raise InputError("a server certificate needs at least one host and one day")
    for name in (_CA, _CA_KEY, _SERVER, _SERVER_KEY):
        if (directory / name).exists():
            raise InputError(f"{directory / name}: exists already", remedy="choose another directory")
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, (start, end) = _name("foedus CA"), _period(_CA_DAYS)
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), ca_key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = _sign(ca, ca_key, [_host(host) for host in hosts], server_key.public_key(), days)
    write_private_file(directory / _CA_KEY, _private_pem(ca_key))
    write_private_file(directory / _SERVER_KEY, _private_pem(server_key))
    (directory / _CA).write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / _SERVER).write_bytes(server.public_bytes(serialization.Encoding.PEM))
    return load(directory)


def renew(directory: Path, days: int = 365) -> datetime.datetime:
    """Put another server certificate in the place of the one `create` made: same names, key and CA.

    One file is replaced, in one step; what runs takes it up by itself. Needs ``ca.crt``, ``ca.key`` and
    ``server.crt``, so it can be done where the CA's key is kept. Returns when the new one expires.

    Args:
        days: how long it is valid, though not longer than its CA.

    Raises:
        InputError: a file is missing or unusable, the CA has expired, or `ca.key` is not its key.
    """
    if days < 1:
        raise InputError("a server certificate needs at least one day")
    ca, old = _read(directory / _CA), _read(directory / _SERVER)
    _refuse_expired(ca, directory / _CA)
    ca_key, public = _private_key(directory / _CA_KEY), old.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise InputError(f"{directory / _SERVER}: not made by `foedus server certificates`")
    if ca_key.public_key() != ca.public_key():
        raise InputError(f"{directory / _CA_KEY}: not the key of {directory / _CA}")
    try:
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise InputError(f"{directory / _SERVER}: it names no host") from error
    fresh = _sign(ca, ca_key, list(names), public, days).public_bytes(serialization.Encoding.PEM)
    beside = directory / f"{_SERVER}.new"
    beside.write_bytes(fresh)
    beside.replace(directory / _SERVER)
    return _read(directory / _SERVER).not_valid_after_utc


def load(directory: Path) -> Certificates:
    """The files `create` wrote.

    Raises:
        InputError: one is missing or unreadable, the key is readable by others or not the certificate's, a
            certificate has expired.
    """
    found = Certificates(directory / _CA, directory / _SERVER, directory / _SERVER_KEY)
    read_private_file(found.server_key)
    for path in (found.ca_cert, found.server_cert):
        _refuse_expired(_read(path), path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found.server_cert, found.server_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{found.server_key}: not the key of {found.server_cert}") from error
    return found


def ends(found: Certificates) -> datetime.datetime:
    """When the server's certificate expires."""
    return _read(found.server_cert).not_valid_after_utc


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a PEM certificate") from error


def _refuse_expired(certificate: x509.Certificate, path: Path) -> None:
    end = certificate.not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        remedy = _RENEW if path.name == _SERVER else "make another CA, and give its ca.crt to every partner"
        raise InputError(f"{path}: expired on {end:%Y-%m-%d}", remedy=remedy)


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private_file(path), None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: not a key that `foedus server certificates` made")
    return key


def _period(days: int) -> tuple[datetime.datetime, datetime.datetime]:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    return start, start + datetime.timedelta(days=days)


def _sign(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    public: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.Certificate:
    start, end = _period(days)
    return (
        _builder(
            _name(str(names[0].value)), ca.subject, public, ca_key, start, min(end, ca.not_valid_after_utc)
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


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

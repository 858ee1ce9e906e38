"""One node's connection to its gateway: whom to trust, how requests are signed, what may come back.

It speaks Flower 1.41's wire format directly over httpx, because Flower's own connection ends the process on
errors (``sys.exit``, SIGINT), follows redirects and reads replies of any size.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from flwr.supercore.date import now
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from ..documents import read_private_file, write_private_file
from ..errors import InputError

MAX_MESSAGE = 256 * 2**20  # bytes of one message, either way

_SIGNATURE_AGE = 2.0  # seconds for which one signed timestamp is used
# Flower takes a signature that is 305 s old, but only 5 s ahead of its own clock: the middle is the safest
_SIGNED_BEFORE = timedelta(seconds=150)
_OUT_OF_DATE = (9, 10)  # OpenSSL: not yet valid, has expired
_GONE = (408, 429, 502, 503, 504)  # the gateway or the SuperLink is not there now

_log = logging.getLogger("foedus.node")


@dataclass(frozen=True)
class FleetLink:
    """Where the gateway listens, and what proves either side to the other.

    Args:
        address: ``host:port`` of the gateway.
        root_certificates: PEM file of the CA that signed the gateway's certificate.
        node_key: OpenSSH EC private key file, mode 0600. Beside it the node keeps ``<node_key>.id``.
    """

    address: str
    root_certificates: Path
    node_key: Path


class Lost(Exception):
    """The server can't be reached now, or has forgotten this node: attach again.

    Args:
        remedy: what somebody should do; nothing where waiting is enough.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class Untrusted(Lost):
    """The server's certificate does not lead to our root certificate."""


class Denied(Exception):
    """The server does not allow this request.

    Args:
        status: its HTTP status; 403 where the run is over.
        skew: seconds by which this machine's clock is ahead of the server's, if the server said its time.
    """

    def __init__(self, status: int, skew: float = 0.0) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.skew = skew


class TooLarge(Exception):
    """A message beyond `MAX_MESSAGE`."""


def generate_node_key(path: Path) -> bytes:
    """Write a new node key (OpenSSH, EC P-384, mode 0600) and return its public key as PEM.

    Raises:
        InputError: `path` exists already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(path, private)
    return _public_pem(key)


def node_public_key(path: Path) -> bytes:
    """The public key of a node key file as PEM SubjectPublicKeyInfo: what the server registers.

    Raises:
        InputError: missing, readable by others, or not an EC P-384 key.
    """
    return _public_pem(load_key(path))


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    raw = read_private_file(path)
    try:
        key = serialization.load_ssh_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: not an OpenSSH private key without a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(f"{path}: not an EC P-384 key", remedy="ssh-keygen -t ecdsa -b 384 -N '' -f FILE")
    return key


def _public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class Connection:
    """Signed protobuf requests to one gateway; threads may share it."""

    def __init__(self, link: FleetLink, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public_pem = _public_pem(key)
        self._signed = (float("-inf"), "", "")
        self._signing = threading.Lock()
        self._warned = False
        self._headers = {
            **dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()),
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public_pem).decode(),
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            "accept-encoding": "identity",  # a compressed reply could unpack to any size
        }
        self._base = f"https://{link.address}/v1/fleet/"
        self._link = link
        self._roots = self._read_roots()
        self._client = self._open()

    def _read_roots(self) -> bytes:
        path = self._link.root_certificates
        try:
            roots = path.read_bytes()
            ssl.create_default_context(cadata=roots.decode())
        except (OSError, ValueError, ssl.SSLError) as error:
            raise InputError(f"{path}: not a readable PEM certificate") from error
        return roots

    def _open(self) -> httpx.Client:
        context = ssl.create_default_context(cadata=self._roots.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # no redirects: a signed request goes where the link says and nowhere else
        return httpx.Client(verify=context, timeout=httpx.Timeout(60.0, connect=10.0), follow_redirects=False)

    def reopen(self) -> None:
        """Forget the pooled connections, and look again whom to trust."""
        try:
            self._roots = self._read_roots()
        except InputError as error:
            _log.error("%s; trusting what it held before", error.message)
        old, self._client = self._client, self._open()
        old.close()

    def trusts_anew(self) -> bool:
        """Whether another CA file was put into place; then all connections are new ones."""
        with contextlib.suppress(OSError):
            if self._link.root_certificates.read_bytes() != self._roots:
                before = self._roots
                self.reopen()
                return self._roots != before
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._client.close()

    def _signature(self) -> dict[str, str]:
        # Flower signs the time and nothing else (TLS protects the rest): one signature serves a burst
        with self._signing:
            made, timestamp, signature = self._signed
            if time.monotonic() - made > _SIGNATURE_AGE:
                timestamp = (now() - _SIGNED_BEFORE).isoformat()
                raw = self._key.sign(timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
                signature = base64.b64encode(raw).decode()
                self._signed = (time.monotonic(), timestamp, signature)
            return {TIMESTAMP_HEADER: timestamp, FLEET_HTTP_SIGNATURE_HEADER: signature}

    def call(
        self, route: str, request: Any, response_type: Any, *, timeout: float | None = None, wait: float = 0.0
    ) -> Any:
        """One request; `route` is the last part of its path, `wait` how many seconds it may be held.

        Raises:
            Lost: no answer, or none that makes sense.
            Denied: an answer, and it is no.
            TooLarge: the answer is beyond `MAX_MESSAGE`.
        """
        try:
            with self._client.stream(
                "POST",
                self._base + route,
                content=request.SerializeToString(deterministic=True),
                headers={
                    **self._headers,
                    **self._signature(),
                    **({"foedus-wait": str(wait)} if wait else {}),
                },
                timeout=timeout if timeout is not None else httpx.USE_CLIENT_DEFAULT,
            ) as response:
                self._warn(response)
                if response.status_code != 200:
                    if response.status_code in _GONE:
                        raise Lost(f"HTTP status {response.status_code}")
                    raise Denied(response.status_code, _skew(response.headers.get("date")))
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAX_MESSAGE + 2**20:  # the envelope around a message
                        raise TooLarge
        except (
            httpx.HTTPError,
            httpx.StreamError,
            RuntimeError,
        ) as error:  # RuntimeError: closed by reopen()
            cause = _root(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                if cause.verify_code in _OUT_OF_DATE:
                    raise self._out_of_date(cause) from error
                raise Untrusted(str(cause)) from error
            raise Lost(str(error) or type(error).__name__) from error
        try:
            return response_type.FromString(bytes(body))
        except Exception as error:  # protobuf's DecodeError, whose package has no types
            raise Lost("an answer that is not Flower's") from error

    def _out_of_date(self, error: ssl.SSLCertVerificationError) -> Lost:
        """What to say of a certificate whose time has passed, or not come."""
        host, _, port = self._link.address.rpartition(":")
        said, remedy = f"the server's certificate is out of date ({error.verify_message})", ""
        with contextlib.suppress(OSError, ValueError):
            pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=5.0)  # shown, not trusted
            shown = x509.load_pem_x509_certificate(pem.encode())
            begin, end = shown.not_valid_before_utc, shown.not_valid_after_utc
            said = (
                f"the server's certificate is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
            )
            if begin <= now() <= end:
                said = (
                    f"a certificate of {self._link.root_certificates} is out of date ({error.verify_message})"
                )
                remedy = "ask the server's operator for its new ca.crt, and put it there; "
        remedy = remedy or "the server's operator renews it (foedus server certificates DIR --renew); "
        return Lost(
            f"{said}; it is {now():%Y-%m-%d %H:%M} UTC here",
            f"{remedy}if this machine's clock is wrong, set it. The node goes on by itself",
        )

    def _warn(self, response: httpx.Response) -> None:
        text = response.headers.get(VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY)
        if text and not self._warned:
            self._warned = True
            _log.warning("the server's Flower differs from this node's: %s", text)


def _skew(date: str | None) -> float:
    """Seconds by which this machine's clock is ahead of an answer's ``date``; 0 where there is none."""
    with contextlib.suppress(TypeError, ValueError):
        return float((now() - parsedate_to_datetime(date or "")).total_seconds())
    return 0.0


def _root(error: BaseException) -> BaseException:
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return seen

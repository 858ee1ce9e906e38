"""Where alerts go: the audit log, this process' log, a webhook.

A webhook gets ``POST`` with the alert as canonical JSON and three headers::

    X-Foedus-Alert: 9f2c…            the id: the same alert may come twice
    X-Foedus-Time: 1764081234        Unix seconds, of the sending
    X-Foedus-Signature: sha256=…     HMAC-SHA256(secret, time ‖ "." ‖ body), hex

Any 2xx is taken as received. Redirects are not followed: the alert would go to whom nobody named.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from urllib.parse import urlsplit

import httpx

from ...documents import canonical
from ...errors import InputError, Unreachable
from ..auditlog.log import AuditLog
from .alerts import Alert

ACTION = "anomaly.alert"
_log = logging.getLogger("foedus.watch")


class AuditSink:
    """An entry of an audit log for each alert."""

    name = "log"

    def __init__(self, log: AuditLog) -> None:
        self._audit = log

    def send(self, alert: Alert) -> None:
        self._audit.append("watch", ACTION, alert.id, alert.to_json())


class ConsoleSink:
    """A warning of the logger ``foedus.watch``."""

    name = "console"

    def send(self, alert: Alert) -> None:
        _log.warning("%s %s %s: %s", alert.id, alert.actor, alert.rule, alert.sentence)


class Webhook:
    """An HTTP receiver.

    Args:
        url: https, or http to this machine.
        secret: 16 bytes or more, known to the receiver.
        timeout: seconds, of each step.

    Raises:
        InputError: another scheme, or a short secret.
    """

    name = "webhook"

    def __init__(self, url: str, secret: bytes, *, timeout: float = 5.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(parts.hostname or "")):
            raise InputError(f"{url}: a webhook is https, or http to this machine")
        if len(secret) < 16:
            raise InputError("the webhook's secret has fewer than 16 bytes")
        self._url, self._secret, self._timeout = url, secret, timeout

    def send(self, alert: Alert) -> None:
        """Raises: Unreachable: no answer, or another than 2xx."""
        body, now = canonical(alert.to_json()), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Foedus-Alert": alert.id,
            "X-Foedus-Time": now,
            "X-Foedus-Signature": signature(self._secret, now, body),
        }
        try:
            answer = httpx.post(
                self._url, content=body, headers=headers, timeout=self._timeout, follow_redirects=False
            )
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._url}: {type(error).__name__}") from error
        if not answer.is_success:
            raise Unreachable(f"{self._url}: answers {answer.status_code}")


def signature(secret: bytes, time: str, body: bytes) -> str:
    """What a receiver computes anew, and compares by `hmac.compare_digest`."""
    return "sha256=" + hmac.digest(secret, time.encode() + b"." + body, "sha256").hex()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""What listens on this server speaks TLS 1.3, and takes a renewed certificate up without a restart."""

from __future__ import annotations

import logging
import ssl
from typing import Any

import uvicorn

from ..errors import InputError
from .certificates import Certificates

_LOOK = 2.0  # seconds between two looks at the certificate's files

_log = logging.getLogger("foedus.tls")


def server(app: Any, files: Certificates, host: str, port: int, **options: Any) -> uvicorn.Server:
    """An ASGI app as a server, not running yet: ``serve()`` it, set ``should_exit`` to stop.

    A certificate put in the place of ``server.crt`` is shown to whoever connects from then on.

    Args:
        options: more of `uvicorn.Config`'s.

    Raises:
        InputError: the files are no certificate and key, or do not belong together.
    """
    shown = _Shown(files)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=str(files.server_cert),
        ssl_keyfile=str(files.server_key),
        server_header=False,
        ws="none",
        callback_notify=shown.look,
        timeout_notify=_LOOK,  # type: ignore[arg-type] # uvicorn only compares with it
        **options,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{files.server_cert}: not usable with {files.server_key}: {error}") from error
    shown.context = config.ssl
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return uvicorn.Server(config)


def trusting(files: Certificates) -> ssl.SSLContext:
    """For connections to this server's own parts: its CA, TLS 1.3.

    Raises:
        InputError: the CA's file is not a readable PEM certificate.
    """
    try:
        context = ssl.create_default_context(cafile=str(files.ca_cert))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{files.ca_cert}: not a readable PEM certificate") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class _Shown:
    """The certificate that is shown now, and when its files were written."""

    def __init__(self, files: Certificates) -> None:
        self._files = files
        self._seen = self._written()
        self.context: ssl.SSLContext | None = None

    def _written(self) -> tuple[tuple[int, int, int], ...]:
        found = (path.stat() for path in (self._files.server_cert, self._files.server_key))
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    async def look(self) -> None:
        """Take other files up, if they are a certificate and its key; else go on with the old ones."""
        cert, key = self._files.server_cert, self._files.server_key
        try:
            written = self._written()
            if written == self._seen or self.context is None:
                return
            self._seen = written
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)  # a try, on another context
            self.context.load_cert_chain(cert, key)
            _log.warning("%s: taken up", cert)
        except (OSError, ssl.SSLError) as error:
            _log.error("%s: not taken up, the one before is still shown: %s", cert, error)

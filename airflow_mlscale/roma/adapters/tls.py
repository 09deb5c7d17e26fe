"""TLS for both ports: certificates that are read again when their files change, and client certificates if asked."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import settings

log = logging.getLogger(__name__)

Pair = tuple[bytes, bytes]


class Certificates:
    """The certificate and key of one daemon, as they are now.

    Raises:
        InvalidInputError: a file cannot be read, or certificate and key do not belong together.
    """

    def __init__(self, config: settings.TlsSettings) -> None:
        self._config = config
        self.pair = _read(config)
        self._refused: Pair | None = None
        self.context = context(config)
        """For HTTP; new connections have the latest certificate."""

    def refresh(self) -> None:
        """Take what is in the files now. A pair that does not fit, as between two writes, changes nothing."""
        try:
            pair = _read(self._config)
            if pair in (self.pair, self._refused):
                return
            self._refused = pair
            context(self._config)  # a pair is tried out where nobody uses it
            if _read(self._config) != pair:
                return
            self.context.load_cert_chain(self._config.certificate, self._config.key, password=_no_password)
        except errors.InvalidInputError as exc:
            log.error("the TLS certificate stays as it was: %s", exc)
        else:
            self.pair, self._refused = pair, None
            log.info("new TLS certificate from %s", self._config.certificate)

    def grpc_credentials(self) -> Any:
        """For gRPC, with the same certificates."""
        import grpc

        roots = self._config.client_ca.read_bytes() if self._config.client_ca else None

        def configuration(pair: Pair) -> Any:
            certificate, key = pair
            return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)

        return grpc.dynamic_ssl_server_credentials(
            configuration(self.pair), self._news(configuration), require_client_authentication=roots is not None
        )

    def _news(self, configuration: Callable[[Pair], Any]) -> Callable[[], Any]:
        last = self.pair

        def fetch() -> Any:
            """Asked by gRPC, in a thread of its own, for each connection; None for no change."""
            nonlocal last
            if self.pair == last:
                return None
            last = self.pair
            return configuration(last)

        return fetch


def context(config: settings.TlsSettings) -> ssl.SSLContext:
    """What HTTP connections are wrapped in.

    Raises:
        InvalidInputError: the files do not make one.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(config.certificate, config.key, password=_no_password)
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        fix = f"no TLS certificate with its key in {config.key} ({_reason(exc)})"
        raise errors.InvalidInputError("tls_cert", str(config.certificate), fix) from exc
    if config.client_ca:
        try:
            made.load_verify_locations(config.client_ca)
        except (OSError, ValueError) as exc:
            fix = f"it holds no certificates in PEM form ({_reason(exc)})"
            raise errors.InvalidInputError("tls_client_ca", str(config.client_ca), fix) from exc
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _read(config: settings.TlsSettings) -> Pair:
    try:
        return config.certificate.read_bytes(), config.key.read_bytes()
    except OSError as exc:
        fix = f"it cannot be read: {exc.strerror}"
        raise errors.InvalidInputError("tls_cert, tls_key", str(exc.filename), fix) from exc


def _no_password() -> str:
    """Without this, OpenSSL would ask at the terminal."""
    return ""


def _reason(exc: Exception) -> str:
    return getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc)

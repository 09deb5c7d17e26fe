"""One TLS handshake with a federation's server, with a time limit: NVFlare waits for a dead or silent one for good."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from airflow_mlscale import errors


def server_name(
    host: str,
    port: int,
    *,
    authority: Path,
    pair: tuple[Path, Path],
    kit: Path,
    hint: str,
    timeout_s: float = 10.0,
    field: str = "kit",
) -> str:
    """Shake hands and hang up; returns the server's certified name.

    Args:
        host: of the server.
        port: of the server.
        authority: certificate of the federation's authority.
        pair: own certificate and private key.
        kit: whose files these are, for messages.
        hint: what to do if nobody answers, for messages.
        timeout_s: of each step.
        field: how the user calls the kit, for messages.

    Raises:
        InvalidInputError: the server is of another federation.
        UnreachableError: nobody answers, or not as a federation's server does.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(*pair)
    except (OSError, ValueError) as exc:
        raise errors.InvalidInputError(field, str(kit), "its certificates cannot be read") from exc
    context.check_hostname = False  # as NVFlare does: the identity is the certified name, whatever the address
    address = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as plain, context.wrap_socket(plain) as secure:
            told: Any = secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as exc:
        if "expired" in exc.verify_message:
            raise errors.UnreachableError("the federation server", address, "its certificate has expired") from exc
        raise errors.InvalidInputError(field, str(kit), f"the server at {address} is of another federation") from exc
    except OSError as exc:
        raise errors.UnreachableError("the federation server", address, hint) from exc
    subject = dict(entry[0] for entry in told.get("subject", ()) if entry)
    return str(subject.get("commonName", ""))

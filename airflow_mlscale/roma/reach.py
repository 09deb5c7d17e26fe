"""How the command line reaches a daemon: the service of this machine, or any other by its address."""

from __future__ import annotations

import argparse
import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_mlscale import errors
from airflow_mlscale.roma import settings
from airflow_mlscale.runtime import processes

if TYPE_CHECKING:  # httpx is only needed by those who ask
    from airflow_mlscale.roma.adapters import client

SERVICE = "roma"

_NOT_A_LINE = "it holds no token; write one line of printable ASCII into it"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that asks a daemon."""
    parser.add_argument("--url", help="of the daemon (default: the service of this machine)")
    parser.add_argument("--token-file", type=Path, help="file that holds a token, if the daemon asks for one")
    parser.add_argument("--ca-file", type=Path, help="whose certificates to believe (default: the system's)")
    parser.add_argument("--client-cert", type=Path, help="certificate for a daemon that asks for one")
    parser.add_argument("--client-key", type=Path, help="its key, if it is in another file")


def connected(options: argparse.Namespace) -> client.RomaClient | None:
    """A client of the daemon that the options name, to be closed; None if it is this machine's and is not running.

    Raises:
        InvalidInputError: an option is wrong.
    """
    from airflow_mlscale.roma.adapters import client

    certificate = None
    address = options.url
    if address is None:
        if (found := processes.service(SERVICE)) is None:
            return None
        address, certificate = found.details["address"], found.details.get("certificate")
    elif not address.startswith(("http://", "https://")):
        raise errors.InvalidInputError("url", address, "give an address such as https://host:8501")
    context = trusted(options, Path(certificate) if certificate else None) if address.startswith("https:") else None
    return client.RomaClient(address.rstrip("/"), token=token(options.token_file), trusted=context)


def trusted(options: argparse.Namespace, certificate: Path | None) -> ssl.SSLContext:
    """What to believe: the files that the options name, or the certificate of this machine's own daemon."""
    from airflow_mlscale.roma.adapters import client

    ours = {"client_cert": options.client_cert, "client_key": options.client_key}
    if certificate is None or options.ca_file:
        return client.trust(ca_file=options.ca_file, **ours)
    return client.pinned(certificate, **ours)


def answers(address: str, secured: settings.TlsSettings | None) -> bool:
    """Whether something serves at an address. Nothing secret is asked or told, so it need not prove that it is ours."""
    import httpx

    url = httpx.URL(address)
    try:
        if secured and secured.client_ca:
            # Who shows no certificate is sent away, but only after the handshake, which proves as much.
            return bool(ssl.get_server_certificate((url.host, url.port or 443), timeout=1))
        return httpx.get(url.join("/v2/health/live"), timeout=1, trust_env=False, verify=False).status_code == 200  # noqa: S501
    except (httpx.HTTPError, OSError):
        return False


def local_address(scheme: str, host: str, port: int) -> str:
    """An address of this machine for one to bind."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return f"{scheme}://{host}:{port}"
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "[::1]"
    elif address.version == 6:
        host = f"[{host}]"
    return f"{scheme}://{host}:{port}"


def token(path: Path | None) -> str | None:
    """The one line of a token file.

    Raises:
        InvalidInputError: it cannot be read, or holds no token; what it holds is not shown.
    """
    if path is None:
        return None
    try:
        found = path.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise errors.InvalidInputError("token_file", str(path), f"it cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:  # its message, or the chain of errors, would show what the file holds
        raise errors.InvalidInputError("token_file", str(path), _NOT_A_LINE) from None
    if not found:
        raise errors.InvalidInputError("token_file", str(path), "it is empty; write a long random token into it")
    if not (found.isascii() and found.isprintable()):  # no HTTP header can carry it
        raise errors.InvalidInputError("token_file", str(path), _NOT_A_LINE)
    return found

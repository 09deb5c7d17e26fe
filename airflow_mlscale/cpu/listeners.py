"""Sockets that the host agent listens on, and the locks that keep two agents from one job."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from airflow_mlscale import errors

LONGEST_PATH_BYTES = 107
"""Of a Unix socket, as the kernel has it."""


def unix_socket(path: Path) -> socket.socket:
    """A listening Unix socket that only this user may use (mode 0600); replaces one left by a dead agent.

    Raises:
        InvalidInputError: the path is too long or cannot be made, or another agent listens there.
    """
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise errors.InvalidInputError("socket", str(path), f"use a path of at most {LONGEST_PATH_BYTES} bytes")
    try:
        if path.exists() and not path.is_socket():
            raise errors.InvalidInputError("socket", str(path), "this is not a socket; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock(path.with_name(path.name + ".lock"), field="socket", create=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        # The mode is set before anybody can connect: listening begins later.
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as exc:
        raise errors.InvalidInputError(
            "socket", str(path), f"cannot listen there ({exc}); choose another path"
        ) from exc
    return listener


def tcp_socket(address: str, *, token: str | None) -> socket.socket:
    """A TCP socket bound to ``HOST:PORT``, for a server that asks for the token.

    Raises:
        InvalidInputError: another form, no token, or the address is taken.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise errors.InvalidInputError("listen", address, "use HOST:PORT, for example 127.0.0.1:8490")
    if not token:  # on loopback too: unlike the Unix socket's mode, no address keeps out other users or a browser
        raise errors.InvalidInputError(
            "listen",
            address,
            "others can reach a TCP port, on loopback too: give a --token-file, or use the Unix socket",
        )
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
    except (OSError, UnicodeError) as exc:
        raise errors.InvalidInputError("listen", address, f"cannot listen there ({exc})") from exc
    return listener


def token(path: Path) -> str:
    """The token in a file; raises `InvalidInputError` if there is none."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise errors.InvalidInputError("token-file", str(path), f"cannot read it ({exc})") from exc
    if len(text) < 16 or not text.isascii() or len(text.split()) != 1:
        raise errors.InvalidInputError("token-file", str(path), "it must hold one word of at least 16 ASCII characters")
    return text


def lock(path: Path, *, field: str, create: bool = False) -> int:
    """Lock a file or directory for the life of this process; returns its descriptor.

    Raises:
        InvalidInputError: another process holds it.
    """
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise errors.InvalidInputError(field, str(path), "another host agent is at work here; end it first") from exc
    return descriptor

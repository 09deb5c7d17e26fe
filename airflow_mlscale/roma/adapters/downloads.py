"""Models at URLs, through fsspec: object stores, HTTP and whatever else is installed."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import archives, formats, intake

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_REFUSED = re.compile(
    "asynclocal|async_?wrapper|blockcache|cached|dask|data|dir|file|filecache|generic|git|jlab|jupyter|libarchive|local|"
    "pyscript|reference|root|simplecache|tar|zip"
)
"""Of fsspec's protocols those that read this machine's files, or others through a second URL inside the first."""

_BLOCK_BYTES = 8 * 2**20
_CONNECT_S = 10.0
_SILENCE_S = 60.0
"""Longest wait for the next bytes over HTTP."""


def is_url(artefact: str) -> bool:
    """Whether it is no path."""
    return _URL.match(artefact) is not None


def shown(url: str) -> str:
    """The URL without what may be secret: credentials and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def check(url: str, allowed: tuple[str, ...] | None) -> None:
    """Refuse what is not downloaded.

    Raises:
        ModelArtefactError: its protocol is not served, or none of the allowed beginnings is its own.
    """
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise errors.ModelArtefactError("artefact", url.partition("@")[2] or "a URL", f"it is no URL: {exc}") from exc
    if _REFUSED.fullmatch(parts.scheme) or "::" in url:
        raise errors.ModelArtefactError("artefact", shown(url), f"{parts.scheme}:// is not served; give a plain URL")
    if ".." in unquote(unquote(parts.path)).split("/"):
        raise errors.ModelArtefactError("artefact", shown(url), "give a URL without '..'")
    if allowed is not None and not any(shown(url).startswith(_whole(one)) for one in allowed):
        fix = f"only URLs that begin with {' or '.join(allowed)} are served" if allowed else "URLs are not served"
        raise errors.ModelArtefactError("artefact", shown(url), f"{fix}; see --artefact-url")


def _whole(beginning: str) -> str:
    """A beginning that ends with a host must not be that of another host's name."""
    parts = urlsplit(beginning)
    return beginning if parts.path or not parts.netloc else f"{beginning}/"


def download(url: str, into: intake.Intake) -> None:
    """Get a file, or all files of a directory.

    Raises:
        ModelArtefactError: there is nothing, or it is not allowed.
        UnreachableError: the store does not answer or does not give it.
        StorageError: the disk refuses.
    """
    try:
        _download(url, into)
    except errors.MlscaleError:
        raise
    except Exception as exc:  # every store has its own classes
        exc = _behind(exc)
        if isinstance(exc, FileNotFoundError):
            raise into.refusal("there is nothing") from _hidden(exc)
        fix = f"it cannot be read ({_reason(exc)}); see that it is there, and that the daemon may read it"
        raise errors.UnreachableError("the store of the model", shown(url), fix) from _hidden(exc)


def _download(url: str, into: intake.Intake) -> None:
    store, path = _opened(url, into)
    if url.startswith(("http://", "https://")) or store.isfile(path):
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        if not name.endswith((*formats.SUFFIXES, *archives.SUFFIXES)):
            known = ", ".join((*formats.SUFFIXES, *archives.SUFFIXES))
            raise into.refusal(f"give the URL of a file that ends in one of {known}")
        with store.open(path, "rb", block_size=_BLOCK_BYTES) as stream:
            into.take(PurePosixPath(name), stream)
        return
    base = path.rstrip("/")
    for one in store.find(base):
        with store.open(one, "rb", block_size=_BLOCK_BYTES) as stream:
            into.take(PurePosixPath(one.removeprefix(base).lstrip("/")), stream)
    if into.empty:
        raise FileNotFoundError


def _opened(url: str, into: intake.Intake) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True}
    if url.startswith(("http://", "https://")):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        options["client_kwargs"] = {"timeout": limits}
    try:
        store, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as exc:
        raise into.refusal(f"this needs a package that is not installed: {exc}") from exc
    except ValueError as exc:
        raise into.refusal(f"no such protocol: {exc}") from exc
    return store, path


def _behind(exc: Exception) -> Exception:
    """What really happened: over HTTP a server that does not answer is first told as a file that is not there."""
    cause = exc.__cause__
    if isinstance(exc, FileNotFoundError) and isinstance(cause, Exception) and getattr(cause, "status", 0) != 404:
        return cause
    return exc


def _hidden(exc: Exception) -> Exception | None:
    """The cause for the log, unless its text may hold the URL's secrets."""
    return None if "://" in str(exc) else exc


def _reason(exc: Exception) -> str:
    """Without the message where that may hold the URL's secrets."""
    status = getattr(exc, "status", None)
    said = "" if "://" in str(exc) else f": {exc}"[:200]
    return f"{type(exc).__name__}{f' {status}' if status else ''}{said}"

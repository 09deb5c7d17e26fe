"""The host agent's JSON: from request bodies to shares and terms, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import process_table

_LEASE_FIELDS = ("guaranteed_cores", "ceiling_cores", "minimum_cores", "priority", "deadline_at", "ttl_s")


def fields(body: bytes, allowed: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in ``body``; raises `InvalidInputError` if it is none or has other fields."""
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError) as exc:  # also of a number with thousands of digits
        raise errors.InvalidInputError("body", body[:80], f"send a JSON object ({exc})") from exc
    if not isinstance(content, dict):
        raise errors.InvalidInputError("body", content, "send a JSON object")
    for name in content:
        if name not in allowed:
            said = ascii(name)[1:-1]  # JSON can hold half a character, which no answer could repeat
            raise errors.InvalidInputError(said, content[name], f"no such field; use {', '.join(allowed)}")
    return content


def lease(body: bytes) -> tuple[ports.CpuShare, ports.Terms]:
    """What a lease request asks for."""
    content = fields(body, _LEASE_FIELDS)
    share = ports.CpuShare(
        guaranteed_cores=_number(content, "guaranteed_cores"),
        ceiling_cores=None if content.get("ceiling_cores") is None else _number(content, "ceiling_cores"),
    )
    defaults = ports.Terms()
    priority = content.get("priority", defaults.priority)
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1_000_000:
        raise errors.InvalidInputError("priority", priority, "use a whole number between -1000000 and 1000000")
    terms = ports.Terms(
        minimum_cores=_number(content, "minimum_cores", defaults.minimum_cores),
        priority=priority,
        deadline_at=inf if content.get("deadline_at") is None else _number(content, "deadline_at"),
        ttl_s=_number(content, "ttl_s", defaults.ttl_s),
    )
    return share, terms


def admission(body: bytes) -> int | tuple[str, ...]:
    """Whom an admission request means: one process by its id, or those whose command line has all these words."""
    content = fields(body, ("pid", "command_contains"))
    if "command_contains" in content:
        if "pid" in content:
            raise errors.InvalidInputError("pid", content["pid"], "give either pid or command_contains")
        return process_table.check_words(content["command_contains"])
    value = content.get("pid")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise errors.InvalidInputError("pid", value, "give the id of a running process")
    return value


def share(value: ports.CpuShare) -> dict[str, Any]:
    """A share as JSON."""
    return asdict(value)


def group(info: ports.GroupInfo) -> dict[str, Any]:
    """A group as JSON."""
    return {"name": info.name, "share": share(info.share), "members": list(info.members)}


def usage(value: ports.CpuUsage) -> dict[str, Any]:
    """Meters as JSON."""
    return asdict(value)


def error(exc: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body for an error of this package."""
    body: dict[str, Any] = {"type": type(exc).__name__, "message": str(exc)}
    match exc:
        case errors.InvalidInputError():
            status = 400
            body |= {"field": exc.field, "value": repr(exc.value)[:200], "fix": exc.fix}
        case KeyError():
            status = 404
            body["message"] = f"there is no open CPU group {exc.args[0]!r}: open it first"
        case errors.AdmissionRefusedError():
            status = 409
        case _:
            status = 503
    return status, {"error": body}


def _number(content: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = content.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise errors.InvalidInputError(name, value, "use a number")
    try:
        return float(value)
    except OverflowError as exc:
        raise errors.InvalidInputError(name, str(value)[:40], "use a finite number") from exc

"""What somebody outside the daemon concludes from a model's status: is it deployed, is its objective met?

Pure; `operators`, `sensors` and `triggers` share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.runtime import journal

Status = Mapping[str, Any]
"""As ``GET /v2/mlscale/models/{model}`` gives it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a model."""

    done: bool
    told: str
    """For a person."""
    summary: Mapping[str, Any]


def record(look: Look, *, at: float) -> journal.Record:
    """One look for the decision journal; ``at`` in seconds since the epoch."""
    decided = {key: look.summary[key] for key in ("state", "met") if key in look.summary}
    seen = {key: value for key, value in look.summary.items() if key not in ("model", *decided)}
    return journal.Record(at=at, subject=str(look.summary["model"]), seen=seen, decided=decided, reason=look.told)


def pending_version(status: Status) -> str:
    """The version that an answered deployment is about."""
    candidate = status["candidate"]
    return str(candidate["version"] if candidate else status["version"])


def deployed(status: Status, version: str) -> Look:
    """Whether a version serves, or is tried as a canary if that was asked for.

    Raises:
        RunFailedError: it failed to load or was rolled back, or another deployment took its place.
    """
    name, serves = status["name"], status["version"]
    failure = status["failure"]
    if failure and failure["version"] == version:
        kept = f"; version {serves} goes on serving" if status["state"] != model.State.FAILED else ""
        raise errors.RunFailedError(f"version {version} of model {name!r} failed: {failure['reason']}{kept}")
    candidate = status["candidate"]
    if candidate and candidate["version"] == version:
        if (trial := status.get("canary")) and trial["state"] != "starting":
            return _tried(status, trial)
        return Look(done=False, told=f"version {version} of {name} is {candidate['state']}", summary=summary(status))
    if serves != version:
        raise errors.RunFailedError(
            f"version {version} of model {name!r} was replaced by version {serves} before it was ready"
        )
    if status["state"] != model.State.READY:
        return Look(done=False, told=f"{name} is {status['state']}: {status['reason']}", summary=summary(status))
    load_s = status.get("worker", {}).get("load_s", 0.0)
    return Look(
        done=True,
        told=f"version {version} of {name} is ready and warm (loaded in {load_s:.1f} s)",
        summary={**summary(status), "load_s": load_s},
    )


def _tried(status: Status, trial: Mapping[str, Any]) -> Look:
    target = status["objective"]
    measured = {
        "version": trial["version"],
        "stable_version": status["version"],
        "canary_fraction": trial["fraction"],
        "canary": trial["state"],
        "requests": trial["requests"],
        "errors": trial["errors"],
        f"p{target['percentile']:g}_ms": trial["percentile_ms"],
        **_judged(status, trial["version"]),
    }
    told = (
        f"version {trial['version']} of {status['name']} takes {100 * trial['fraction']:g} % of the requests beside "
        f"version {status['version']}: {trial['state']}, {trial['reason']}"
    )
    of_the_stable_one = _judged(status, status["version"])
    shared = {key: value for key, value in summary(status).items() if key not in (*of_the_stable_one, "checksum")}
    return Look(done=True, told=told, summary={**shared, "checksum": status["candidate"].get("checksum"), **measured})


@dataclass(frozen=True, kw_only=True)
class ObjectiveCondition:
    """When an objective counts as met: a percentile over enough requests, within it for long enough."""

    min_requests: int = 100
    """Requests in the window below which there is no verdict."""
    window_s: float = 60.0
    """Over which the daemon measures the percentile."""
    held_for_s: float = 0.0
    """How long it must hold without a break."""
    version: str | None = None
    """Only this version counts; None for whichever serves."""

    def __post_init__(self) -> None:
        if not model.is_integer(self.min_requests) or self.min_requests < 1:
            raise errors.InvalidInputError("min_requests", self.min_requests, "give a whole number of at least 1")
        if not model.is_number(self.window_s) or not 1 <= self.window_s <= 1800:
            raise errors.InvalidInputError("window_s", self.window_s, "give between 1 and 1800 seconds")
        if not model.is_number(self.held_for_s) or self.held_for_s < 0:
            raise errors.InvalidInputError("held_for", self.held_for_s, "give a time of at least 0 seconds")
        if self.version is not None:
            model.check_name("version", self.version)


def objective(
    status: Status, condition: ObjectiveCondition, *, held_since: float | None, now: float
) -> tuple[Look, float | None]:
    """Whether the objective is met, and since when it holds.

    Args:
        status: measured over the condition's window.
        condition: what counts as met.
        held_since: what the look before returned, on the clock of ``now``.
        now: seconds on any clock.

    Raises:
        RunFailedError: the model failed or was unloaded, or the version was left: waiting cannot help.
    """
    status = _seen_by(status, condition.version)
    state = status["state"]
    if state in (model.State.FAILED, model.State.UNLOADED):
        raise errors.RunFailedError(f"model {status['name']!r} is {state}: {status['reason']}; deploy it again")
    measured = summary(status)
    shortfall = _shortfall(status, condition)
    if shortfall:
        return Look(done=False, told=shortfall, summary={**measured, "met": False}), None
    since = now if held_since is None else held_since
    percentile = f"p{status['objective']['percentile']:g}"
    told = (
        f"{percentile} {status['percentile_ms']:.1f} ms is within {status['objective']['milliseconds']:g} ms"
        f" over {status['requests']} requests, for {now - since:.0f} of {condition.held_for_s:g} s"
    )
    done = now - since >= condition.held_for_s
    return Look(done=done, told=told, summary={**measured, "met": done}), since


def _seen_by(status: Status, version: str | None) -> Status:
    """The status as one who waits for a version sees it: of a canary, its own measurements."""
    failure, trial, candidate = status["failure"], status.get("canary"), status["candidate"]
    if failure and version is not None and failure["version"] == version != status["version"]:
        raise errors.RunFailedError(f"version {version} of model {status['name']!r} was left: {failure['reason']}")
    if not trial or not candidate or trial["state"] == "starting" or trial["version"] != version:
        return status
    measured = {key: trial[key] for key in ("version", "requests", "errors", "percentile_ms")}
    return {**status, **measured, **{key: candidate[key] for key in ("state", "reason", "checksum")}}


def summary(status: Status) -> dict[str, Any]:
    """What goes to XCom; the percentile's key carries its rank, such as ``p95_ms``."""
    target = status["objective"]
    return {
        "model": status["name"],
        "version": status["version"],
        "state": status["state"],
        "checksum": status.get("checksum"),
        "objective_ms": target["milliseconds"],
        "percentile": target["percentile"],
        f"p{target['percentile']:g}_ms": status["percentile_ms"],
        "requests": status["requests"],
        "errors": status["errors"],
        "verdict": status["verdict"],
        "cores": status.get("cores", {}).get("guaranteed"),
        **_judged(status, status["version"]),
    }


def _judged(status: Status, version: str) -> dict[str, Any]:
    """What feedback says of a version, as far as there is any."""
    quality = status.get("quality", {}).get(version, {})
    return {name: quality[name] for name in ("accuracy", "mae") if quality.get(name) is not None}


def _shortfall(status: Status, condition: ObjectiveCondition) -> str:
    """Why the condition does not hold now; empty if it does."""
    name, target = status["name"], status["objective"]
    if condition.version is not None and status["version"] != condition.version:
        return f"{name} serves version {status['version']}, not {condition.version} yet"
    if status["state"] != model.State.READY:
        return f"{name} is {status['state']}"
    if status["requests"] < condition.min_requests:
        return f"{status['requests']} of {condition.min_requests} requests in the last {condition.window_s:g} s"
    if status["percentile_ms"] > target["milliseconds"]:
        return (
            f"p{target['percentile']:g} {status['percentile_ms']:.1f} ms is above {target['milliseconds']:g} ms"
            f" over {status['requests']} requests ({status['errors']} errors)"
        )
    return ""

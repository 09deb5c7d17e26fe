"""The control API under ``/v2/mlscale``: deploying models and asking how they fare."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, deployment, feedback, fleet, gpus, memory, model, policy, rollout
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.roma.adapters import http, v2
from airflow_mlscale.runtime import journal

WINDOW_S = 60.0
"""Over which a status is measured unless the caller says otherwise."""

ARRIVALS_S = 8.0
"""Over which the arrival rate of a status is the mean."""


class ControlApi:
    """Everything under ``/v2/mlscale``."""

    def __init__(
        self,
        models: fleet.Fleet,
        plant: controller.ServingPlant,
        book: journal.Journal,
        port: cpu.CpuPort,
        graphics: gpus.Gpus | None = None,
    ) -> None:
        self._models = models
        self._plant = plant
        self._book = book
        self._port = port
        self._graphics = graphics

    async def __call__(self, exchange: http.Exchange, parts: list[str]) -> http.Reply:
        """Answer; ``parts`` is the path after ``/v2/mlscale``."""
        match parts:
            case ["models"]:
                exchange.allow("GET")
                return http.json_reply({"models": [self._status(one, exchange) for one in self._models]})
            case ["models", name]:
                return await self._model(exchange, name)
            case ["journal"]:
                exchange.allow("GET")
                return http.json_reply({"records": self._records(exchange, None)})
            case ["models", name, "promote"]:
                exchange.allow("POST")
                return await self._promote(exchange, name)
            case ["models", name, "rollback"]:
                exchange.allow("POST")
                return await self._roll_back(exchange, name)
            case ["models", name, "journal"]:
                exchange.allow("GET")
                return http.json_reply({"records": self._records(exchange, self._models[name].name)})
            case ["host"]:
                exchange.allow("GET")
                port = self._port
                host = {"cpu": port.name, "enforces": port.enforces, "cores": port.host_cores, "time": time.time()}
                return http.json_reply({**host, "gpus": self._graphics.as_json() if self._graphics else []})
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")

    async def _model(self, exchange: http.Exchange, name: str) -> http.Reply:
        exchange.allow("GET", "PUT", "DELETE")
        exchange.model_name = name
        if exchange.method == "PUT":
            order = model.order_from_json(name, await exchange.json())
            one = await self._models.deploy(order)
            return http.json_reply(self._status(one, exchange), 200 if one.settled else 202)
        if exchange.method == "DELETE":
            await self._models.remove(name)
            return http.json_reply({"removed": name})
        one = self._models[name]
        if wait_s := exchange.number("settled_within_s", 0, low=0, high=600):
            await one.wait_settled(wait_s)
        return http.json_reply(self._status(one, exchange))

    async def _promote(self, exchange: http.Exchange, name: str) -> http.Reply:
        version, why = _wish(await exchange.json(), "promoted")
        one = await self._models.promote(name, version)
        served = (one.candidate or one).spec.version
        self._book.append(rollout.by_hand(name, served, "promoted", why))
        return http.json_reply(self._status(one, exchange), 200 if one.settled else 202)

    async def _roll_back(self, exchange: http.Exchange, name: str) -> http.Reply:
        version, why = _wish(await exchange.json(), "rolled back")
        one = await self._models.roll_back(name, why, version)
        self._book.append(rollout.by_hand(name, one.desired.failed_version or "", "rolled back", why))
        return http.json_reply(self._status(one, exchange), 200 if one.settled else 202)

    def _records(self, exchange: http.Exchange, name: str | None) -> list[dict[str, Any]]:
        since = exchange.number("since", 0, low=0, high=1e12)
        records = (one for one in self._book.records() if one.at >= since)
        # A canary's records are its model's: it is called model@version there.
        return [asdict(one) for one in records if name is None or one.subject.partition("@")[0] == name]

    def _status(self, one: deployment.Deployment, exchange: http.Exchange) -> dict[str, Any]:
        window_s = exchange.number("window_s", WINDOW_S, low=1, high=1800)
        spec, desired = one.spec, one.desired
        return {
            "name": one.name,
            "version": spec.version,
            "artefact": spec.artefact,
            "checksum": spec.fingerprint,
            "runtime": _runtime(one.active, spec),
            "state": one.state,
            "reason": one.reason,
            "settled": one.settled,
            "objective": asdict(spec.objective),
            "min_cores": spec.min_cores,
            "max_cores": spec.max_cores,
            "priority": spec.priority,
            "max_batch": spec.max_batch,
            "device": spec.device,
            "gpu_memory_mb": spec.gpu_memory_mb,
            "max_memory_mb": spec.max_memory_mb,
            "candidate": _candidate(one),
            "canary": _canary(one),
            "previous": desired.previous and desired.previous.version,
            "quality": feedback.as_json(self._models.quality.since(one.name, time.time() - v2.QUALITY_S)),
            "failure": desired.failure and {"version": desired.failed_version, "reason": desired.failure},
            **self._measured(one, window_s),
        }

    def _measured(self, one: deployment.Deployment, window_s: float) -> dict[str, Any]:
        replica = one.active
        if replica is None:
            verdict = model.Verdict.NO_DATA
            return {"window_s": window_s, "requests": 0, "errors": 0, "percentile_ms": None, "verdict": verdict}
        now = time.monotonic()
        window = replica.meter.window(now, window_s, replica.spec.objective.percentile)
        measured_s = window.percentile_s
        return {
            "window_s": window_s,
            "requests": window.requests,
            "errors": window.errors,
            "shed": window.shed,
            "invalid": window.invalid,
            "nan": window.nan,
            "percentile_ms": None if measured_s is None else round(1000 * measured_s, 3),
            "verdict": self._verdict(one, measured_s),
            "totals": {outcome.value: count for outcome, count in replica.meter.totals.items()},
            "queue": {"requests": replica.waiting, "bytes": replica.queue.size, "executing": replica.executing},
            "lost": {reason: count for (_, reason), count in replica.meter.reasons.items()},
            "arrivals_per_s": round(replica.meter.arrivals_per_s(now, ARRIVALS_S), 2),
            "cores": self._cores(one, replica),
            "batches": {str(size): count for size, count in sorted(replica.meter.batches.items())},
            "service_ms": {str(size): round(1000 * s, 3) for size, s in sorted(replica.times.means.items())},
            "answered": dict(replica.seats.answered),
            "gpu": self._graphics.placed_json(replica) if self._graphics else None,
            "worker": {
                "pid": replica.supervisor.pid,
                "restarts": replica.supervisor.restarts,
                "renewals": replica.supervisor.renewals,
                "memory_mb": round(memory.resident_bytes(replica) / 2**20, 1),
                "load_s": round(replica.supervisor.load_s, 3),
                "threads": replica.threads,
            },
        }

    def _verdict(self, one: deployment.Deployment, measured_s: float | None) -> model.Verdict:
        """Of the window that was asked for; the limits on cores are those of the last decision."""
        if measured_s is None:
            return model.Verdict.NO_DATA
        last = self._plant.decisions.get(one.name)
        at_limit = last is not None and last.verdict is model.Verdict.AT_RISK
        return policy.judge(measured_s, one.spec.objective.seconds, short_of_cores=at_limit)

    def _cores(self, one: deployment.Deployment, replica: replicas.Replica) -> dict[str, float | None]:
        granted = self._plant.granted.get(replica.group)
        return {
            "guaranteed": round(granted.guaranteed_cores, 3) if granted else None,
            "ceiling": granted.ceiling_cores if granted else None,
            "lent": round(self._plant.loans.get(replica.group, 0.0), 3),
            "used": round(self._plant.used_cores.get(one.name, 0.0), 3),
        }


def _wish(document: Any, done: str) -> tuple[str | None, str]:
    """The version and the reason in a request's body; both may be missing."""
    if not isinstance(document, dict) or not document.keys() <= {"version", "reason"}:
        raise errors.InvalidInputError("body", repr(document)[:60], 'send {} or {"version": "2", "reason": "…"}')
    version, why = document.get("version"), document.get("reason", f"{done} by hand")
    if version is not None:
        version = model.check_name("version", str(version) if model.is_integer(version) else version)
    if not isinstance(why, str) or not 0 < len(why) <= 500:
        raise errors.InvalidInputError("reason", repr(why)[:60], "give a text of at most 500 characters")
    return version, why


def _canary(one: deployment.Deployment) -> dict[str, Any] | None:
    """How the candidate is tried, and what is known of it since it takes requests."""
    rules, candidate = one.desired.canary, one.candidate
    if rules is None or candidate is None:
        return None
    described = {"version": candidate.spec.version, **asdict(rules)}
    now = time.monotonic()
    if (seen := rollout.look(one, now)) is None or one.trial_since is None:
        return {**described, "state": "starting"}
    seconds = rollout.compared_s(rules, one.trial_since, now)
    window = candidate.meter.window(now, seconds, candidate.spec.objective.percentile)
    return {
        **described,
        "state": seen.opinion.finding,
        "reason": seen.opinion.reason,
        "since_s": round(now - one.trial_since, 1),
        **asdict(seen.new),
        "percentile_ms": None if window.percentile_s is None else round(1000 * window.percentile_s, 3),
        "stable": {"version": seen.stable_version, **asdict(seen.stable)},
    }


def _runtime(replica: replicas.Replica | None, spec: model.ModelSpec) -> dict[str, Any]:
    """What computes a version, and how others did; until it is loaded what was asked for."""
    if replica and replica.loaded and replica.loaded.runtime:
        return {**replica.loaded.runtime, "asked": spec.runtime.name}
    return {"name": None, "asked": spec.runtime.name}


def _candidate(one: deployment.Deployment) -> dict[str, Any] | None:
    if one.candidate is None:
        return None
    return {
        "version": one.candidate.spec.version,
        "checksum": one.candidate.spec.fingerprint,
        "runtime": _runtime(one.candidate, one.candidate.spec),
        "state": one.candidate.supervisor.state,
        "reason": one.candidate.supervisor.reason,
    }

"""The control API under ``/v2/mlscale``: deploying models and asking how they fare."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, deployment, fleet, model, policy
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.roma.adapters import http
from airflow_mlscale.runtime import journal

WINDOW_S = 60.0
"""Over which a status is measured unless the caller says otherwise."""


class ControlApi:
    """Everything under ``/v2/mlscale``."""

    def __init__(
        self, models: fleet.Fleet, plant: controller.ServingPlant, book: journal.Journal, port: cpu.CpuPort
    ) -> None:
        self._models = models
        self._plant = plant
        self._book = book
        self._port = port

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
            case ["models", name, "journal"]:
                exchange.allow("GET")
                return http.json_reply({"records": self._records(exchange, self._models[name].name)})
            case ["host"]:
                exchange.allow("GET")
                port = self._port
                return http.json_reply({"cpu": port.name, "enforces": port.enforces, "cores": port.host_cores})
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

    def _records(self, exchange: http.Exchange, name: str | None) -> list[dict[str, Any]]:
        since = exchange.number("since", 0, low=0, high=1e12)
        return [asdict(one) for one in self._book.records() if one.at >= since and name in (None, one.subject)]

    def _status(self, one: deployment.Deployment, exchange: http.Exchange) -> dict[str, Any]:
        window_s = exchange.number("window_s", WINDOW_S, low=1, high=1800)
        spec, desired = one.spec, one.desired
        return {
            "name": one.name,
            "version": spec.version,
            "artefact": spec.artefact,
            "state": one.state,
            "reason": one.reason,
            "settled": one.settled,
            "objective": asdict(spec.objective),
            "min_cores": spec.min_cores,
            "max_cores": spec.max_cores,
            "priority": spec.priority,
            "max_batch": spec.max_batch,
            "candidate": _candidate(one),
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
            "percentile_ms": None if measured_s is None else round(1000 * measured_s, 3),
            "verdict": self._verdict(one, measured_s),
            "totals": {outcome.value: count for outcome, count in replica.meter.totals.items()},
            "queue": {"requests": replica.waiting, "bytes": replica.queue.size, "executing": replica.executing},
            "cores": self._cores(one, replica),
            "service_ms": {str(size): round(1000 * s, 3) for size, s in sorted(replica.times.means.items())},
            "worker": {
                "pid": replica.supervisor.pid,
                "restarts": replica.supervisor.restarts,
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
            "used": round(self._plant.used_cores.get(one.name, 0.0), 3),
        }


def _candidate(one: deployment.Deployment) -> dict[str, Any] | None:
    if one.candidate is None:
        return None
    return {
        "version": one.candidate.spec.version,
        "state": one.candidate.supervisor.state,
        "reason": one.candidate.supervisor.reason,
    }

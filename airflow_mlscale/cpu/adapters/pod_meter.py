"""Core-seconds of pods from ``metrics.k8s.io``: rates of the last seconds, integrated over time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow_mlscale.cpu import pods
from airflow_mlscale.runtime import clock as clocks

log = logging.getLogger(__name__)

READ_EVERY_S = 10.0
"""A metrics server measures every 15 s by default."""
LONGEST_HOLD_S = 60.0
"""A rate that is older is believed no more."""


@dataclass
class _Reading:
    rate_cores: float
    at: float
    """Until when it is booked, seconds since the epoch."""


@dataclass
class PodMeter:
    """Meters the pods that a label selector chooses.

    Between two measurements the last rate holds, so that the meter grows evenly; it never falls.
    """

    api: Any
    """`kubernetes.client.CustomObjectsApi`."""
    namespace: str
    selector: str
    container: str
    clock: clocks.Clock
    timeout_s: float
    _pods: dict[str, _Reading] = field(default_factory=dict, init=False)
    _booked_core_s: float = field(default=0.0, init=False)
    _reported_core_s: float = field(default=0.0, init=False)
    _read_s: float | None = field(default=None, init=False)
    _silent: bool = field(default=False, init=False)

    def used_core_s(self) -> float:
        """Core-seconds since the first reading; 0 for ever where there is no metrics server."""
        now_s = self.clock.monotonic()
        if self._read_s is None or now_s - self._read_s >= READ_EVERY_S:
            self._read_s = now_s
            self._read()
        now = self.clock.now()
        since = sum(
            reading.rate_cores * min(max(0.0, now - reading.at), LONGEST_HOLD_S) for reading in self._pods.values()
        )
        self._reported_core_s = max(self._reported_core_s, self._booked_core_s + since)
        return self._reported_core_s

    def _read(self) -> None:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            rows = self.api.list_namespaced_custom_object(
                "metrics.k8s.io",
                "v1beta1",
                self.namespace,
                "pods",
                label_selector=self.selector,
                _request_timeout=self.timeout_s,
            )["items"]
        except (ApiException, HTTPError) as exc:
            log.log(
                logging.DEBUG if self._silent else logging.WARNING,
                "no CPU meter for pods %s (%s): install a metrics server and allow get and list on pods in "
                "metrics.k8s.io; until then work is judged by the run times of tasks",
                self.selector,
                exc.reason if isinstance(exc, ApiException) else exc,
            )
            self._silent = True
            return
        self._silent = False
        self._book({row["metadata"]["name"]: row for row in rows})

    def _book(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Book what was measured; a pod that is gone is booked up to its last measurement."""
        for name in [name for name in self._pods if name not in rows]:
            del self._pods[name]
        for name, row in rows.items():
            measured_at = datetime.fromisoformat(str(row["timestamp"])).timestamp()
            rate_cores = sum(
                pods.cores_of(each["usage"]["cpu"]) for each in row["containers"] if each["name"] == self.container
            )
            before = self._pods.get(name)
            if before is not None and measured_at <= before.at:
                continue
            begun_at = measured_at - _seconds(row.get("window")) if before is None else before.at
            self._booked_core_s += rate_cores * (measured_at - begun_at)
            self._pods[name] = _Reading(rate_cores=rate_cores, at=measured_at)


def _seconds(window: object) -> float:
    """Of a Go duration such as ``15.04s`` or ``1m0s``; 0 for anything else."""
    text, total = str(window or ""), 0.0
    for unit, seconds in (("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        number, found, rest = text.partition(unit)
        if found:
            try:
                total += float(number) * seconds
            except ValueError:
                return 0.0
            text = rest
    return total

"""Everything about ROMA that can be set, with its unit and its default.

Per-model settings travel with the model (`model.ModelSpec`); these are the daemon's.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal, get_args

from airflow_mlscale import errors

Mode = Literal["work_conserving", "reserve"]


def is_loopback(host: str) -> bool:
    """Whether an address to bind can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to bind; anything but loopback needs a token."""
    port: int = 8500
    """TCP port."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that every request except the health checks must carry."""
    max_body_bytes: int = 16 * 2**20
    """Larger requests get status 413."""
    buffered_bytes: int = 256 * 2**20
    """Request bodies held at one time, all models together; above it requests get status 503."""
    body_timeout_s: float = 30.0
    """A client that has not sent its whole body by then gets status 408."""
    access_log: bool = False
    """One JSON line for each request, on the logger ``roma.access``."""
    drain_s: float = 10.0
    """How long a shutdown waits for requests in flight."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise errors.InvalidInputError("port", self.port, "give a TCP port between 1 and 65535")
        if self.max_body_bytes < 1024:
            raise errors.InvalidInputError("max_body_bytes", self.max_body_bytes, "allow at least 1024 bytes")
        if not self.token and not is_loopback(self.host):
            raise errors.InvalidInputError(
                "host", self.host, "binding beyond loopback needs a token: give --token-file, or bind to 127.0.0.1"
            )


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """The waiting line of one model."""

    max_requests: int = 1024
    """Requests waiting; one more gets status 429."""
    max_bytes: int = 64 * 2**20
    """Bytes waiting; more gets status 429."""
    give_up_factor: float = 10.0
    """A request that named no deadline is given up, with status 503, once its answer would take longer than
    this many times the objective. Requests past their objective wait behind those that can still meet it."""

    def __post_init__(self) -> None:
        if not 1 <= self.give_up_factor < inf:
            raise errors.InvalidInputError("give_up_factor", self.give_up_factor, "give a factor of at least 1")
        if self.max_requests < 1:
            raise errors.InvalidInputError("max_requests", self.max_requests, "let at least 1 request wait")

    def lost_s(self, objective_s: float) -> float:
        """Least latency that a request without an answer counts with: a miss even where the factor is 1."""
        return max(2.0, self.give_up_factor) * objective_s


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """When waiting requests are joined."""

    min_gain: float = 0.1
    """Least saving in service time per request, as a fraction, for a larger batch to be worth it."""


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """The once-a-second core control."""

    mode: Mode = "work_conserving"
    """``work_conserving``: the base is a guarantee, idle cycles are free. ``reserve``: it is also the ceiling."""
    period_s: float = 1.0
    """How often shares are decided."""
    utilisation: float = 0.8
    """Part of the base that should be busy."""
    arrivals_window_s: float = 8.0
    """Over which the arrival rate is averaged; the last two seconds count alone when they are higher."""
    percentile_window_s: float = 10.0
    """Over which the percentile is measured for control."""
    trim_rate: float = 0.1
    """Largest change of the correction in one step, as a fraction."""
    trim_low: float = 0.5
    """Least correction of the feed-forward."""
    trim_high: float = 4.0
    """Greatest correction of the feed-forward."""
    deadband: float = 0.1
    """Relative change of a base that is not worth a write."""
    gateway_cores: float = 0.25
    """Guarantee of the gateway itself, so that a busy host does not delay requests before any model sees them."""
    lease_ttl_s: float = 10.0
    """A share that is not renewed for this long goes back to the safe one (with a host agent)."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise errors.InvalidInputError("mode", self.mode, f"choose one of {', '.join(get_args(Mode))}")
        if not 0 < self.utilisation <= 1:
            raise errors.InvalidInputError("utilisation", self.utilisation, "give a fraction above 0 and at most 1")
        if not 0 <= self.gateway_cores < inf:
            raise errors.InvalidInputError("gateway_cores", self.gateway_cores, "give a number of cores of at least 0")
        if not 0 < self.period_s <= self.lease_ttl_s / 3:
            fix = f"give a period above 0 and of at most {self.lease_ttl_s / 3:.1f} seconds, or shares would lapse"
            raise errors.InvalidInputError("period_s", self.period_s, fix)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Model workers and their supervision."""

    start_timeout_s: float = 60.0
    """From the start of the process to its first word."""
    load_timeout_s: float = 300.0
    """To load and warm up a model."""
    start_attempts: int = 3
    """Workers that may die while a new version loads before it is given up."""
    backoff_first_s: float = 0.1
    """Pause before the first restart of a worker that died; it doubles with each death."""
    backoff_max_s: float = 30.0
    """Longest pause."""
    settled_after_s: float = 60.0
    """A worker that lived this long begins again at the first pause."""
    execution_timeout_s: float = 300.0
    """A worker that is busy with one execution for longer counts as hung and is replaced."""
    drain_s: float = 30.0
    """How long the worker of a replaced version may go on with what it had accepted."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole daemon."""

    state_dir: Path
    """Where the desired state and the logs of workers are kept."""
    model_root: Path | None = None
    """If set, artefacts outside it are refused, and the repository API can load what lies in it."""
    journal_path: Path | None = None
    """If set, every decision is appended to this file as a JSON line."""
    gateway: GatewaySettings = GatewaySettings()
    queue: QueueSettings = QueueSettings()
    batch: BatchSettings = BatchSettings()
    control: ControlSettings = ControlSettings()
    worker: WorkerSettings = WorkerSettings()

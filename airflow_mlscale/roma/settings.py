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
LawName = Literal["base", "ct", "queue_length", "rules", "hpa", "static", "sharing"]
DispatchName = Literal["deadline", "h1", "arrival"]


def is_loopback(host: str) -> bool:
    """Whether an address to bind can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """TLS of both ports. Certificate and key are read again when their files change."""

    certificate: Path
    """The chain in PEM form, the daemon's own certificate first."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """If set, only clients with a certificate of one of these authorities are served; read at the start."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """What comes in over HTTP and gRPC."""

    host: str = "127.0.0.1"
    """Address to bind; anything but loopback needs tokens and TLS."""
    port: int = 8501
    """TCP port."""
    grpc_port: int | None = None
    """TCP port of gRPC; None for none."""
    token: str | None = field(default=None, repr=False)
    """Bearer token of every scope. With it or ``tokens_path`` every request but the health checks needs a token."""
    tokens_path: Path | None = None
    """File of tokens with scopes, kept as hashes; read again when it changes."""
    tls: TlsSettings | None = None
    """None for plain text."""
    plaintext: bool = False
    """Whether binding beyond loopback without TLS is wanted, because a proxy before the daemon encrypts."""
    rate_per_s: float | None = None
    """Requests a second of each token, or of each address where no token is asked for or none is good; one second's
    worth may come at once. More get status 429. None for no limit but those of single tokens."""
    max_body_bytes: int = 16 * 2**20
    """Larger requests, and compressed ones with more in them, get status 413."""
    max_header_bytes: int = 32 * 2**10
    """Larger request lines and headers together get status 431."""
    header_timeout_s: float = 10.0
    """A connection whose headers are not there by then gets status 408 and is closed. So is one that has not
    sent the rest of a body by then though its request is answered."""
    max_connections: int = 4096
    """Connections and requests side by side; above it requests get status 503."""
    max_connections_per_address: int = 1024
    """HTTP connections of one other machine; more are closed at once. Not behind a proxy (``plaintext``), which
    comes from one address for everybody."""
    compress_from_bytes: int = 1024
    """Shorter answers are not compressed."""
    buffered_bytes: int = 256 * 2**20
    """Request bodies held at one time, all models together; above it requests get status 503."""
    body_timeout_s: float = 30.0
    """A client that has not sent its whole body by then gets status 408."""
    access_log: bool = False
    """One JSON line for each request, on the logger ``roma.access``."""
    access_log_path: Path | None = None
    """File for these lines; None for the daemon's own log. Opened anew once it was moved away."""
    drain_s: float = 10.0
    """How long a shutdown waits for requests in flight."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise errors.InvalidInputError("port", self.port, "give a TCP port between 1 and 65535")
        if self.grpc_port is not None and not 0 <= self.grpc_port <= 65535:
            raise errors.InvalidInputError("grpc_port", self.grpc_port, "give a TCP port between 1 and 65535, or None")
        if self.grpc_port and self.grpc_port == self.port:
            raise errors.InvalidInputError("grpc_port", self.grpc_port, "HTTP has this port; give another one")
        if self.max_header_bytes < 1024:
            raise errors.InvalidInputError("max_header_bytes", self.max_header_bytes, "allow at least 1024 bytes")
        if self.max_body_bytes < 1024:
            raise errors.InvalidInputError("max_body_bytes", self.max_body_bytes, "allow at least 1024 bytes")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < inf:
            raise errors.InvalidInputError("rate_per_s", self.rate_per_s, "give a number of requests above 0, or None")
        self._check_exposure()

    def _check_exposure(self) -> None:
        if is_loopback(self.host):
            return
        if not (self.token or self.tokens_path):
            fix = "binding beyond loopback needs a token: give --tokens-file or --token-file, or bind to 127.0.0.1"
            raise errors.InvalidInputError("host", self.host, fix)
        if not (self.tls or self.plaintext):
            fix = (
                "binding beyond loopback needs TLS: give --tls-cert and --tls-key, --plaintext if a proxy before "
                "this encrypts, or bind to 127.0.0.1"
            )
            raise errors.InvalidInputError("host", self.host, fix)


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
class PaperSettings:
    """The constants of ROMA's paper, for its laws."""

    period_s: float = 5.0
    """How often its laws move."""
    integral: float = 0.21
    """K_I, cores per 1/s of error in one period."""
    proportional: float = 0.17
    """K_P, cores per 1/s of error."""
    scale: float = 1.0
    """Multiplies both: the paper's gains are meant for objectives near a second and machines of many cores."""
    greatest_error: float = 100.0
    """Errors beyond this, in 1/s, count as this much."""
    rule_cores: float = 1.0
    """Step of the rule baseline."""
    rule_cooldown_s: float = 60.0
    """Its pause after a step."""
    alpha: float = 0.2
    """Part of the objective that H1 dispatch keeps free."""


@dataclass(frozen=True, kw_only=True)
class RivalSettings:
    """The constants of the law after Kubernetes' HorizontalPodAutoscaler, its own defaults but for the last."""

    hpa_period_s: float = 15.0
    """How often it moves."""
    hpa_utilisation: float = 0.8
    """Part of the cores that should be busy."""
    hpa_tolerance: float = 0.1
    """Relative deviation that it lets pass."""
    hpa_stabilisation_s: float = 300.0
    """It goes down to the highest wish of so many seconds."""


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """The once-a-second core control."""

    mode: Mode = "work_conserving"
    """``work_conserving``: the base is a guarantee, idle cycles are free. ``reserve``: it is also the ceiling,
    but for what is lent."""
    law: LawName = "base"
    """What decides how many cores a model should have; everything but ``base`` is there for comparison."""
    dispatch: DispatchName = "deadline"
    """Whose execution begins next: the most urgent one's, after the paper's H1, or the longest waiting."""
    period_s: float = 1.0
    """How often shares are decided."""
    utilisation: float = 0.8
    """Part of the base that should be busy."""
    arrivals_window_s: float = 8.0
    """Over which the arrival rate is averaged."""
    burst_window_s: float = 2.0
    """The last seconds, which count alone when the rate is higher in them."""
    percentile_window_s: float = 10.0
    """Over which the percentile is measured for control."""
    trim_rate: float = 0.03
    """Largest change of the correction in one step, as a fraction."""
    trim_comfortable: float = 0.75
    """Part of the objective below which the correction shrinks."""
    trim_low: float = 0.7
    """Least correction of the feed-forward."""
    trim_high: float = 2.0
    """Greatest correction of the feed-forward."""
    prompt_part: float = 0.2
    """A light model's base is raised towards the mean until it could answer a request in this part of its objective."""
    deadband: float = 0.1
    """Relative change of a base that is not worth a write."""
    boost: bool = True
    """Lend cores that nobody is guaranteed to models that would miss deadlines (``reserve`` mode only: without
    ceilings they take idle cores by themselves)."""
    boost_period_s: float = 0.05
    """How often loans are decided."""
    boost_hold_s: float = 0.15
    """Least time of a loan."""
    boost_margin: float = 0.5
    """Part of the objective that a loan aims to be early by."""
    worse_periods: int = 2
    """Steps in a row after which a verdict gets worse."""
    better_periods: int = 5
    """Steps in a row after which it gets better."""
    paper: PaperSettings = PaperSettings()
    rival: RivalSettings = RivalSettings()
    gateway_cores: float = 0.25
    """Least guarantee of the gateway itself, so that a busy host does not delay requests before any model sees them."""
    gateway_utilisation: float = 0.6
    """Part of the gateway's guarantee that should be busy."""
    lease_ttl_s: float = 10.0
    """A share that is not renewed for this long goes back to the safe one (with a host agent)."""

    @property
    def takes_turns(self) -> bool:
        """Whether no more executions begin than the host has cores. Not under the quotas of other laws, where one
        that its quota stops would keep others waiting."""
        return self.law == "base" or self.mode == "work_conserving"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise errors.InvalidInputError("mode", self.mode, f"choose one of {', '.join(get_args(Mode))}")
        if self.law not in get_args(LawName):
            raise errors.InvalidInputError("law", self.law, f"choose one of {', '.join(get_args(LawName))}")
        if self.dispatch not in get_args(DispatchName):
            fix = f"choose one of {', '.join(get_args(DispatchName))}"
            raise errors.InvalidInputError("dispatch", self.dispatch, fix)
        if not 0.01 <= self.boost_period_s <= self.boost_hold_s < inf:
            fix = f"give at least 0.01 and at most boost_hold_s={self.boost_hold_s:g} seconds"
            raise errors.InvalidInputError("boost_period_s", self.boost_period_s, fix)
        if not (self.arrivals_window_s >= 1 and self.burst_window_s >= 1):
            window_s = min(self.arrivals_window_s, self.burst_window_s)
            raise errors.InvalidInputError("arrivals_window_s, burst_window_s", window_s, "give at least 1 second")
        if not 0 <= self.boost_margin < 1:
            raise errors.InvalidInputError("boost_margin", self.boost_margin, "give a fraction of at least 0, below 1")
        if not 0 < self.utilisation <= 1:
            raise errors.InvalidInputError("utilisation", self.utilisation, "give a fraction above 0 and at most 1")
        for name in ("gateway_utilisation", "prompt_part"):
            if not 0 < getattr(self, name) <= 1:
                raise errors.InvalidInputError(name, getattr(self, name), "give a fraction above 0 and at most 1")
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
    crash_loop_after: int = 5
    """Deaths in a row after which a model's state says so; it is still started again."""
    settled_after_s: float = 60.0
    """A worker that lived this long begins again at the first pause."""
    execution_timeout_s: float = 300.0
    """A worker that is busy with one execution for longer counts as hung and is replaced; sooner, after 30 s and fifty
    times what such an execution takes, where nobody waits for it any more."""
    drain_s: float = 30.0
    """How long the worker of a replaced version may go on with what it had accepted."""
    max_memory_mb: float | None = None
    """Resident memory (MiB) above which a worker is renewed, for models that name none; None for half of the host's."""
    memory_hard_factor: float = 1.5
    """A worker above so many times that is ended at once, without waiting for a fresh one."""
    memory_period_s: float = 1.0
    """How often workers' memory is measured."""

    def __post_init__(self) -> None:
        if self.execution_timeout_s <= 0:
            fix = "give more seconds than any execution takes"
            raise errors.InvalidInputError("execution_timeout_s", self.execution_timeout_s, fix)
        if self.max_memory_mb is not None and self.max_memory_mb <= 0:
            raise errors.InvalidInputError("max_memory_mb", self.max_memory_mb, "give a size above 0, or none")
        if self.memory_hard_factor < 1:
            fix = "give a factor of at least 1: workers are renewed at 1"
            raise errors.InvalidInputError("memory_hard_factor", self.memory_hard_factor, fix)
        if self.memory_period_s <= 0:
            raise errors.InvalidInputError("memory_period_s", self.memory_period_s, "give seconds above 0")


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """GPUs: which to use, and how their memory is divided among models."""

    use: bool = False
    """Whether models may run on GPUs at all."""
    uuids: tuple[str, ...] = ()
    """GPUs or MIG instances to use; empty for all that NVML tells of."""
    emulated: bool = False
    """Run what belongs on a GPU in a process on the CPU, named emulated wherever it is told of: for trying out
    everything but the GPU itself."""
    places: int = 1
    """Executions side by side on one GPU."""
    percentage: int = 100
    """Of a GPU's cores for the daemon, where MPS runs."""
    headroom: float = 0.05
    """Part of a GPU's memory that is never promised."""
    context_bytes: int = 600 * 2**20
    """What the CUDA context and the libraries of an executor take."""
    size_factor: float = 2.0
    """A model that was never on a GPU is taken to need so many times the size of its files …"""
    workspace_bytes: int = 128 * 2**20
    """… and this on top."""
    assumed_gain: float = 4.0
    """How many times faster than on the CPU a model is taken to be on a GPU until it was there."""
    horizon_s: float = 60.0
    """Over which an eviction must pay."""
    eviction_gain: float = 1.5
    """How many times more CPU time a model must save than those it displaces."""
    period_s: float = 1.0
    """How often GPUs are read and places are decided."""
    backoff_first_s: float = 1.0
    """Pause after an executor died, or a model could not be loaded; it doubles each time in a row."""
    backoff_max_s: float = 300.0
    """Longest pause."""

    def __post_init__(self) -> None:
        if not 1 <= self.percentage <= 100:
            raise errors.InvalidInputError("gpu_percentage", self.percentage, "give a percentage from 1 to 100")
        if self.places < 1:
            raise errors.InvalidInputError("gpu_places", self.places, "let at least 1 execution run")


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings:
    """What may be deployed, and from where."""

    urls: tuple[str, ...] = ()
    """Beginnings of URLs that may be deployed. Empty for any, but none where a model root confines artefacts."""
    max_bytes: int = 16 * 2**30
    """Of a model from a URL or an archive, unpacked."""
    max_files: int = 10_000
    """In a model from a URL or an archive."""

    def __post_init__(self) -> None:
        for one in self.urls:
            if "://" not in one:
                raise errors.InvalidInputError("artefact_url", one, "give the beginning of a URL, such as s3://models/")
        if self.max_bytes < 1 or self.max_files < 1:
            raise errors.InvalidInputError("max_artefact_gb", self.max_bytes, "give a size above 0")


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
    artefact: ArtefactSettings = ArtefactSettings()
    gpu: GpuSettings = GpuSettings()

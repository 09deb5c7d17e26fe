"""The GPUs of a host: their executors, which models have a seat on them, and what happens when one is lost.

A plant for the one periodic loop: each second GPUs are read and `placement.place` says what to move. What cannot
wait for that (a dead executor, a fault) is done when it is seen: the seats are closed first, so that their models go
on at their CPU workers, and what was under way is asked again there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, deployment, devices, placement, ports, residents, seats, settings
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal, loop

log = logging.getLogger(__name__)

ARRIVALS_WINDOW_S = 8.0

HAND_OVER_LOOK_S = 0.02
TURN_NOTE = "another daemon on the same state directory uses the GPUs"


class Models(Protocol):
    """The models of a daemon; see `fleet.Fleet`."""

    def __iter__(self) -> Iterator[deployment.Deployment]: ...

    def group_name(self, name: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What placement is decided from."""

    gpus: tuple[placement.GpuSeen, ...]
    models: tuple[placement.ModelSeen, ...]


class Gpus:
    """The plant."""

    def __init__(
        self,
        models: Models,
        port: ports.GpuPort,
        launcher: ports.ExecutorLauncherPort,
        *,
        groups: cores.CoreGroups,
        control: settings.GpuSettings,
        worker: settings.WorkerSettings,
        book: journal.Journal,
    ) -> None:
        self.device: devices.Device = "emulated-gpu" if control.emulated else "gpu"
        """What its seats are called."""
        self._models = models
        self._port = port
        self._launcher = launcher
        self._groups = groups
        self._control = control
        self._timing = worker
        self._book = book
        self._known: dict[str, residents.Known] = {}
        self._reading = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()
        self.ours = True
        """Whether models may be brought there; not while another daemon on the same state still uses them."""
        self.hosts: dict[str, residents.Host] = {}
        """By UUID."""
        for number, gpu in enumerate(residents.chosen(port.found(), control)):
            self.hosts[gpu.uuid] = residents.Host(
                gpu=gpu,
                lane=seats.Lane(places=control.places),
                group=models.group_name(f"gpu{number}"),
                reading=devices.Reading(uuid=gpu.uuid),
                fault=devices.usable(gpu),
            )
            log.info("%s %s (%s, %d MiB)", self.device, gpu.uuid, gpu.name, gpu.total_bytes // 2**20)

    async def observe(self) -> Seen:
        """Read the GPUs; those that were lost lose their seats here: they cannot wait for a decision."""
        await self._read()
        now = time.monotonic()
        serving = {each.replica.group: each for one in self._models for each in one.serving()}
        for group in self._known.keys() - serving.keys():
            del self._known[group]
        self._leave_all_but(set(serving))
        seen = [await self._model_seen(each.name, each.replica, now) for each in serving.values()]
        usable = [host for host in self.hosts.values() if self.ours and host.fault is None and host.back_at <= now]
        return Seen(gpus=tuple(host.seen(self._control) for host in usable), models=tuple(seen))

    async def act(self, actions: Sequence[placement.Action]) -> None:
        """Begin to load or to leave."""
        serving = {each.replica.group: each for one in self._models for each in one.serving()}
        for action in actions:
            host = self.hosts[action.gpu]
            if isinstance(action, placement.Evict):
                if resident := host.residents.get(action.group):
                    self._tell(resident.name, host, "cpu", action.reason)
                    self._leave(host, resident)
            elif each := serving.get(action.group):
                known = self._known.setdefault(action.group, residents.Known())
                resident = residents.Resident(name=each.name, replica=each.replica, known=known)
                host.residents[action.group] = resident
                work = self._load(host, resident, action.reason)
                resident.task = asyncio.create_task(work, name=f"load {each.name} on {action.gpu}")

    async def hand_over(self, stop: asyncio.Event) -> None:
        """Bring nothing there any more, let what executes there end there, and end the executors.

        Args:
            stop: set when there is no more time for that; what is under way is then asked again on the CPU.
        """
        self.ours = False
        self._leave_all_but(set())
        while any(host.residents for host in self.hosts.values()) and not stop.is_set():
            await asyncio.sleep(HAND_OVER_LOOK_S)
            self._leave_all_but(set())
        await self._end_executors()

    async def end(self) -> None:
        """End all executors; nobody may count on a seat any more."""
        await self._end_executors()
        for host in self.hosts.values():
            await self._groups.close(host.group)
        self._port.close()

    async def _end_executors(self) -> None:
        for host in self.hosts.values():
            self._vacate(host)
            if host.executor:
                self._dismiss(host.executor)
                host.executor = None
        await asyncio.gather(*self._ending, return_exceptions=True)

    def place_of(self, replica: replicas.Replica) -> tuple[residents.Host, residents.Resident] | None:
        """Where a replica is, or is being loaded."""
        for host in self.hosts.values():
            if resident := host.residents.get(replica.group):
                return host, resident
        return None

    def placed_json(self, replica: replicas.Replica) -> dict[str, Any]:
        """One replica's place, for its status."""
        placed = self.place_of(replica)
        if placed is None:
            known = self._known.get(replica.group)
            note = known.note if known else ""
            return {"state": "none", "note": note or (None if self.ours else TURN_NOTE)}
        host, resident = placed
        return {"device": self.device, "uuid": host.gpu.uuid, **resident.as_json()}

    def promised_bytes(self, host: residents.Host) -> int:
        """Memory that the models of a GPU and its executor may take."""
        return host.promised_bytes(self._control)

    def budget_bytes(self, host: residents.Host) -> int:
        """Memory of a GPU that models and its executor may take at all."""
        return placement.budget_bytes(host.seen(self._control), self._control)

    def as_json(self) -> list[dict[str, Any]]:
        """All GPUs, for people and programs."""
        return [host.as_json(self.device, self._control, ours=self.ours) for host in self.hosts.values()]

    async def _read(self) -> None:
        async with self._reading:
            for reading in await asyncio.to_thread(self._port.read):
                if host := self.hosts.get(reading.uuid):
                    host.reading = reading
                    self._heed(host)

    def _heed(self, host: residents.Host) -> None:
        """A fault appears or goes away."""
        if (why := host.reading.fault) is None:
            if host.fault and devices.usable(host.gpu) is None:
                log.info("%s %s answers again", self.device, host.gpu.uuid)
                host.fault = None
        elif host.fault is None:
            host.fault = why
            log.error("%s %s is lost (%s): its models go on at their CPU workers", self.device, host.gpu.uuid, why)
            executor, host.executor = host.executor, None
            self._vacate(host, f"the GPU is lost: {why}")
            if executor:
                self._dismiss(executor)

    async def _model_seen(self, name: str, replica: replicas.Replica, now: float) -> placement.ModelSeen:
        spec, known = replica.spec, self._known.setdefault(replica.group, residents.Known())
        if spec.gpu_memory_mb is not None:
            known.need_bytes = int(spec.gpu_memory_mb * 2**20)
        elif not known.need_bytes:
            size = await asyncio.to_thread(residents.size_of, Path(replica.supervisor.order.artefact))
            known.need_bytes = int(size * self._control.size_factor) + self._control.workspace_bytes
        rate = replica.meter.arrivals_per_s(now, ARRIVALS_WINDOW_S)
        if rate > 0:
            known.used_at = now
        placed = self.place_of(replica)
        if placed and placed[1].seat:
            known.gpu_s = placed[1].seat.beside.times.of(1)
        return placement.ModelSeen(
            group=replica.group,
            name=name,
            preference=spec.device,
            priority=spec.priority,
            need_bytes=known.need_bytes,
            arrivals_per_s=rate,
            cpu_s=replica.times.of(1),
            gpu_s=known.gpu_s,
            idle_s=now - known.used_at,
            load_s=max(1.0, replica.supervisor.load_s),
            gpu=placed[0].gpu.uuid if placed else None,
            barred=known.barred_until > now or bool(placed and placed[1].closing),
        )

    async def _load(self, host: residents.Host, resident: residents.Resident, reason: str) -> None:
        known = resident.known
        try:
            async with host.loading:
                executor = await self._executor(host)
                before = host.reading.processes.get(executor.pid)
                seated = await self._loaded(host, executor, resident.replica)
                await self._read()
        except errors.ModelArtefactError as exc:
            self._bar(host, resident, self._control.backoff_max_s, exc.fix)
        except errors.MlscaleError as exc:
            known.failures += 1
            wait_s = self._control.backoff_first_s * 2**known.failures
            self._bar(host, resident, min(self._control.backoff_max_s, wait_s), str(exc))
        except Exception as exc:  # a defect must show in the status, not as a model that loads for ever
            log.exception("%s: cannot be brought to %s", resident.name, host.gpu.uuid)
            self._bar(host, resident, self._control.backoff_max_s, f"{type(exc).__name__}: {exc}")
        else:
            if host.executor is not executor:
                self._bar(host, resident, self._control.backoff_first_s, "the GPU was lost meanwhile")
            elif host.residents.get(resident.replica.group) is not resident:
                executor.unload(resident.replica.group)
            else:
                self._measure(host, resident, before, executor.pid)
                known.failures, known.note = 0, seated.note
                self._seat(host, resident, executor, seated)
                self._tell(resident.name, host, self.device, reason)

    async def _loaded(
        self, host: residents.Host, executor: ports.ExecutorPort, replica: replicas.Replica
    ) -> ports.Seated:
        order = replace(
            replica.supervisor.order,
            threads=self._control.places,
            max_batch=replica.spec.max_batch,
            objective_s=replica.spec.objective.seconds,
        )
        try:
            return await asyncio.wait_for(executor.load(replica.group, order), self._timing.load_timeout_s)
        except TimeoutError as exc:
            limit_s = self._timing.load_timeout_s
            self._lost(host, executor, f"a model was not loaded and warm after {limit_s:.0f} s")
            raise ports.WorkerLostError(f"it was not loaded and warm after {limit_s:.0f} s") from exc

    def _seat(
        self, host: residents.Host, resident: residents.Resident, executor: ports.ExecutorPort, seated: ports.Seated
    ) -> None:
        seat = resident.seat = seats.Seat(
            resident.replica,
            host.lane,
            gpu=host.gpu.uuid,
            device=self.device,
            worker=residents.Worker(executor, resident.replica.group),
            loaded=seated,
            execution_timeout_s=self._timing.execution_timeout_s,
            hung=lambda _: self._lost(host, executor, f"executor {executor.pid} hangs in an execution"),
        )
        resident.task, host.deaths = None, 0
        resident.replica.seats.add(seat)

    def _measure(self, host: residents.Host, resident: residents.Resident, before: int | None, pid: int) -> None:
        """What the load took more of the GPU's memory, if NVML tells."""
        after = host.reading.processes.get(pid)
        if after is None or resident.replica.spec.gpu_memory_mb is not None:
            return
        if (taken := after - (before or self._control.context_bytes)) > 0:
            resident.known.need_bytes, resident.known.measured = taken, True

    async def _executor(self, host: residents.Host) -> ports.ExecutorPort:
        if host.executor:
            return host.executor
        entry_files = await self._groups.open(host.group)
        try:
            executor = await self._launcher.launch(host.gpu, entry_files)
        except ports.WorkerLostError:
            self._back_off(host)
            raise
        if host.fault:
            self._dismiss(executor)
            raise ports.WorkerLostError(f"the GPU is lost: {host.fault}")
        host.executor = executor
        executor.lost.add_done_callback(lambda lost: self._lost(host, executor, lost.result()))
        await self._groups.admit(host.group, executor.pid)
        log.info("%s %s: executor %d", self.device, host.gpu.uuid, executor.pid)
        return executor

    def _lost(self, host: residents.Host, executor: ports.ExecutorPort, why: str) -> None:
        """An executor has ended by itself; called before anybody learns it who waits for its answers."""
        if host.executor is not executor:
            return
        host.executor = None
        wait_s = self._back_off(host)
        log.warning("%s %s: %s; another one in %.1f s", self.device, host.gpu.uuid, why, wait_s)
        self._vacate(host, why)
        self._dismiss(executor)

    def _back_off(self, host: residents.Host) -> float:
        """Start no executor for a while; for how long."""
        host.deaths += 1
        wait_s = min(self._control.backoff_max_s, self._control.backoff_first_s * 2.0 ** (host.deaths - 1))
        host.back_at = time.monotonic() + wait_s
        return wait_s

    def _vacate(self, host: residents.Host, why: str = "") -> None:
        """Its models go on at their CPU workers, with what was under way here."""
        for group, resident in list(host.residents.items()):
            if resident.seat:
                del host.residents[group]
                resident.replica.seats.close(resident.seat, lost=True)
                if why:
                    resident.known.note = why
                    self._tell(resident.name, host, "cpu", why)
            elif resident.task and not why:
                resident.task.cancel()

    def _bar(self, host: residents.Host, resident: residents.Resident, wait_s: float, why: str) -> None:
        known = resident.known
        known.barred_until, known.note = time.monotonic() + wait_s, why
        if host.residents.get(resident.replica.group) is resident:
            del host.residents[resident.replica.group]
        self._tell(resident.name, host, "cpu", f"it cannot be brought to the GPU: {why}")

    def _leave_all_but(self, groups: set[str]) -> None:
        """Go on with evictions under way, and take off what serves no more."""
        for host in self.hosts.values():
            for group, resident in list(host.residents.items()):
                if resident.closing or group not in groups:
                    self._leave(host, resident)

    def _leave(self, host: residents.Host, resident: residents.Resident) -> None:
        """Close a seat; the model is freed once nothing of it runs there."""
        resident.closing = True
        group = resident.replica.group
        if resident.seat is None:
            if resident.task:
                resident.task.cancel()
        elif not resident.replica.seats.close(resident.seat):
            return
        host.residents.pop(group, None)
        if host.executor:
            host.executor.unload(group)

    def _dismiss(self, executor: ports.ExecutorPort) -> None:
        task = asyncio.ensure_future(executor.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _tell(self, name: str, host: residents.Host, device: str, reason: str) -> None:
        self._book.append(
            journal.Record(
                at=time.time(),
                subject=name,
                seen={
                    "gpu_used_mib": host.reading.used_bytes // 2**20,
                    "gpu_total_mib": host.gpu.total_bytes // 2**20,
                    "gpu_reserved_mib": host.promised_bytes(self._control) // 2**20,
                },
                decided={"device": device, "gpu": host.gpu.uuid},
                reason=reason,
            )
        )
        log.info("%s: %s (%s %s)", name, reason, self.device, host.gpu.uuid)


def gpu_loop(
    plant: Gpus, control: settings.GpuSettings
) -> loop.PeriodicLoop[Seen, Sequence[placement.Action], Mapping[str, None]]:
    """The once-a-second loop over all GPUs."""

    def decide(
        seen: Seen, state: Mapping[str, None], dt_s: float
    ) -> tuple[Sequence[placement.Action], Mapping[str, None]]:
        return placement.place(seen.gpus, seen.models, control), state

    nothing: Mapping[str, None] = {}
    return loop.PeriodicLoop(plant, decide, nothing, period_s=control.period_s, name="ROMA GPUs")

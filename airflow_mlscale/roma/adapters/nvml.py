"""GPUs read through NVIDIA's management library (`pynvml` of nvidia-ml-py).

A library that says less than another (MIG instances have no utilisation, containers hide processes) costs what it
does not say; an error that speaks of the GPU itself is a fault of that GPU. Nothing here touches CUDA.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from airflow_mlscale import errors
from airflow_mlscale.roma import devices

log = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")

MPS_PIPES = "/tmp/nvidia-mps"  # noqa: S108 (where NVIDIA's control daemon puts it)
WHOLE_GPU = 0xFFFFFFFF
"""Instance of an event that concerns no MIG instance."""

_SHARING: dict[int, devices.Sharing] = {0: "default", 2: "prohibited", 3: "exclusive_process"}


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A GPU and NVML's handle of it."""

    gpu: devices.Gpu
    handle: Any
    instance: int = WHOLE_GPU
    """NVML's number of a MIG instance."""


class Nvml:
    """The GPUs of this host. Blocking; one thread at a time.

    Raises:
        InvalidInputError: there is no NVML here, or it has no driver to speak to.
    """

    name = "nvml"

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as exc:
            fix = "pynvml is missing; install airflow-provider-mlscale[gpu]"
            raise errors.InvalidInputError("gpus", "nvml", fix) from exc
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as exc:
            fix = f"NVML cannot be used ({exc}); install NVIDIA's driver, or use --gpus none"
            raise errors.InvalidInputError("gpus", "nvml", fix) from exc
        self.driver = str(self._or(None, pynvml.nvmlSystemGetDriverVersion) or "unknown")
        self._held = list(self._find())
        self._broken: dict[str, str] = {}
        """Lasting faults by UUID."""
        self._events = self._register()

    def found(self) -> list[devices.Gpu]:
        """What was found at the start; a GPU in MIG mode is its instances."""
        return [one.gpu for one in self._held]

    def read(self) -> list[devices.Reading]:
        """How they are now, in the same order."""
        self._drain_events()
        return [self._read(one) for one in self._held]

    def close(self) -> None:
        """Let go of the library."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    def _find(self) -> Iterator[_Held]:
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpu = self._gpu(handle, index)
                mode = self._or([0, 0], nvml.nvmlDeviceGetMigMode, handle)
                if mode[0] == nvml.NVML_DEVICE_MIG_ENABLE:
                    yield from self._instances(handle, gpu)
                else:
                    yield _Held(gpu=gpu, handle=handle)
            except nvml.NVMLError as exc:
                log.warning("GPU %d is not used: %s", index, exc)

    def _gpu(self, handle: Any, index: int, parent: str | None = None) -> devices.Gpu:
        nvml = self._nvml
        return devices.Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(self._or("GPU", nvml.nvmlDeviceGetName, handle)),
            total_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            index=index,
            parent=parent,
            sharing=_SHARING.get(self._or(0, nvml.nvmlDeviceGetComputeMode, handle), "default"),
            mps=mps_runs(),
        )

    def _instances(self, handle: Any, whole: devices.Gpu) -> Iterator[_Held]:
        nvml = self._nvml
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except nvml.NVMLError_NotFound:  # numbers have gaps
                continue
            gpu = self._gpu(instance, whole.index, parent=whole.uuid)
            number = self._or(WHOLE_GPU, nvml.nvmlDeviceGetGpuInstanceId, instance)
            yield _Held(gpu=gpu, handle=instance, instance=number)

    def _register(self) -> Any:
        """An event set that hears of the XID events of all GPUs; None where there are none to hear."""
        nvml = self._nvml
        physical = {one.gpu.index for one in self._held}
        try:
            events = nvml.nvmlEventSetCreate()
            for index in physical:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError as exc:
            log.info("no XID events from NVML (%s): a lost GPU is seen when it does not answer", exc)
            return None
        return events

    def _drain_events(self) -> None:
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait(self._events, 0)
            except nvml.NVMLError_Timeout:
                return
            except nvml.NVMLError as exc:
                log.debug("NVML's events: %s", exc)
                return
            self._heed(event)

    def _heed(self, event: Any) -> None:
        xid = int(event.eventData)
        uuid = self._or("", self._nvml.nvmlDeviceGetUUID, event.device)
        for one in self._held:
            whole = WHOLE_GPU in (event.gpuInstanceId, one.instance)
            if uuid and _text(uuid) not in (one.gpu.uuid, one.gpu.parent):
                continue
            if not whole and event.gpuInstanceId != one.instance:
                continue
            if devices.is_fatal(xid):
                self._broken.setdefault(one.gpu.uuid, f"XID {xid}")
            else:
                log.warning("GPU %s: XID %d, caused by a program", one.gpu.uuid, xid)

    def _read(self, one: _Held) -> devices.Reading:
        nvml, uuid = self._nvml, one.gpu.uuid
        if why := self._broken.get(uuid):
            return devices.Reading(uuid=uuid, fault=why, lasting=True)
        try:
            used_bytes = int(nvml.nvmlDeviceGetMemoryInfo(one.handle).used)
        except nvml.NVMLError as exc:
            return devices.Reading(uuid=uuid, fault=f"NVML: {exc}")
        rates = self._or(None, nvml.nvmlDeviceGetUtilizationRates, one.handle)
        return devices.Reading(
            uuid=uuid,
            used_bytes=used_bytes,
            utilisation=None if rates is None else rates.gpu / 100,
            processes=self._processes(one.handle),
        )

    def _processes(self, handle: Any) -> dict[int, int | None]:
        nvml = self._nvml
        nothing: list[Any] = []
        found = [
            *self._or(nothing, nvml.nvmlDeviceGetComputeRunningProcesses, handle),
            *self._or(nothing, nvml.nvmlDeviceGetMPSComputeRunningProcesses, handle),
        ]
        return {int(one.pid): one.usedGpuMemory for one in found}

    def _or(self, default: ValueT, ask: Callable[..., Any], *arguments: Any) -> ValueT | Any:
        """What the library says, or the default where it cannot."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return default


def mps_runs() -> bool:
    """Whether an MPS control daemon runs on this host, where its clients look for it."""
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", MPS_PIPES))
    try:
        return (pipes / "control").exists()
    except OSError:
        return False


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

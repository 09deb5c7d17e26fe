"""GPUs as values: what a host has, what was read of them, which errors mean that one is lost.

Pure. How they are read is an adapter's business (`adapters.nvml`), who uses them `placement`'s and `gpus`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Device = Literal["cpu", "gpu", "emulated-gpu"]
"""What a request is executed on. An emulated GPU is a process on the CPU that is treated like one."""

Preference = Literal["auto", "cpu", "gpu"]
"""What a model asks for: whatever is expected to be done first, the CPU alone, or a GPU as long as it has one."""

Sharing = Literal["default", "exclusive_process", "prohibited"]
"""NVML's compute mode: whether several processes, one, or none may use the GPU."""

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""XID events that a program caused and that leave the GPU usable (as NVIDIA's Kubernetes device plugin has it)."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance of one: what a process can be given."""

    uuid: str
    """``GPU-…`` or ``MIG-…``, as ``CUDA_VISIBLE_DEVICES`` takes it."""
    name: str
    total_bytes: int
    index: int = 0
    """Of the physical GPU."""
    parent: str | None = None
    """UUID of the physical GPU that a MIG instance is a part of."""
    sharing: Sharing = "default"
    mps: bool = False
    """Whether an MPS server runs on this host: then several processes share a GPU's cores."""

    @property
    def kind(self) -> str:
        """``gpu`` or ``mig``."""
        return "mig" if self.parent else "gpu"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read of one GPU just now."""

    uuid: str
    used_bytes: int = 0
    """Of all processes together."""
    utilisation: float | None = None
    """Part of the last period in which it was busy; None where the driver does not say (MIG)."""
    processes: Mapping[int, int | None] = field(default_factory=dict)
    """Bytes by process id; None where the driver does not say."""
    fault: str | None = None
    """Why it cannot be used now."""
    lasting: bool = False
    """Whether the fault stays until somebody resets the GPU and the daemon starts again."""


def is_fatal(xid: int) -> bool:
    """Whether an XID event says that the GPU itself is broken."""
    return xid not in APPLICATION_XIDS


def usable(gpu: Gpu) -> str | None:
    """Why nothing can ever run on it; None if something can."""
    if gpu.sharing == "prohibited":
        return "its compute mode is PROHIBITED; set it to DEFAULT with `nvidia-smi -c 0`"
    return None


def environment(gpu: Gpu, *, percentage: int) -> Iterator[tuple[str, str]]:
    """What a process needs in its environment to run on this GPU alone.

    Args:
        gpu: the GPU.
        percentage: of its cores that the process may use; heeded where MPS runs.
    """
    yield "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
    yield "CUDA_VISIBLE_DEVICES", gpu.uuid
    # Else the first session takes all memory there is, and no budget means anything.
    yield "TF_FORCE_GPU_ALLOW_GROWTH", "true"
    if gpu.mps and percentage < 100:
        yield "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", str(percentage)

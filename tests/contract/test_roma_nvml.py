"""The NVML adapter against a real ``libnvidia-ml.so.1``, compiled from ``tests/fakes/nvml.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import devices
from airflow_mlscale.roma.adapters import nvml
from tests.fakes import nvml as fakes

MIB = 2**20
Open = Callable[..., tuple[nvml.Nvml, fakes.State]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    pytest.importorskip("pynvml")
    # Loaded under this name, it is what pynvml finds, as with LD_LIBRARY_PATH from the start.
    ctypes.CDLL(str(fakes.built() / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    libraries = []

    def open_nvml(*lines: str) -> tuple[nvml.Nvml, fakes.State]:
        state = fakes.State(tmp_path / "nvml", *lines)
        monkeypatch.setenv(fakes.STATE_VARIABLE, str(state.path))
        libraries.append(nvml.Nvml())
        return libraries[-1], state

    yield open_nvml
    for library in libraries:
        library.close()


def test_gpus_are_found_and_read(opened: Open) -> None:
    library, _ = opened(fakes.gpu("GPU-a", total=16000, used=1000), "proc 4711 700", "proc 4712 -1", "mps 4713 50")
    assert library.driver == "0.fake"
    (gpu,) = library.found()
    assert gpu == devices.Gpu(uuid="GPU-a", name="Fake GPU", total_bytes=16000 * MIB)
    (reading,) = library.read()
    assert reading.used_bytes == 1000 * MIB
    assert reading.utilisation == 0.25
    assert reading.processes == {4711: 700 * MIB, 4712: None, 4713: 50 * MIB}
    assert reading.fault is None


def test_a_gpu_in_mig_mode_is_its_instances(opened: Open) -> None:
    lines = [fakes.gpu("GPU-a", mig=1), "mig MIG-1 4864 100 3", "mig MIG-2 2432 0 5", fakes.gpu("GPU-b")]
    library, _ = opened(*lines)
    one, two, whole = library.found()
    assert (one.uuid, one.kind, one.parent, one.total_bytes) == ("MIG-1", "mig", "GPU-a", 4864 * MIB)
    assert (two.uuid, whole.uuid, whole.kind) == ("MIG-2", "GPU-b", "gpu")
    assert [reading.utilisation for reading in library.read()] == [None, None, 0.25]


def test_compute_mode_and_mps_are_seen(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "control").touch()
    library, _ = opened(fakes.gpu("GPU-a", mode=3), fakes.gpu("GPU-b", mode=2))
    exclusive, prohibited = library.found()
    assert (exclusive.sharing, exclusive.mps) == ("exclusive_process", True)
    assert devices.usable(exclusive) is None
    assert "PROHIBITED" in str(devices.usable(prohibited))


def test_a_lost_gpu_is_a_fault_that_may_go_away(opened: Open) -> None:
    library, state = opened(fakes.gpu("GPU-a"), fakes.gpu("GPU-b"))
    state.write(fakes.gpu("GPU-a", error=fakes.LOST), fakes.gpu("GPU-b"))
    lost, other = library.read()
    assert (lost.fault, lost.lasting, other.fault) == ("NVML: GPU is lost", False, None)
    state.write(fakes.gpu("GPU-a"), fakes.gpu("GPU-b"))
    assert [reading.fault for reading in library.read()] == [None, None]


def test_a_fatal_xid_is_a_fault_that_stays_and_a_programs_is_none(opened: Open) -> None:
    gpus = [fakes.gpu("GPU-a"), fakes.gpu("GPU-b")]
    library, state = opened(*gpus)
    state.write(*gpus, "xid 0 31 -1")
    assert [reading.fault for reading in library.read()] == [None, None]
    state.write(*gpus, "xid 0 31 -1", "xid 1 79 -1")
    for _ in range(2):
        healthy, broken = library.read()
        assert (healthy.fault, broken.fault, broken.lasting) == (None, "XID 79", True)


def test_an_xid_of_one_instance_spares_the_others(opened: Open) -> None:
    lines = [fakes.gpu("GPU-a", mig=1), "mig MIG-1 4864 0 3", "mig MIG-2 4864 0 5"]
    library, state = opened(*lines)
    state.write(*lines, "xid 0 95 5")
    assert [reading.fault for reading in library.read()] == [None, "XID 95"]
    state.write(*lines, "xid 0 95 5", "xid 0 79 -1")
    assert [reading.fault for reading in library.read()] == ["XID 79", "XID 95"]


def test_a_library_without_a_driver_is_refused(opened: Open, tmp_path: Path) -> None:
    opened(fakes.gpu("GPU-a"))
    (tmp_path / "nvml").unlink()
    with pytest.raises(errors.InvalidInputError, match=r"NVML cannot be used .* --gpus none"):
        nvml.Nvml()

"""An NVML without a GPU: ``nvml.c``, compiled once, telling what a text file says."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml.c")
STATE_VARIABLE = "FAKE_NVML"


def built() -> Path:
    """The directory of ``libnvidia-ml.so.1``, for ``LD_LIBRARY_PATH``; a test without a C compiler is skipped."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        if os.environ.get("CI"):
            raise AssertionError("the fake NVML needs a C compiler; install gcc")
        pytest.skip("no C compiler for the fake NVML; install gcc")
    directory = Path(tempfile.gettempdir()) / f"mlscale-fake-nvml-{os.getuid()}-{SOURCE.stat().st_mtime_ns}"
    library = directory / "libnvidia-ml.so.1"
    if not library.exists():
        directory.mkdir(exist_ok=True, mode=0o700)
        half = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(half), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        half.rename(library)
    return directory


class State:
    """The file that it tells from."""

    def __init__(self, path: Path, *lines: str) -> None:
        self.path = path
        self.write(*lines)

    def write(self, *lines: str) -> None:
        """From now on it tells this."""
        half = self.path.with_suffix(".half")
        half.write_text("".join(f"{line}\n" for line in lines))
        half.rename(self.path)

    def environment(self) -> dict[str, str]:
        """Of a process that shall see it."""
        return {"LD_LIBRARY_PATH": str(built()), STATE_VARIABLE: str(self.path)}


def gpu(uuid: str, *, total: int = 8192, used: int = 0, mode: int = 0, mig: int = 0, error: int = 0) -> str:
    """The line of a GPU; sizes in MiB."""
    return f"gpu {uuid} {total} {used} 25 {mode} {mig} {error}"


LOST = 15
"""NVML_ERROR_GPU_IS_LOST."""

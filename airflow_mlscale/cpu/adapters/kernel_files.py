"""Reading and writing the kernel's control files; the one place that tests replace by a directory that plays kernel."""

from __future__ import annotations

from pathlib import Path


class KernelFiles:
    """Control files of cgroup directories. Errors are the operating system's own (`OSError`)."""

    def read(self, path: Path) -> str:
        return path.read_text()

    def write(self, path: Path, value: str) -> None:
        # Neither created nor truncated: a control file exists, or the kernel does not know it.
        with path.open("r+") as file:
            file.write(value)

    def make(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)

    def remove(self, directory: Path) -> None:
        """Remove a group; the kernel refuses while a process is in it."""
        directory.rmdir()

    def exists(self, path: Path) -> bool:
        return path.exists()

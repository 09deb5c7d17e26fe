"""Where the kernel's cgroup hierarchies are mounted, and which group this process is in."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
OWN = Path("/proc/self/cgroup")


def v1_mount(controller: str, table: str | None = None) -> Path | None:
    """Mount point of a version 1 controller."""
    for _, point, kind, options in _mounts(table):
        if kind == "cgroup" and controller in options:
            return point
    return None


def v2_mount(table: str | None = None) -> Path | None:
    """Mount point of version 2."""
    return next((point for _, point, kind, _ in _mounts(table) if kind == "cgroup2"), None)


def own_group(controller: str, table: str | None = None) -> str:
    """Path of this process's group: of a version 1 controller, or of version 2 if ``controller`` is empty."""
    for line in (OWN.read_text() if table is None else table).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or controllers == ""):
            return path
    return "/"


def pairs(text: str) -> dict[str, int]:
    """``name value`` lines, as in ``cpu.stat``."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def nearest(path: Path) -> Path:
    """The path itself, or its nearest ancestor that exists."""
    while not path.exists():
        path = path.parent
    return path


def _mounts(table: str | None) -> list[tuple[str, Path, str, list[str]]]:
    rows = [line.split() for line in (MOUNTS.read_text() if table is None else table).splitlines()]
    return [(row[0], Path(row[1].replace("\\040", " ")), row[2], row[3].split(",")) for row in rows if len(row) >= 4]

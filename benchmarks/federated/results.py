"""All rows of all sessions, and the law that they were measured under."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.federated import cases, law, overhead

TUNED_ON = (0, 30)
"""Seeds, the last one left out, on which the law's constants were chosen."""
ABOUT = (
    "Simulated rows: real data and real training on simulated sites and time. Real rows: NVFlare processes on this "
    "machine, devices emulated by waiting. Both under the product's own controller and policies."
)


@dataclass(frozen=True)
class Results:
    """What was measured so far."""

    rows: tuple[cases.Row, ...] = ()
    overhead: tuple[Mapping[str, Any], ...] = ()
    """Rows of `overhead.measure`."""

    def plus(self, rows: Sequence[cases.Row] = (), overhead: Sequence[Mapping[str, Any]] = ()) -> Results:
        """With more rows; those of the same run take the place of the earlier ones."""
        fresh = {_key(row): row for row in rows}
        again = {(row["system"], row["seed"]) for row in overhead}
        return Results(
            (*(row for row in self.rows if _key(row) not in fresh), *fresh.values()),
            (*(row for row in self.overhead if (row["system"], row["seed"]) not in again), *overhead),
        )

    def without_simulated(self, all_of_them: bool) -> Results:
        """What can be gone on from: without the simulated rows of another law, or without any."""
        kept = tuple(row for row in self.rows if not row.simulated or (row.law == law.name() and not all_of_them))
        return replace(self, rows=kept)


def _key(row: cases.Row) -> tuple[str, str, str, int]:
    return (row.system, row.data, row.kind, row.seed)


def read(path: Path) -> Results:
    """What earlier sessions kept; nothing if there is no file."""
    if not path.exists():
        return Results()
    found = json.loads(path.read_text())
    return Results(tuple(cases.Row(**row) for row in found["rows"]), tuple(found["overhead"]))


def write(path: Path, found: Results) -> None:
    """All rows, with what a reader needs to judge them; written whole or not at all."""
    from benchmarks.federated import report

    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "about": ABOUT, "machine": {"cores": _cores(), "python": platform.python_version()}, "tuned_on": TUNED_ON,
        "verdicts": report.verdicts(found),
        "overhead_summary": overhead.summary(found.overhead) if found.overhead else None,
        "summaries": [asdict(each) for each in report.summaries(found.rows)],
        "overhead": found.overhead, "rows": [asdict(row) for row in found.rows],
    }  # fmt: skip
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(body, indent=None, separators=(",", ":")).replace('{"system"', '\n{"system"') + "\n")
    fresh.replace(path)


def _cores() -> int:
    import psutil

    return psutil.cpu_count() or 1

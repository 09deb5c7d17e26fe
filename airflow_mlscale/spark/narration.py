"""What the log tells of a running application: how far it is, when it will be done, which stage costs what.

At a rate that people can read; the journal has every decision.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_mlscale.runtime.journal import Record, Value
from airflow_mlscale.spark import changes
from airflow_mlscale.spark.model import Observation, Outlook, Profile, Promise, Stage, StageStatus, Tally, keyed

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
TABLE_EVERY_S = 30.0
LINES_OF_A_RUN = 200
"""Of a long run at most about so many lines tell the progress."""
REAL_CHANGE = 0.25
"""Relative change of the share that is told at once."""
SOONEST_S = 5.0
"""But never two lines within this time."""
ROWS = 40
"""Of the largest table."""
_NAME_WIDTH = 44


@dataclass
class Narrator:
    """Listens to a run's journal and logs what a person wants to know of it."""

    promise: Promise
    profile: Profile | None = None
    look: Callable[[], Observation | None] = lambda: None
    """What is known now of the application; asked for a table only."""
    _told: Record | None = field(default=None, init=False)
    _table_at: float | None = field(default=None, init=False)
    _shown: frozenset[int] = field(default=frozenset(), init=False)
    """Stages that a table has shown in their last state."""
    _watch: changes.Watch = field(default_factory=changes.Watch, init=False)

    def __call__(self, record: Record) -> None:
        change = self._watch.change(record)
        if change is not None and change.news:
            level = logging.INFO if change.outlook is Outlook.ON_TRACK else logging.WARNING
            log.log(level, "outlook: %s, before: %s", change.outlook, change.previous or "nothing known")
        if change is not None or self._due(record):
            self._told = record
            log.info("%s", line(record, self.promise))
        if self._table_at is None:
            self._table_at = record.at
        if record.at - self._table_at >= max(TABLE_EVERY_S, 3 * self._every_s):
            self._table_at = record.at
            self._tell_table(whole=False)

    def finish(self) -> None:
        """Tell every stage once more."""
        self._tell_table(whole=True)

    @property
    def _every_s(self) -> float:
        return max(LINE_EVERY_S, self.promise.duration_s / LINES_OF_A_RUN)

    def _due(self, record: Record) -> bool:
        told = self._told
        if told is None or record.at - told.at >= self._every_s:
            return True
        return record.at - told.at >= SOONEST_S and any(
            _differs(told.decided[name], record.decided[name]) for name in ("guaranteed_cores", "ceiling_cores")
        )

    def _tell_table(self, *, whole: bool) -> None:
        seen = self.look()
        if seen is None or seen.progress is None:
            return
        # Skipped: what it would have made was still there.
        idle = (StageStatus.PENDING, StageStatus.SKIPPED)
        rows = [stage for stage in seen.progress.stages if stage.status not in idle]
        before = 0
        if not whole:
            before = sum(stage.stage_id in self._shown for stage in rows)
            rows = [stage for stage in rows if stage.stage_id not in self._shown]
        self._shown |= {stage.stage_id for stage in rows if not stage.running}
        for text in table(rows, seen, self.profile, told_before=before):
            log.info("%s", text)


def line(record: Record, promise: Promise) -> str:
    """One line for one step: part done, predicted finish, cores, why."""
    progress, decided = record.seen["progress"], record.decided
    done = f"{100 * float(progress):.0f} % done" if progress is not None else f"{record.seen['stages']} stages done"
    left_s = float(record.seen["left_s"] or 0)
    when = f"{left_s:.0f} s left of {promise.duration_s:.0f} s" if left_s >= 0 else f"{-left_s:.0f} s over the deadline"
    parts = [done, when]
    if decided.get("finish_s") is not None:
        parts.append(f"can finish at {_interval(decided)} s")
    if decided.get("outlook") not in (None, Outlook.ON_TRACK):
        parts.append(str(decided["outlook"]))
    parts.append(f"{decided['guaranteed_cores']} cores guaranteed")
    ceiling = decided["ceiling_cores"]
    parts.append("no ceiling" if ceiling is None else f"ceiling {ceiling}")
    return f"{', '.join(parts)}: {record.reason}"


def table(stages: Sequence[Stage], seen: Observation, profile: Profile | None, *, told_before: int = 0) -> list[str]:
    """Stages as aligned lines; of more than `ROWS` the ones that cost most. Empty without any stage."""
    if not stages:
        return []
    keys = {stage.stage_id: key for key, stage in keyed(seen.progress.stages if seen.progress else ()).items()}
    # The latest course that knows a stage counts: it stands first.
    known = {part.key: part.core_s for plan in reversed(profile.plans if profile else ()) for part in plan.stages}
    kept = sorted(stages, key=lambda stage: -_core_s(seen, stage))[:ROWS]
    found = [f"{'stage':<{_NAME_WIDTH}} {'tasks':>11} {'core-s':>8} {'profiled':>8}  state"]
    for stage in sorted(kept, key=lambda stage: stage.stage_id):
        profiled = known.get(keys.get(stage.stage_id, ""))
        name = f"{stage.stage_id} {re.sub(r'/.*/', '', stage.name)}"  # "count at /a/long/path/job.py:12"
        found.append(
            f"{_short(name):<{_NAME_WIDTH}} {f'{stage.complete}/{stage.tasks}':>11}"
            f" {_core_s(seen, stage):>8.1f} {'-' if profiled is None else f'{profiled:.1f}':>8}"
            f"  {stage.status.lower()}"
        )
    if left_out := len(stages) - len(kept):
        found.append(f"and {left_out} stages that cost less")
    if told_before:
        found.append(f"and {told_before} stages told before")
    return found


def _core_s(seen: Observation, stage: Stage) -> float:
    return seen.by_stage.get(stage.stage_id, Tally()).core_s


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


def _interval(decided: Mapping[str, Value]) -> str:

    finish, low, high = (decided.get(f"finish_{part}s") for part in ("", "low_", "high_"))
    if low is None or high is None:
        return f"{float(finish or 0):.0f}"
    return f"{float(finish or 0):.0f} ({float(low):.0f} to {float(high):.0f})"


def _differs(before: Value, now: Value) -> bool:
    if before is None or now is None:
        return before is not now
    one, other = float(before), float(now)
    return abs(one - other) > REAL_CHANGE * max(abs(one), abs(other))

"""Following a run from outside: does it live, has it ended, does it need its next segment? Pure.

The sign of life is the heartbeat that the controller writes, not the engine's job status: a job whose server
process was restarted says RUNNING for good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from airflow_mlscale.federated import model

SILENCE_S = 20.0
"""A segment whose heartbeat has not changed for this long is lost."""
DOUBT_S = 5.0
"""After this long without a new heartbeat the engine's word that the job has ended is enough."""
START_S = 180.0
"""A segment without a first heartbeat after this long is lost."""


class Progress(StrEnum):
    """What to do about a run."""

    LIVES = "lives"
    ENDED = "ended"
    LOST = "lost"
    """Its segment is gone, the run is not over: submit the next segment."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a watcher remembers between two looks at one segment."""

    segment: int
    began_s: float
    """When it began to watch, on the watcher's monotonic clock: the clocks of two machines are never compared."""
    beat: str | None = None
    """The last heartbeat of this segment."""
    beat_seen_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a run."""

    progress: Progress
    reason: str = ""


def in_doubt(watch: Watch, *, now_s: float) -> bool:
    """Whether the engine's word about the job is wanted."""
    return watch.beat is None or now_s - watch.beat_seen_s > DOUBT_S


def look(
    watch: Watch,
    *,
    state: model.RunState | None,
    beat: tuple[int, str] | None,
    job_over: bool,
    now_s: float,
) -> tuple[Look, Watch]:
    """Judge one observation.

    Args:
        watch: from the look before.
        state: the run's last durable state.
        beat: segment and content of the last heartbeat.
        job_over: the engine says that the segment's job has ended, or does not know it.
        now_s: the watcher's monotonic clock.
    """
    if state is not None and state.segment >= watch.segment:
        if state.status.ended:
            return Look(progress=Progress.ENDED, reason=state.reason), watch
        if state.status == model.Status.INTERRUPTED:
            return Look(progress=Progress.LOST, reason=state.reason), watch
    if beat is not None and beat[0] >= watch.segment and beat[1] != watch.beat:
        watch = replace(watch, beat=beat[1], beat_seen_s=now_s)
    if watch.beat is None:
        if job_over:
            return Look(progress=Progress.LOST, reason="its job ended before it began"), watch
        if now_s - watch.began_s > START_S:
            return Look(progress=Progress.LOST, reason=f"its job did not begin within {START_S:.0f} s"), watch
    elif job_over and in_doubt(watch, now_s=now_s):
        return Look(progress=Progress.LOST, reason="its job ended before the run did"), watch
    elif now_s - watch.beat_seen_s > SILENCE_S:
        return Look(progress=Progress.LOST, reason=f"no sign of life for {SILENCE_S:.0f} s"), watch
    return Look(progress=Progress.LIVES), watch

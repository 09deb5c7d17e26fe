"""Records of a run's journal, as the controller writes them."""

from __future__ import annotations

from airflow_mlscale.runtime.journal import Record


def record(
    t_s: float,
    *,
    outlook: str | None = None,
    finish_s: float | None = None,
    guaranteed: float = 1.0,
    ceiling: float | None = None,
    progress: float | None = None,
    deadline_s: float = 100.0,
    started_at: float = 1000.0,
    changed: bool = True,
) -> Record:
    """The step ``t_s`` seconds after the start; the prediction's interval is 10 s to either side."""
    return Record(
        at=started_at + t_s,
        subject="job",
        seen={
            "t_s": t_s,
            "left_s": deadline_s - t_s,
            "progress": progress,
            "used_core_s": 2.0 * t_s,
            "stages": 3,
            "tasks_running": 2,
            "reading_age_s": 0.2,
        },
        decided={
            "guaranteed_cores": guaranteed,
            "ceiling_cores": ceiling,
            "driver_cores": 0.0,
            "needed_cores": guaranteed,
            "finish_s": finish_s,
            "finish_low_s": None if finish_s is None else finish_s - 10,
            "finish_high_s": None if finish_s is None else finish_s + 10,
            "outlook": outlook,
        },
        reason="as the test says",
        changed=changed,
    )

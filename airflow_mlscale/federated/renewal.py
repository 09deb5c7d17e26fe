"""When a segment makes way for the next one, because sites are back that cannot join it. Pure.

The engine gives a running job no further sites: one that was restarted, or that is new, waits for the next segment.
A change of segments costs the time in which nobody trains, and brings the data of those who are back to all rounds
that are left. With c seconds for a change and the share s of the sites that would then take part, it pays when

    s · min(seconds that this segment has played, seconds that are left) ≥ c · 2ⁿ

where n is the number of such changes so far: a site that keeps coming and going costs a run less and less. A run whose
rounds have no quorum any more does not wait for that; such a change counts as a loss.

Does not belong here: who is back (`ports.Sites.returned`), and the change itself (whoever follows the run).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings

JOB_START_S = 10.0
"""From the end of a segment to the first task of the next, beside what its first round takes longer than others."""
LATELY = 5
"""Rounds whose median stands for those to come."""


@dataclass(frozen=True)
class Renewal:
    """A reason to begin the next segment."""

    reason: str
    counts_as_loss: bool


def wanted(
    run: RunSettings,
    state: model.RunState,
    back: Collection[str],
    *,
    now: float,
    began_at: float,
) -> Renewal | None:
    """The reason to begin the next segment now; None to go on.

    Args:
        run: settings.
        state: after the last complete round.
        back: sites that are connected and not part of this segment.
        now: seconds since the epoch.
        began_at: when this segment began, likewise.
    """
    names = sorted(name for name in back if _may_take_part(run, state, name))
    if not names:
        return None
    told = f"sites are back: {', '.join(names)}"
    if state.failed_rounds:
        return Renewal(told, counts_as_loss=True)
    played = [done.seconds for done in state.rounds if done.segment == state.segment]
    if not played:
        return None
    cost_s = (JOB_START_S + played[0]) * 2**state.renewals
    there = {site.name for site in state.sites if site.answered and not site.unanswered} - set(names)
    share = len(names) / (len(names) + len(there))
    usable_s = min(now - began_at, left_s(run, state, now=now))
    return Renewal(told, counts_as_loss=False) if share * usable_s >= cost_s else None


def left_s(run: RunSettings, state: model.RunState, *, now: float) -> float:
    """Seconds that the run may still go on: to its deadline, its last round, or the end that is predicted."""
    usual_s = median(done.seconds for done in state.rounds[-LATELY:])
    ends = [(run.max_rounds - len(state.rounds)) * usual_s]
    if run.deadline_at is not None:
        ends.append(run.deadline_at - now)
    predicted_s = (state.forecast or {}).get("seconds", (None, None))[1]
    if predicted_s is not None:
        ends.append(predicted_s)
    return max(0.0, min(ends))


def _may_take_part(run: RunSettings, state: model.RunState, name: str) -> bool:
    """Whom labels choose is known of sites that took part before."""
    return run.sites is None or name in run.sites or any(site.name == name for site in state.sites)

"""Who is compared: ours, published controllers, and a grid of fixed settings that has the best one in hindsight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_mlscale.federated import adaptive
from airflow_mlscale.federated.combination import FEDAVG, ServerOptimiser

BASELINE = "fedavg_K10_E5"
PACED_ROUNDS = 60
"""In which the paper's policies are to arrive."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to run a federation."""

    settings: Mapping[str, Any]
    optimiser: ServerOptimiser = FEDAVG
    static: bool = False
    """Fixed settings: one of those among which hindsight chooses."""
    paced_by_bytes: bool = False
    """Whether its budget is the bytes of `PACED_ROUNDS` complete rounds."""
    looks_at_limits: bool = field(default=False)
    """Whether it plans for its deadline: then each deadline is a run of its own."""


def _fixed(policy: str, cohort: int, epochs: int, *, optimiser: ServerOptimiser = FEDAVG, **more: Any) -> System:
    never = {"on_infeasible": "go_on", "stall_rounds": None, "late_answers": False}
    return System(
        settings={"policy": policy, "cohort": cohort, "local_epochs": epochs, **never, **more},
        optimiser=optimiser,
        static=policy in ("fedavg", "over_selection"),
    )


def _over(ratio: float, cohort: int, epochs: int, **more: Any) -> System:
    return _fixed("over_selection", cohort, epochs, over_selection=ratio, grace_fraction=0.0, **more)


def _ours(optimiser: ServerOptimiser = adaptive.ADVICE, **more: Any) -> System:
    return System(settings={"policy": "adaptive", **more}, optimiser=optimiser, looks_at_limits=True)


SYSTEMS: Mapping[str, System] = {
    "ours_cost": _ours(objective="cost"),
    "ours_time": _ours(objective="time"),
    **{
        f"fedavg_K{cohort}_E{epochs}": _fixed("fedavg", cohort, epochs)
        for cohort, epochs in ((5, 1), (5, 2), (5, 5), (10, 1), (10, 2), (10, 5), (10, 10), (20, 5))
    },
    **{
        f"over{ratio}_K{cohort}_E{epochs}": _over(ratio, cohort, epochs)
        for ratio in (1.3, 1.6)
        for cohort, epochs in ((5, 1), (5, 2), (5, 5), (10, 1), (10, 2), (10, 5))
    },
    # The same server optimiser as ours, under fixed settings.
    **{
        f"over1.3_K{cohort}_E{epochs}_momentum": _over(1.3, cohort, epochs, optimiser=adaptive.ADVICE)
        for cohort, epochs in ((3, 2), (5, 1), (5, 2), (5, 5), (10, 2))
    },
    "fedavg_K5_E2_momentum": _fixed("fedavg", 5, 2, optimiser=adaptive.ADVICE),
    "oort_K5_E2": _fixed("oort", 5, 2),
    "oort_K10_E5": _fixed("oort", 10, 5),
    **{
        name: _fixed(name, 10, 5, max_rounds=PACED_ROUNDS, max_local_epochs=20)
        for name in ("linear_rounds", "quadratic_rounds")
    },
    **{
        name: replace(_fixed(name, 10, 5, max_local_epochs=20), paced_by_bytes=True)
        for name in ("linear_network", "quadratic_network")
    },
    # What each part is worth: not rivals.
    "part_plain_optimiser": _ours(FEDAVG),
    "part_no_late_answers": _ours(late_answers=False),
}
"""All by name; the four of the paper work towards a set-point in their sixtieth round, or at the bytes of so many."""

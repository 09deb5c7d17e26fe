"""The laws of cores: ours, the paper's and the rivals'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import laws, model, policy, settings

CONTROL = settings.ControlSettings()
SPEC = model.ModelSpec(name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=100))
SEEN = laws.ModelSeen(
    name="m",
    group="roma.m",
    spec=SPEC,
    arrivals_per_s=40.0,
    cpu_s_per_request=0.010,
    percentile_s=0.080,
    requests=400,
    waiting=0,
    used_cores=0.4,
    mean_s=0.050,
)


def follow(law: settings.LawName, *looks: laws.ModelSeen, dt_s: float = 1.0, **control: object) -> list[float]:
    scene = laws.Scene(
        host_cores=4.0,
        models=2,
        dt_s=dt_s,
        control=replace(CONTROL, law=law, **control),  # type: ignore[arg-type]
    )
    memory, cores = laws.LawMemory(), []
    for look in looks:
        each, memory = laws.LAWS[law](look, memory, scene)
        cores.append(each)
    return cores


def test_every_law_that_can_be_chosen_is_there() -> None:
    assert set(get_args(settings.LawName)) == set(laws.LAWS)


def test_ct_adds_the_error_of_the_rates() -> None:
    # e = 1/0.1 − 1/0.2 = 5; x = 2 + 0.21·5 = 3.05; 3.05 + 0.17·5 = 3.9
    assert follow("ct", SEEN, replace(SEEN, mean_s=0.2), dt_s=5) == [2.0, 3.9]  # begins with half of the host


def test_ct_moves_every_five_seconds_only() -> None:
    assert follow("ct", SEEN, *[replace(SEEN, mean_s=0.2)] * 5) == [2.0, 2.0, 2.0, 2.0, 2.0, 3.9]


def test_ct_holds_without_a_measurement_and_does_not_wind_up() -> None:
    slow, none = replace(SEEN, mean_s=0.5), replace(SEEN, mean_s=None)
    # e = 8: 2 + 1.68 + 1.36 > 4; x = 4 − 1.36. Then e = −10/9: x = 2.64 − 0.2333, and − 0.1889 makes 2.218
    assert follow("ct", SEEN, slow, none, replace(SEEN, mean_s=0.09), dt_s=5) == [2.0, 4.0, 4.0, 2.3]


def test_the_gains_of_the_paper_can_be_scaled() -> None:
    control = replace(CONTROL, paper=replace(CONTROL.paper, scale=0.1))
    # x = 2 + 0.105; 2.105 + 0.085 = 2.19
    assert follow("ct", SEEN, replace(SEEN, mean_s=0.2), dt_s=5, paper=control.paper) == [2.0, 2.2]


def test_the_set_point_of_the_queue_is_what_arrives_within_the_objective() -> None:
    at, above = replace(SEEN, waiting=4), replace(SEEN, waiting=4, executing=2)
    # q* = 0.1·40 = 4; e = (6 − 4)/4/0.1 = 5: as with response times above
    assert follow("queue_length", SEEN, at, above, dt_s=5) == [2.0, 2.0, 3.9]


def test_rules_step_and_pause() -> None:
    slow, fast = replace(SEEN, mean_s=0.09), replace(SEEN, mean_s=0.01)
    assert follow("rules", slow, slow, slow, slow, dt_s=30) == [3.0, 3.0, 4.0, 4.0]
    assert follow("rules", SEEN, fast, dt_s=60) == [2.0, 1.0]


def test_hpa_goes_up_at_once_and_down_late() -> None:
    busy, idle = replace(SEEN, used_cores=2.0), replace(SEEN, used_cores=0.2)
    rival = replace(CONTROL.rival, hpa_stabilisation_s=60.0)
    looks = follow("hpa", busy, busy, *[idle] * 5, dt_s=15, rival=rival)
    assert looks[:5] == [2.0, 2.5, 2.5, 2.5, 2.5]  # 2 · (2/2)/0.8; the highest wish of the last minute holds
    assert looks[-1] < 0.5


def test_static_is_a_fair_part_of_the_host_and_sharing_promises_nothing() -> None:
    assert follow("static", SEEN, replace(SEEN, arrivals_per_s=1e4)) == [2.0, 2.0]
    assert follow("sharing", SEEN, replace(SEEN, arrivals_per_s=1e4)) == [0.1, 0.1]


@given(
    st.sampled_from(get_args(settings.LawName)),
    st.lists(
        st.tuples(
            st.floats(0, 1e4),
            st.none() | st.floats(1e-6, 1e3),
            st.floats(0, 1e3) | st.none(),
            st.integers(0, 10**4),
            st.floats(0, 100),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_no_law_leaves_the_bounds_whatever_it_sees(
    law: settings.LawName, drawn: list[tuple[float, float | None, float | None, int, float]]
) -> None:
    spec = replace(SPEC, min_cores=0.25, max_cores=3.0)
    control = replace(CONTROL, law=law)
    memory: policy.Memory = {}
    for rate, mean, cost, waiting, used in drawn:
        look = replace(
            SEEN,
            spec=spec,
            arrivals_per_s=rate,
            mean_s=mean,
            percentile_s=mean,
            cpu_s_per_request=cost,
            waiting=waiting,
            used_cores=used,
        )
        plan, memory = policy.decide(
            [look, replace(look, group="roma.other")], memory, host_cores=4.0, control=control, dt_s=5.0
        )
        shares = [step.share.guaranteed_cores for step in plan]
        assert sum(shares) <= 4.0 + 1e-6
        assert all(0.25 - 1e-9 <= cores <= 3.0 + 1e-9 for cores in shares)


def test_under_contention_an_integrating_law_goes_on_from_what_it_got() -> None:
    control = replace(CONTROL, law="ct")
    slow = [replace(SEEN, group=f"roma.{name}", mean_s=5.0) for name in "ab"]
    _, memory = policy.decide(slow, {}, host_cores=4.0, control=control, dt_s=5)
    plan, memory = policy.decide(slow, memory, host_cores=4.0, control=control, dt_s=5)
    assert [step.share.guaranteed_cores for step in plan] == [2.0, 2.0]  # both wish 4
    # e = 10 − 0.2 = 9.8: x = 2 − 0.17·9.8
    assert pytest.approx(2 - 0.17 * 9.8) == memory["roma.a"].law.integral


def line(left_s: Sequence[float], group: str = "a", base: float = 0.5, **changes: object) -> laws.LineSeen:
    seen = laws.LineSeen(
        group=group,
        base_cores=base,
        most_cores=4.0,
        objective_s=0.1,
        left_s=left_s,
        executions=0,
        cpu_s_per_request=0.010,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def test_demand_is_the_steepest_of_work_due_over_time_left() -> None:
    # a margin of 0.5 · 100 ms: 1·10/(100 − 50) = 0.2; 2·10/(70 − 50) = 1; the later one of three: 30/50 = 0.6
    assert pytest.approx(0.2) == laws.demand_cores(line([0.1]), CONTROL)
    assert pytest.approx(1.0) == laws.demand_cores(line([0.07, 0.07]), CONTROL)
    assert pytest.approx(1.0) == laws.demand_cores(line([0.07, 0.07, 0.1]), CONTROL)
    assert laws.demand_cores(line([]), CONTROL) == 0.0
    assert laws.demand_cores(line([0.1], cpu_s_per_request=None), CONTROL) == 0.0


@given(
    st.lists(st.floats(0.001, 0.2), max_size=20).map(sorted),
    st.floats(0.001, 0.2),
    st.floats(0.0001, 0.1),
)
def test_more_work_never_demands_less(left_s: list[float], one_more: float, cost_s: float) -> None:
    fewer = laws.demand_cores(line(left_s, cpu_s_per_request=cost_s), CONTROL)
    assert fewer <= laws.demand_cores(line(sorted([*left_s, one_more]), cpu_s_per_request=cost_s), CONTROL) + 1e-9


def lend(*seen: laws.LineSeen, memory: dict[str, laws.Boost] | None = None) -> dict[str, laws.Boost]:
    return dict(laws.boosts(seen, memory or {}, dt_s=0.05, host_cores=2.0, control=CONTROL))


def test_a_loan_fills_the_gap_and_is_held() -> None:
    loans = lend(line([0.07, 0.07]))
    assert pytest.approx(0.5) == loans["a"].cores  # 1 core demanded, 0.5 its own
    held = lend(line([]), memory=loans)
    assert held["a"].cores == loans["a"].cores
    for _ in range(6):
        held = lend(line([]), memory=held)
    assert held["a"].cores == 0.0


def test_what_nobody_uses_is_lent_and_given_back_when_somebody_does() -> None:
    loans = lend(line([0.04] * 8, executions=1))
    assert pytest.approx(1.5) == loans["a"].cores  # all that is left of the host's two
    loans = lend(line([0.04] * 8, executions=1), line([], group="b", base=1.2), memory=loans)
    assert pytest.approx(1.5) == loans["a"].cores  # b does not use it
    loans = lend(line([0.04] * 8, executions=1), line([], group="b", base=1.2, executions=2), memory=loans)
    assert pytest.approx(0.3) == loans["a"].cores


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-0.1, 0.2), max_size=8).map(sorted), st.floats(0, 3), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_loans_and_what_is_used_never_exceed_the_host(drawn: list[tuple[list[float], float, int]]) -> None:
    memory: dict[str, laws.Boost] = {}
    for _ in range(3):
        seen = [
            line(left_s, group=str(i), base=base, executions=executions)
            for i, (left_s, base, executions) in enumerate(drawn)
        ]
        memory = lend(*seen, memory=memory)
        used = sum(min(base, executions) for _, base, executions in drawn)
        assert sum(loan.cores for loan in memory.values()) <= max(0.0, 2.0 - used) + 1e-9
        drawn = list(reversed(drawn))

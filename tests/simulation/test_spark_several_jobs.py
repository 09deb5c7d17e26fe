"""Several jobs that together demand more than their host: who misses is who must, and the journal says why.

Real policies, controllers and agent; the applications, the kernel and the time are simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark import grants
from airflow_mlscale.spark.model import Mode, Outlook
from tests.fakes.spark import Part, SimulatedApplication
from tests.fakes.spark_host import SimulatedHost

CORES = 2.0
PROMISED = "the host's cores are promised to others"


@dataclass(frozen=True)
class Demand:
    """So much work by such a deadline."""

    core_s: float
    deadline_s: float


TWO = {"early": Demand(70.0, 60.0), "late": Demand(110.0, 75.0)}
"""By 75 s there are 150 core-s, and 180 are asked for: the later one has to give way."""
THREE = {"first": Demand(40.0, 40.0), "second": Demand(60.0, 70.0), "third": Demand(130.0, 90.0)}
"""By 90 s there are 180 core-s, and 230 are asked for; the first two ask for 100 of the 140 by 70 s."""
TIGHT = {"early": Demand(52.0, 40.0), "late": Demand(70.0, 90.0)}
"""1.5 cores and 0.9 cores are more than there are, and yet there is time for both, one after the other."""


async def run(
    demands: dict[str, Demand], *, policy: str, mode: Mode = Mode.RESERVE, ordinary: bool = False
) -> SimulatedHost:
    host = SimulatedHost(policy, CORES)
    if ordinary:
        host.add_ordinary("ordinary")
    for name, demand in demands.items():
        part = Part(core_s=demand.core_s / 4, tasks=20)
        application = SimulatedApplication([part] * 4, lead_s=3.0, tail_s=0.5, startup_core_s=2.0)
        host.add(name, application, demand.deadline_s, mode=mode)
    await host.run()
    return host


def must_miss(demands: dict[str, Demand]) -> set[str]:
    """Who ends too late when the earliest deadline has all cores until it is done, then the next, and so on."""
    missing, end_s = set(), 0.0
    for name, demand in sorted(demands.items(), key=lambda item: item[1].deadline_s):
        end_s += demand.core_s / CORES
        if end_s > demand.deadline_s:
            missing.add(name)
    return missing


def missed(host: SimulatedHost) -> set[str]:
    return {name for name, job in host.jobs.items() if not job.met}


def cut(host: SimulatedHost, name: str) -> list[Record]:
    """Steps in which a job got less than it asked for, and the reason says so."""
    return [record for record in host.jobs[name].records if PROMISED in record.reason]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("demands", [TWO, THREE, TIGHT], ids=["two", "three", "tight"])
async def test_by_earliest_deadline_nobody_misses_who_need_not(demands: dict[str, Demand], mode: Mode) -> None:
    host = await run(demands, policy="earliest_deadline", mode=mode)
    assert missed(host) == must_miss(demands)


@pytest.mark.parametrize("demands", [TWO, THREE], ids=["two", "three"])
async def test_by_earliest_deadline_the_latest_gives_way_first_and_knows_it(demands: dict[str, Demand]) -> None:
    host = await run(demands, policy="earliest_deadline")
    earliest, *_, latest = demands
    for record in cut(host, earliest):  # only by what keeps the others alive
        missing = record.decided["asked_cores"] - record.decided["guaranteed_cores"]
        assert missing <= grants.ALIVE_CORES * (len(demands) - 1) + 1e-3
    told = cut(host, latest)
    assert told
    for record in told:
        asked, granted = record.decided["asked_cores"], record.decided["guaranteed_cores"]
        assert f"asked for {asked:.2f} cores, granted {granted:.2f}: {PROMISED}" in record.reason
    before_its_end = [record for record in host.jobs[latest].records if record.seen["left_s"] > 0]
    assert Outlook.WILL_MISS in {record.decided["outlook"] for record in before_its_end}


async def test_proportionally_all_get_the_same_part_of_what_they_ask() -> None:
    host = await run(TWO, policy="proportional")
    early, late = host.jobs["early"], host.jobs["late"]
    both = [
        (one.decided, other.decided)
        for one, other in zip(early.records, late.records, strict=False)
        if PROMISED in one.reason and PROMISED in other.reason
    ]
    assert len(both) > 20
    # A grant is what was left to divide when its job last asked: the other one's newest wish came a moment later.
    parts = [tuple(each["guaranteed_cores"] / each["asked_cores"] for each in pair) for pair in both]
    assert all(one == pytest.approx(other, rel=0.12) for one, other in parts)
    assert missed(host) == {"early", "late"}


async def test_proportionally_a_tight_deadline_is_missed_that_the_order_of_deadlines_keeps() -> None:
    assert missed(await run(TIGHT, policy="earliest_deadline")) == set()
    assert "early" in missed(await run(TIGHT, policy="proportional"))


@pytest.mark.parametrize("mode", Mode)
async def test_a_job_without_a_deadline_costs_nobody_a_promise_and_gets_what_is_left(mode: Mode) -> None:
    demands = {"one": Demand(40.0, 60.0), "other": Demand(40.0, 60.0)}
    host = await run(demands, policy="earliest_deadline", mode=mode, ordinary=True)
    assert missed(host) == set()
    span_s = max(job.finish_s for job in host.jobs.values())
    could_core_s = sum(job.control.totals.cap_core_s for job in host.jobs.values())
    # At least what no ceiling allowed the two to take; without ceilings guarantees weigh more than it does.
    least_core_s = CORES * span_s - could_core_s if mode is Mode.RESERVE else 0.05 * span_s
    assert host.ordinary["ordinary"] >= least_core_s > 0


async def test_together_with_less_than_the_host_nobody_is_cut() -> None:
    host = await run({"one": Demand(30.0, 60.0), "other": Demand(30.0, 80.0)}, policy="proportional")
    assert missed(host) == set()
    # Both ask for all cores until their executors are there, and for the last bit of work.
    for name in host.jobs:
        assert [record for record in cut(host, name) if 10.0 < float(record.seen["t_s"]) < 55.0] == []

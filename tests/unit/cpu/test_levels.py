"""Shares in the kernel's units, and the order of writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.cpu import levels, ports

SCALES = st.sampled_from([levels.V1_SHARES, levels.V2_WEIGHT])


@pytest.mark.parametrize(
    ("share", "v1", "v2"),
    [
        # an ordinary process: 8192 · 0.125 = 1024, 800 · 0.125 = 100: both kernels' defaults
        (ports.UNMANAGED, levels.Levels(weight=1024), levels.Levels(weight=100)),
        # 8192 · 1.5 = 12288, 800 · 1.5 = 1200; 1.5 · 100 ms = 150 ms of quota, and as much burst
        (
            ports.CpuShare.strict(1.5),
            levels.Levels(weight=12288, quota_us=150_000, burst_us=150_000),
            levels.Levels(weight=1200, quota_us=150_000, burst_us=150_000),
        ),
        (ports.IDLE, levels.Levels(weight=2, idle=True), levels.Levels(weight=1, idle=True)),
        # a ceiling keeps a group out of the idle class: least weight instead
        (
            ports.CpuShare(guaranteed_cores=0, ceiling_cores=0.5),
            levels.Levels(weight=2, quota_us=50_000, burst_us=50_000),
            levels.Levels(weight=1, quota_us=50_000, burst_us=50_000),
        ),
        # both scales saturate: 8192 · 64 > 262144, 800 · 64 > 10000
        (ports.CpuShare(guaranteed_cores=64), levels.Levels(weight=262_144), levels.Levels(weight=10_000)),
        # the kernel refuses quotas below 1 ms
        (
            ports.CpuShare(guaranteed_cores=0, ceiling_cores=0.001),
            levels.Levels(weight=2, quota_us=1000, burst_us=1000),
            levels.Levels(weight=1, quota_us=1000, burst_us=1000),
        ),
    ],
)
def test_units(share: ports.CpuShare, v1: levels.Levels, v2: levels.Levels) -> None:
    assert v1 == levels.levels(share, levels.V1_SHARES)
    assert v2 == levels.levels(share, levels.V2_WEIGHT)


def test_old_kernels_get_what_they_know() -> None:
    # before 5.15 there is no idle class, before 5.14 no burst
    assert levels.Levels(weight=2) == levels.levels(ports.IDLE, levels.V1_SHARES, idle_class=False)
    strict = levels.levels(ports.CpuShare.strict(0.5), levels.V2_WEIGHT, burst=False)
    assert levels.Levels(weight=400, quota_us=50_000) == strict


@st.composite
def shares(draw: st.DrawFn) -> ports.CpuShare:
    guaranteed = draw(st.just(0.0) | st.floats(0.001, 8))
    headroom = draw(st.none() | st.just(0.0) | st.floats(0.01, 8))
    return ports.CpuShare(
        guaranteed_cores=guaranteed, ceiling_cores=None if headroom is None else guaranteed + headroom
    )


@given(share=shares(), scale=SCALES)
def test_what_is_read_back_is_what_was_asked_for(share: ports.CpuShare, scale: levels.WeightScale) -> None:
    seen = levels.share(levels.levels(share, scale), scale)
    # rounding to whole weights, and the two lowest ones mean "nothing guaranteed"
    assert share.guaranteed_cores == pytest.approx(seen.guaranteed_cores, abs=2 / scale.per_core)
    if share.ceiling_cores is None:
        assert seen.ceiling_cores is None
    else:
        assert max(0.01, share.ceiling_cores) == pytest.approx(seen.ceiling_cores, abs=1e-5)


class Kernel:
    """The kernel's rules, as measured on 6.18."""

    def __init__(self, now: levels.Levels, scale: levels.WeightScale) -> None:
        self.now = now
        self.scale = scale

    def write(self, step: levels.Write) -> None:
        now, value = self.now, step.value
        match step.field:
            case "weight":
                assert value is not None
                assert not now.idle, "EINVAL: the group is idle"
                self.now = replace(now, weight=value)
            case "idle":
                self.now = replace(now, idle=value == 1, weight=self.scale.low if value else self.scale.default)
            case "quota":
                assert value is None or value >= max(levels.LEAST_QUOTA_US, now.burst_us), "EINVAL: below the burst"
                self.now = replace(now, quota_us=value)
            case "burst":
                assert value is not None
                assert now.quota_us is None or value <= now.quota_us, "EINVAL: above the quota"
                self.now = replace(now, burst_us=value)


@given(before=shares(), after=shares(), scale=SCALES)
def test_the_kernel_accepts_every_write(
    before: ports.CpuShare, after: ports.CpuShare, scale: levels.WeightScale
) -> None:
    kernel = Kernel(levels.levels(before, scale), scale)
    wanted = levels.levels(after, scale)
    for step in levels.writes(kernel.now, wanted, scale):
        kernel.write(step)
    assert (wanted.idle, wanted.quota_us) == (kernel.now.idle, kernel.now.quota_us)
    if not wanted.idle:
        assert wanted.weight == kernel.now.weight
    if wanted.quota_us is None:
        assert kernel.now.burst_us == 0
    else:  # a burst that is near enough is left alone: each write refills the bucket
        assert wanted.quota_us / 2 <= kernel.now.burst_us <= wanted.quota_us


@given(share=shares(), scale=SCALES)
def test_nothing_is_written_without_a_change(share: ports.CpuShare, scale: levels.WeightScale) -> None:
    now = levels.levels(share, scale)
    assert levels.writes(now, now, scale) == []


def test_a_small_change_of_the_ceiling_is_one_write() -> None:
    now, wanted = (levels.levels(ports.CpuShare.strict(cores), levels.V1_SHARES) for cores in (0.5, 0.6))
    # 0.5 → 0.6 core: weight and quota; the burst of 50 ms lies between 30 and 60
    expected = [levels.Write("weight", 4915), levels.Write("quota", 60_000)]
    assert expected == levels.writes(now, wanted, levels.V1_SHARES)

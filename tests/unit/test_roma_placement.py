"""Which model gets a place on which GPU, and which device runs the next batch."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import devices, placement, settings

MIB = 2**20
CONTROL = settings.GpuSettings(use=True, headroom=0.0, context_bytes=500 * MIB)


def option(first_ms: float, all_ms: float | None = None) -> placement.Option:
    return placement.Option(first_s=first_ms / 1000, all_s=(first_ms if all_ms is None else all_ms) / 1000)


def gpu(uuid: str = "GPU-a", *, total: int = 2000, used: int = 0, own: int = 0) -> placement.GpuSeen:
    return placement.GpuSeen(uuid=uuid, total_bytes=total * MIB, used_bytes=used * MIB, own_bytes=own * MIB)


def model(name: str, *, need: int = 1000, **changes: Any) -> placement.ModelSeen:
    return placement.ModelSeen(**{"group": name, "name": name, "need_bytes": need * MIB, "cpu_s": 0.02, **changes})


def moved(gpus: list[placement.GpuSeen], *models: placement.ModelSeen) -> list[tuple[str, str, str]]:
    actions = placement.place(gpus, models, CONTROL)
    return [("load" if isinstance(one, placement.Load) else "evict", one.group, one.gpu) for one in actions]


# -- which device


def test_what_is_done_first_takes_it() -> None:
    cpu, fast = option(20), option(3)
    assert placement.takes(fast, [cpu], slack_s=1)
    assert not placement.takes(cpu, [fast], slack_s=1)


def test_a_long_line_before_the_gpu_is_shared_with_the_cpu() -> None:
    # The CPU is done after 20 ms, the GPU with all 64 only after 32: the batch the CPU takes shortens that.
    assert placement.takes(option(20), [option(3, 32)], slack_s=1)
    assert not placement.takes(option(40), [option(3, 32)], slack_s=1)


def test_what_only_a_gpu_can_do_in_time_is_left_to_it() -> None:
    assert not placement.takes(option(20), [option(12, 60)], slack_s=0.015)
    assert placement.takes(option(20), [option(18, 60)], slack_s=0.015)  # late everywhere: then it may as well help


def test_a_busy_gpu_is_waited_for_only_as_long_as_it_pays() -> None:
    assert not placement.takes(option(20), [option(3 + 15)], slack_s=1)
    assert placement.takes(option(20), [option(3 + 18)], slack_s=1)
    assert placement.takes(option(20), [option(inf)], slack_s=1)  # it hangs


def test_an_option_is_reckoned_from_its_parts() -> None:
    seen = placement.option(ready_s=0.1, batch_s=0.02, batch=8, waiting=20, each_s=0.002)
    assert pytest.approx((0.12, 0.144)) == (seen.first_s, seen.all_s)  # 12 more at 2 ms


seconds = st.floats(1e-4, 10)
some_options = st.lists(st.builds(lambda a, b: placement.Option(first_s=a, all_s=a + b), seconds, seconds), min_size=1)


@given(some_options, st.floats(-1, 10) | st.just(inf))
def test_of_free_devices_at_least_one_takes_the_batch(options: list[placement.Option], slack_s: float) -> None:
    takers = [
        one for i, one in enumerate(options) if placement.takes(one, options[:i] + options[i + 1 :], slack_s=slack_s)
    ]
    assert takers


# -- who gets memory


def test_a_model_goes_where_it_fits_and_no_further() -> None:
    assert moved([gpu()], model("a")) == [("load", "a", "GPU-a")]  # 2000 - 500 ≥ 1000
    assert moved([gpu(used=600)], model("a")) == []  # 1400 - 500 < 1000
    assert moved([gpu(used=600, own=600)], model("a")) == [("load", "a", "GPU-a")]  # these are ours
    assert moved([gpu()], model("a"), model("b")) == [("load", "a", "GPU-a")]  # the second would not fit beside it


def test_no_more_is_promised_than_there_is() -> None:
    models = [model(f"m{i}", need=400, arrivals_per_s=float(i)) for i in range(9)]
    loads = moved([gpu(), gpu("GPU-b")], *models)
    for uuid in ("GPU-a", "GPU-b"):
        assert sum(where == uuid for _, _, where in loads) == 3  # 500 + 3 · 400 ≤ 2000
    assert {group for _, group, _ in loads} == {f"m{i}" for i in range(3, 9)}  # those that save most


def test_the_less_busy_gpu_is_preferred() -> None:
    busy = model("busy", need=100, arrivals_per_s=100.0, gpu_s=0.004, gpu="GPU-a")
    assert moved([gpu(), gpu("GPU-b")], busy, model("new", need=100)) == [("load", "new", "GPU-b")]


def test_preferences_are_kept() -> None:
    assert moved([gpu()], model("a", preference="cpu")) == []
    assert moved([gpu()], model("a", preference="cpu", gpu="GPU-a")) == [("evict", "a", "GPU-a")]
    assert moved([gpu()], model("a", barred=True)) == []
    resident = model("a", arrivals_per_s=50.0, gpu="GPU-a")
    assert moved([gpu()], resident, model("b", preference="gpu")) == [("evict", "a", "GPU-a")]
    assert moved([gpu()], resident, model("b", priority=1)) == [("evict", "a", "GPU-a")]
    pinned = model("a", preference="gpu", gpu="GPU-a")
    assert moved([gpu()], pinned, model("b", arrivals_per_s=1000.0)) == []


@pytest.mark.parametrize(
    ("resident_rate", "rate", "load_s", "evicted"),
    [
        (0.0, 10.0, 5.0, True),  # 60 s · 10/s · 15 ms = 9 s are worth 5 s of loading
        (0.0, 10.0, 10.0, False),
        (10.0, 14.0, 1.0, False),  # not half as much again: it would go to and fro
        (10.0, 20.0, 1.0, True),
        (0.0, 0.0, 1.0, False),
    ],
)
def test_an_eviction_must_pay(resident_rate: float, rate: float, load_s: float, evicted: bool) -> None:
    resident = model("old", arrivals_per_s=resident_rate, gpu="GPU-a")
    found = moved([gpu()], resident, model("new", arrivals_per_s=rate, load_s=load_s))
    assert found == ([("evict", "old", "GPU-a")] if evicted else [])


def test_who_rests_longest_goes_first() -> None:
    residents = [model(f"m{i}", need=700, idle_s=idle_s, gpu="GPU-a") for i, idle_s in enumerate((5.0, 500.0))]
    assert moved([gpu()], *residents, model("new", need=500, arrivals_per_s=50.0)) == [("evict", "m1", "GPU-a")]


def test_a_model_that_is_no_faster_there_displaces_nobody() -> None:
    resident = model("old", arrivals_per_s=1.0, gpu="GPU-a")
    assert moved([gpu()], resident, model("new", arrivals_per_s=100.0, gpu_s=0.02)) == []


def test_what_others_take_is_given_up() -> None:
    residents = [model("a", need=600, arrivals_per_s=9.0, gpu="GPU-a"), model("b", need=600, gpu="GPU-a")]
    assert moved([gpu(used=300)], *residents) == []  # 2000 - 300 - 500 - 1200 = 0
    assert moved([gpu(used=400)], *residents) == [("evict", "b", "GPU-a")]


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.sampled_from(["auto", "gpu", "cpu"]), st.floats(0, 100)), max_size=8),
    st.integers(0, 3000),
)
def test_moving_comes_to_an_end(drawn: list[tuple[int, Any, float]], used: int) -> None:
    gpus = [gpu(used=used), gpu("GPU-b", total=1200)]
    models = {
        f"m{i}": model(f"m{i}", need=need, preference=preference, arrivals_per_s=rate)
        for i, (need, preference, rate) in enumerate(drawn)
    }
    for _ in range(40):
        actions = placement.place(gpus, list(models.values()), CONTROL)
        for one in actions:
            where = one.gpu if isinstance(one, placement.Load) else None
            models[one.group] = model(**{**vars_of(models[one.group]), "gpu": where})
        for seen in gpus:
            residents = [one for one in models.values() if one.gpu == seen.uuid]
            assert not residents or placement.free_bytes(seen, residents, CONTROL) >= 0
        if not actions:
            return
    pytest.fail(f"still moving: {actions}")


def vars_of(one: placement.ModelSeen) -> dict[str, Any]:
    return {
        "name": one.name,
        "need": one.need_bytes // MIB,
        "preference": one.preference,
        "arrivals_per_s": one.arrivals_per_s,
    }


# -- what a process is given


def test_a_process_sees_its_gpu_alone_and_its_share_under_mps() -> None:
    plain = devices.Gpu(uuid="GPU-a", name="A", total_bytes=1)
    shared = devices.Gpu(uuid="MIG-1", name="A", total_bytes=1, mps=True)
    assert dict(devices.environment(plain, percentage=50)) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-a",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    assert dict(devices.environment(shared, percentage=50))["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in dict(devices.environment(shared, percentage=100))

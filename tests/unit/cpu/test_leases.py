"""Admission, arbitration and expiry of leases, on paper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.control import arbitration
from airflow_mlscale.cpu import leases, ports


def lease(guaranteed: float, *, ceiling: float | None = None, minimum: float = 0.0, priority: int = 0) -> leases.Lease:
    return leases.Lease(
        share=ports.CpuShare(guaranteed_cores=guaranteed, ceiling_cores=ceiling),
        terms=ports.Terms(minimum_cores=minimum, priority=priority),
        expires_s=10.0,
    )


def granted(held: leases.Leases, pot: float = 2.0) -> dict[str, ports.CpuShare]:
    return dict(leases.granted(held, pot_cores=pot, policy=arbitration.guaranteed_first))


def test_serving_outranks_batch() -> None:
    held = {"batch": lease(2.0), "serving": lease(1.5, priority=ports.SERVING_PRIORITY)}
    # 1.5 of 2 to serving, the 0.5 left to batch
    assert granted(held)["serving"].guaranteed_cores == 1.5
    assert granted(held)["batch"].guaranteed_cores == 0.5


def test_a_minimum_is_kept_whatever_the_priority() -> None:
    held = {"batch": lease(2.0, minimum=0.75), "serving": lease(2.0, priority=ports.SERVING_PRIORITY)}
    # 0.75 kept, 2 − 0.75 = 1.25 left
    assert granted(held)["batch"].guaranteed_cores == 0.75
    assert granted(held)["serving"].guaranteed_cores == 1.25


def test_a_batch_job_without_any_guarantee_left_is_idle_work() -> None:
    held = {"batch": lease(1.0), "serving": lease(2.0, priority=ports.SERVING_PRIORITY)}
    assert granted(held)["batch"] == ports.IDLE


def test_a_ceiling_stays_as_asked_for_and_is_cut_to_the_pot() -> None:
    held = {"a": lease(1.5, ceiling=1.5, priority=1), "b": lease(1.0, ceiling=3.0)}
    assert granted(held)["a"] == ports.CpuShare.strict(1.5)
    assert granted(held)["b"] == ports.CpuShare(guaranteed_cores=0.5, ceiling_cores=2.0)


def test_minimums_must_fit() -> None:
    held = leases.renewed({}, "a", lease(1.5, minimum=1.5), pot_cores=2.0)
    with pytest.raises(errors.AdmissionRefusedError, match=r"'b' asks for at least 1 .* 0\.5 of 2 .*to a 1\.5"):
        leases.renewed(held, "b", lease(1.0, minimum=1.0), pot_cores=2.0)
    # its own old minimum does not count against a renewal: 2 ≤ 2
    assert leases.renewed(held, "a", lease(2.0, minimum=2.0), pot_cores=2.0)["a"].share.guaranteed_cores == 2.0


def test_a_minimum_stays_reserved_while_its_holder_asks_for_less() -> None:
    held = leases.renewed({}, "a", lease(0.0, minimum=1.5), pot_cores=2.0)
    assert granted(held)["a"] == ports.IDLE
    with pytest.raises(errors.AdmissionRefusedError):
        leases.renewed(held, "b", lease(1.0, minimum=1.0), pot_cores=2.0)


def test_expiry() -> None:
    held = {"a": lease(1.0)}  # until 10
    assert leases.expired(held, 9.9) == ()
    assert leases.expired(held, 10.0) == ("a",)
    assert leases.without(held, "a") == {}


cores = st.floats(0, 8)


@given(
    asked=st.lists(st.tuples(cores, cores, st.none() | cores, st.integers(-2, 2)), max_size=6),
    pot=st.floats(0.1, 8),
    policy=st.sampled_from(sorted(arbitration.POLICIES)),
)
def test_guarantees_never_exceed_the_pot(
    asked: list[tuple[float, float, float | None, int]], pot: float, policy: str
) -> None:
    held: leases.Leases = {}
    for number, (guaranteed, minimum, headroom, priority) in enumerate(asked):
        ceiling = None if headroom is None else guaranteed + headroom
        try:
            held = leases.renewed(
                held,
                f"group-{number}",
                lease(guaranteed, ceiling=ceiling, minimum=minimum, priority=priority),
                pot_cores=pot,
            )
        except errors.AdmissionRefusedError:
            continue
    shares = leases.granted(held, pot_cores=pot, policy=arbitration.POLICIES[policy])
    assert sum(share.guaranteed_cores for share in shares.values()) <= pot + 1e-6
    for name, share in shares.items():
        least = min(held[name].share.guaranteed_cores, held[name].terms.minimum_cores)
        assert least - 1e-6 <= share.guaranteed_cores <= held[name].share.guaranteed_cores + 1e-6

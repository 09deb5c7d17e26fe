"""Shares and terms refuse what makes no sense, by field, value and fix."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("guaranteed_cores", {"guaranteed_cores": -0.1}),
        ("guaranteed_cores", {"guaranteed_cores": nan}),
        ("guaranteed_cores", {"guaranteed_cores": inf}),
        ("ceiling_cores", {"guaranteed_cores": 1.0, "ceiling_cores": 0.5}),
        ("ceiling_cores", {"guaranteed_cores": 0.0, "ceiling_cores": -1.0}),
        ("ceiling_cores", {"guaranteed_cores": 1.0, "ceiling_cores": nan}),
        ("ceiling_cores", {"guaranteed_cores": 1.0, "ceiling_cores": inf}),
    ],
)
def test_bad_shares(field: str, arguments: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidInputError, match=f"{field}=") as caught:
        ports.CpuShare(**arguments)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("minimum_cores", {"minimum_cores": -1.0}),
        ("minimum_cores", {"minimum_cores": nan}),
        ("ttl_s", {"ttl_s": 0.0}),
        ("ttl_s", {"ttl_s": nan}),
        ("ttl_s", {"ttl_s": ports.LONGEST_TTL_S + 1}),
        ("deadline_at", {"deadline_at": nan}),
    ],
)
def test_bad_terms(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidInputError, match=f"{field}=") as caught:
        ports.Terms(**arguments)
    assert caught.value.fix


def test_strict_means_exactly_this_much() -> None:
    assert ports.CpuShare(guaranteed_cores=0.5, ceiling_cores=0.5) == ports.CpuShare.strict(0.5)


def test_cutting_to_the_host() -> None:
    assert ports.CpuShare.strict(2.0) == ports.within(ports.CpuShare.strict(3.0), 2.0)
    assert ports.CpuShare(guaranteed_cores=1.0, ceiling_cores=2.0) == ports.within(
        ports.CpuShare(guaranteed_cores=1.0, ceiling_cores=5.0), 2.0
    )
    assert ports.CpuShare(guaranteed_cores=2.0) == ports.within(ports.CpuShare(guaranteed_cores=9.0), 2.0)
    assert ports.within(ports.IDLE, 2.0) == ports.IDLE

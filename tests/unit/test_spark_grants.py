"""What is said of a grant that is not what was asked for."""

from __future__ import annotations

import pytest

from airflow_mlscale.cpu.ports import CpuShare
from airflow_mlscale.spark.grants import Grant


@pytest.mark.parametrize(
    ("granted", "why"),
    [
        (0.5, ""),
        (0.54, ""),
        (2.0, "; 2.00 cores stay guaranteed, which is more"),
        (0.3, "; asked for 0.50 cores, granted 0.30: the host's cores are promised to others"),
    ],
)
def test_a_reason_says_why_a_grant_is_not_what_was_asked_for(granted: float, why: str) -> None:
    asked, share = CpuShare(guaranteed_cores=0.5), CpuShare(guaranteed_cores=granted)
    assert Grant(asked=asked, share=share, host_cores=4.0).why == why

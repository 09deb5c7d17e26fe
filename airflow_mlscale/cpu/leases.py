"""Leases on one host: admission, arbitration and expiry, as pure functions over the leases that are held.

Belongs here: who gets what, given who asks for what, and when a lease ends.
Does not belong here: clocks, the kernel, HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_mlscale import errors
from airflow_mlscale.control import arbitration
from airflow_mlscale.cpu import ports


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What one controller asked for its group, until when."""

    share: ports.CpuShare
    terms: ports.Terms
    expires_s: float
    """On the agent's monotonic clock."""


Leases = Mapping[str, Lease]
"""By group."""


def renewed(leases: Leases, group: str, lease: Lease, *, pot_cores: float) -> Leases:
    """The leases with this one taken or renewed.

    Raises:
        AdmissionRefusedError: the minimums would no longer fit in the pot; the leases stay as they are.
    """
    after = {**leases, group: lease}
    if not arbitration.admissible([_reserve(name, held) for name, held in after.items()], pot_cores):
        others = {name: held.terms.minimum_cores for name, held in leases.items() if name != group}
        holders = ", ".join(f"{name} {cores:g}" for name, cores in sorted(others.items()) if cores) or "nobody"
        raise errors.AdmissionRefusedError(
            f"group {group!r} asks for at least {lease.terms.minimum_cores:g} cores, but only "
            f"{max(0.0, pot_cores - sum(others.values())):g} of {pot_cores:g} are not promised yet (to {holders}): "
            "lower minimum_cores, or end another group"
        )
    return after


def expired(leases: Leases, now_s: float) -> tuple[str, ...]:
    """Groups whose lease has run out."""
    return tuple(group for group, lease in leases.items() if lease.expires_s <= now_s)


def without(leases: Leases, group: str) -> Leases:
    """The leases without this group's."""
    return {name: lease for name, lease in leases.items() if name != group}


def granted(leases: Leases, *, pot_cores: float, policy: arbitration.Policy) -> Mapping[str, ports.CpuShare]:
    """The share of each group: guarantees as the policy divides the pot, ceilings as asked for, cut to the pot."""
    cores = policy([_claim(name, lease) for name, lease in leases.items()], pot_cores)
    return {
        name: ports.within(
            ports.CpuShare(guaranteed_cores=cores[name], ceiling_cores=lease.share.ceiling_cores), pot_cores
        )
        for name, lease in leases.items()
    }


def _reserve(group: str, lease: Lease) -> arbitration.Claim:
    """For admission: the whole minimum, even while its holder asks for less."""
    return arbitration.Claim(name=group, wanted=lease.terms.minimum_cores, minimum=lease.terms.minimum_cores)


def _claim(group: str, lease: Lease) -> arbitration.Claim:
    """For arbitration: never more than is wanted now."""
    wanted = lease.share.guaranteed_cores
    return arbitration.Claim(
        name=group,
        wanted=wanted,
        minimum=min(wanted, lease.terms.minimum_cores),
        priority=lease.terms.priority,
        deadline_at=lease.terms.deadline_at,
    )

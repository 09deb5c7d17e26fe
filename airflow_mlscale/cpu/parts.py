"""One share over several parts (hosts, pods), as pure functions: arithmetic, no I/O.

Belongs here: who of the parts gets how much. Does not belong here: how a part is told (adapters).
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale.cpu import ports

_NOTHING = 1e-9


def fill(cores: float, weights: Mapping[str, float], room: Mapping[str, float]) -> dict[str, float]:
    """Cores in proportion to the weights; no part gets more than its room, what it cannot take goes to the others.

    Args:
        cores: to hand out; what exceeds all rooms together stays over.
        weights: of each part; parts without weight get nothing.
        room: most cores of each part.
    """
    given = dict.fromkeys(weights, 0.0)
    unfilled = {part for part, weight in weights.items() if weight > 0 and room[part] > 0}
    left = cores
    while unfilled and left > 0:
        total = sum(weights[part] for part in unfilled)
        full = {part for part in unfilled if left * weights[part] / total >= room[part]}
        for part in full or unfilled:
            given[part] = room[part] if full else left * weights[part] / total
        if not full:
            break
        left -= sum(room[part] for part in full)
        unfilled -= full
    return given


def divided(
    share: ports.CpuShare, weights: Mapping[str, float], room: Mapping[str, float]
) -> dict[str, ports.CpuShare]:
    """A share for each part that has a weight; together they are the share, as far as there is room."""
    guaranteed = fill(share.guaranteed_cores, weights, room)
    ceilings = None if share.ceiling_cores is None else fill(share.ceiling_cores, weights, room)
    return {
        part: ports.CpuShare(
            guaranteed_cores=guaranteed[part],
            ceiling_cores=None if ceilings is None else max(guaranteed[part], ceilings[part]),
        )
        for part, weight in weights.items()
        if weight > 0
    }


def together(shares: Mapping[str, ports.CpuShare]) -> ports.CpuShare:
    """What the parts have in sum; without a limit as soon as one part has none."""
    if not shares or all(share == ports.UNMANAGED for share in shares.values()):
        return ports.UNMANAGED
    ceilings = [share.ceiling_cores for share in shares.values()]
    limited = [ceiling for ceiling in ceilings if ceiling is not None]
    guaranteed = round(sum(share.guaranteed_cores for share in shares.values()), 9)
    unlimited = len(limited) < len(ceilings)
    ceiling = None if unlimited else max(guaranteed, round(sum(limited), 9))
    return ports.CpuShare(guaranteed_cores=guaranteed, ceiling_cores=ceiling)


def short(asked: Mapping[str, ports.CpuShare], granted: Mapping[str, ports.CpuShare]) -> dict[str, float]:
    """Parts that were granted less than they were asked for, with the cores that they do give."""
    given = {part: granted[part].guaranteed_cores if part in granted else 0.0 for part in asked}
    return {part: cores for part, cores in given.items() if cores < asked[part].guaranteed_cores - _NOTHING}

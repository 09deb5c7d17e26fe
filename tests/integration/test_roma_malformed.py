"""Malformed requests: ten thousand against a real daemon with a real model, some against the gateway alone."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import grpc
import httpx
import pytest

from airflow_mlscale.roma import settings
from airflow_mlscale.roma.adapters import client, v2_wire
from tests.fakes import certificates, roma_served
from tests.integration import roma_daemon, roma_malformed, roma_models

REQUESTS = 10_000
INFER = "/v2/models/line/infer"
GROWTH = 96 * 2**20
"""Bytes that gateway and worker may grow by while nothing good is asked of them: arenas, caches, no more."""


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(600)
async def test_nothing_hangs_fails_or_grows(tmp_path_factory: pytest.TempPathFactory) -> None:
    artefacts = roma_models.built(tmp_path_factory)
    directory = tmp_path_factory.mktemp("malformed")
    with roma_daemon.running(directory, "--model-root", str(artefacts), "--max-body-mb", "1") as daemon:
        await asyncio.to_thread(daemon.deploy, "line", artefacts / "line1", objective={"milliseconds": 30_000})
        good: Counter[int] = Counter()
        ended = asyncio.Event()
        asking = asyncio.ensure_future(ask(daemon, good, ended))
        try:
            requests = roma_malformed.made(7, "line")
            first = await roma_malformed.send(daemon.port, requests, REQUESTS // 5)
            before = held(daemon)
            second = await roma_malformed.send(daemon.port, requests, REQUESTS - REQUESTS // 5)
            await garbage_over_grpc(daemon.grpc_port)
        finally:
            ended.set()
            await asking
        statuses = first.statuses + second.statuses
        assert first.unanswered + second.unanswered == []
        assert sum(statuses.values()) > REQUESTS // 2
        assert statuses[400] > REQUESTS // 5
        assert not [status for status in statuses if status >= 500], statuses
        assert set(good) == {200}, "who asks rightly is answered throughout"
        assert held(daemon) - before < GROWTH
        status = await asyncio.to_thread(daemon.status, "line")
        assert (status["worker"]["restarts"], status["queue"]["requests"]) == (0, 0)


async def test_the_gateway_answers_or_closes_whatever_comes() -> None:
    async with roma_served.serving(header_timeout_s=5) as served:
        report = await roma_malformed.send(served.port, roma_malformed.made(3, "m"), 800)
        assert report.unanswered == []
        assert not [status for status in report.statuses if status >= 500], report.statuses
        assert (await served.http.post("/v2/models/m/infer", content=b"{}")).status_code == 200


async def test_a_tls_port_closes_on_what_is_no_tls(tmp_path: Path) -> None:
    certificate, key = certificates.Authority(tmp_path).issue("server")
    config = settings.TlsSettings(certificate=certificate, key=key)
    chance = random.Random(5)
    async with roma_served.serving(tls=config, header_timeout_s=1) as served:
        for _ in range(20):
            hello = b"\x16\x03\x01" + roma_malformed.junk(chance)
            sent = [roma_malformed.Sent(chance.choice([roma_malformed.junk(chance), hello]), False) for _ in range(10)]
            for port in (served.port, served.grpc_port):
                async with asyncio.timeout(60):
                    answers = await asyncio.gather(*(roma_malformed.exchange(port, one) for one in sent))
                assert not any(answer.startswith(b"HTTP/") for answer in answers)
        trusted = client.trust(ca_file=tmp_path / "ca.pem")
        async with httpx.AsyncClient(verify=trusted, trust_env=False) as http:
            assert (await http.get(f"https://localhost:{served.port}/v2")).status_code == 200


async def ask(daemon: roma_daemon.Daemon, good: Counter[int], ended: asyncio.Event) -> None:
    """Right requests, one after the other."""
    async with httpx.AsyncClient(base_url=daemon.url, trust_env=False, timeout=60) as http:
        while not ended.is_set() or not good:
            good[(await http.post(INFER, json=roma_malformed.GOOD)).status_code] += 1


async def garbage_over_grpc(port: int) -> None:
    chance = random.Random(11)
    for _ in range(20):
        connections = (roma_malformed.exchange(port, roma_malformed.frames(chance)) for _ in range(10))
        await asyncio.wait_for(asyncio.gather(*connections), 60)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        codes: Counter[grpc.StatusCode] = Counter()
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(300):
            body = v2_wire.ModelInferRequest(model_name="line").SerializeToString() + roma_malformed.junk(chance, 40)
            try:
                await infer(body, timeout=60)
            except grpc.aio.AioRpcError as exc:
                codes[exc.code()] += 1
        assert codes.keys() <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
        assert await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=60)


def held(daemon: roma_daemon.Daemon) -> int:
    """Bytes of memory of the daemon and its workers."""
    root = daemon.processes()[-1]
    return sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))

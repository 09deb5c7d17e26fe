"""The dashboard in a real browser, over the real gateway and fake workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright import async_api

from airflow_mlscale.roma import devices
from airflow_mlscale.roma.adapters import dashboard, tokens
from airflow_mlscale.runtime import journal
from tests.fakes import roma_served
from tests.integration import browser

pytestmark = pytest.mark.timeout(180)


def record(at: float, **changes: Any) -> journal.Record:
    seen = {"percentile_ms": 400.0, "objective_ms": 1000.0, "waiting": 2, "used_cores": 0.5, "arrivals_per_s": 9.0}
    decided = {"guaranteed_cores": 0.7, "ceiling_cores": None, "verdict": "on_target"}
    fields = {"at": at, "subject": "m", "seen": seen, "decided": decided, "reason": "<b>arrivals</b> 9/s"}
    return journal.Record(**{**fields, **changes})


async def test_what_the_page_may_load(tmp_path: Path) -> None:
    tokens_path = tmp_path / "tokens.json"
    tokens.add(tokens_path, "a", frozenset({"read"}))
    async with roma_served.serving(tokens_path=tokens_path) as served:
        for path in dashboard.PATHS[1:]:
            answer = await served.http.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", ""), "nothing from elsewhere"
        assert (await served.http.get("/")).headers["location"] == "dashboard"
        assert (await served.http.get("/dashboard/../tokens.json")).status_code in (401, 404)
        assert (await served.http.post("/dashboard")).status_code == 405


async def test_models_decisions_and_batches_are_drawn() -> None:
    async with roma_served.serving() as served, browser.page() as page:
        now = time.time()
        for age in range(20, 0, -1):
            served.journal.append(record(now - age, changed=age == 20))
        for _ in range(3):
            await served.http.post("/v2/models/m/infer", content=b"{}")
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        await page.goto(f"http://127.0.0.1:{served.port}/")
        model = page.locator("[data-model=m]")
        await async_api.expect(model.locator("h2")).to_have_text("m")
        await async_api.expect(model).to_contain_text("3 requests, 0 lost")
        await async_api.expect(model.get_by_role("img", name="latency: p95")).to_be_visible()
        await async_api.expect(model.get_by_role("img", name="batches: 3 of 1")).to_be_visible()
        for series in ("svg .measured", "svg .limit", "svg .used", "svg .queue"):
            drawn = await model.locator(series).first.get_attribute("d")
            assert drawn
            assert drawn.count("L") >= 1, "a line, not a point"
        # The newest at the right, 400 ms of 1.1·1000 ms: 100 − 100·400/1100 = 63.64 from above.
        latency = await model.locator("figure", has_text="latency").locator(".measured").get_attribute("d")
        assert latency
        assert latency.endswith(" 63.64")
        row = page.locator("#decisions tr")
        await async_api.expect(row).to_have_count(1)
        await async_api.expect(row).to_contain_text("0.70 cores, on_target")
        await async_api.expect(row).to_contain_text("<b>arrivals</b> 9/s")  # told as text, whatever is in it
        assert {httpx.URL(url).host for url in requested if not url.startswith("data:")} == {"127.0.0.1"}
        served.journal.append(record(time.time(), reason="a new one", changed=True))
        await async_api.expect(row).to_have_count(2)
        await async_api.expect(row.first).to_contain_text("a new one")


async def test_gpus_are_shown_with_the_models_on_them_and_their_loss() -> None:
    async with roma_served.serving(emulated_gpu=True) as served, browser.page() as page:
        served.gpu_port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", used_bytes=1000 * 2**20, utilisation=0.25)
        await served.place()
        for _ in range(3):
            await served.http.post("/v2/models/m/infer", content=b"{}")
        await page.goto(f"http://127.0.0.1:{served.port}/")
        gpu = page.locator("[data-gpu=GPU-a]")
        await async_api.expect(gpu).to_contain_text("Fake GPU GPU-a")
        for text in ("emulated-gpu", "1000 of 8000 MiB used, 728 reserved of a budget of 6600", "25 %", "m 100 %"):
            await async_api.expect(gpu).to_contain_text(text)
        await async_api.expect(page.locator("[data-model=m]")).to_contain_text("answered by emulated-gpu 100 %")
        served.gpu_port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", fault="XID 79", lasting=True)
        await served.place()
        await async_api.expect(gpu).to_contain_text("lost: XID 79")
        await async_api.expect(page.locator("[data-model=m]")).to_contain_text("no place on a GPU: the GPU is lost")


async def test_a_token_is_asked_for_and_kept_for_the_session(tmp_path: Path) -> None:
    tokens_path = tmp_path / "tokens.json"
    reads = tokens.add(tokens_path, "reads", frozenset({"read"}))
    infers = tokens.add(tokens_path, "infers", frozenset({"infer"}))
    async with roma_served.serving(tokens_path=tokens_path) as served, browser.page() as page:
        await page.goto(f"http://127.0.0.1:{served.port}/dashboard")
        field = page.get_by_label("This daemon asks for a token")
        await field.fill("wrong")
        await page.keyboard.press("Enter")
        await async_api.expect(page.get_by_role("alert")).to_contain_text("give a valid token")
        await field.fill(infers)
        await page.keyboard.press("Enter")
        await async_api.expect(page.get_by_role("alert")).to_contain_text("needs the scope read or admin")
        await field.fill(reads)
        await page.keyboard.press("Enter")
        await async_api.expect(page.locator("[data-model=m]")).to_be_visible()
        await async_api.expect(field).to_be_hidden()
        await page.reload()
        await async_api.expect(page.locator("[data-model=m]")).to_be_visible()
        assert reads not in page.url
        assert await page.evaluate("localStorage.length") == 0
        tokens.remove(tokens_path, "reads")
        assert served.guard.file is not None
        served.guard.file.refresh()
        await async_api.expect(field).to_be_visible()


async def test_a_daemon_that_is_away_is_told(tmp_path: Path) -> None:
    async with browser.page() as page:
        async with roma_served.serving() as served:
            await page.goto(f"http://127.0.0.1:{served.port}/dashboard")
            await async_api.expect(page.get_by_role("status")).to_have_text("live")
        await async_api.expect(page.get_by_role("status")).to_contain_text("no answer")

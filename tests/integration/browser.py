"""A headless Chromium for tests of pages, where the machine has one."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright import async_api

async_api.expect.set_options(timeout=30_000)  # a busy machine is slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str:
    """Path of the browser; without one the test is skipped."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium here: scripts/browser.sh installs one, or set CHROMIUM to its path")
    return found


@asynccontextmanager
async def page() -> AsyncIterator[async_api.Page]:
    """An empty page; what goes wrong in its scripts fails the test."""
    path = executable()
    async with async_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=60_000)
        try:
            one = await browser.new_page()
            one.set_default_timeout(30_000)
            failures: list[str] = []
            one.on("pageerror", lambda error: failures.append(str(error)))
            one.on("console", lambda line: failures.append(line.text) if "Content Security" in line.text else None)
            yield one
            assert failures == []
        finally:
            await browser.close()

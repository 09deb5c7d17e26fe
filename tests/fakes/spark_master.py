"""A standalone master as its web page shows it: its drivers, its status, and the button that ends a driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.fakes.submission import http_server


@dataclass
class FakeMaster:
    """The state behind the page."""

    url: str = ""
    status: str = "ALIVE"
    drivers: dict[str, str] = field(default_factory=dict)
    """State of each driver, by its id."""
    killed: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    """Of its worker."""
    down: bool = False
    """Answer nothing but errors."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if self.down:
            return 503, b""
        if (method, path) == ("POST", "/driver/kill/"):
            (driver,) = parse_qs(body.decode())["id"]
            self.killed.append(driver)
            self.drivers[driver] = "KILLED"
            return 200, b""
        if path == "/json/":
            return 200, json.dumps(self._page()).encode()
        return 200, b"<html></html>"

    def _page(self) -> dict[str, object]:
        rows = [{"id": name, "state": state, "worker": "worker-1"} for name, state in self.drivers.items()]
        worker = {"id": "worker-1", "host": self.host, "cores": 2, "memory": 1024, "state": "ALIVE"}
        standby = self.status == "STANDBY"
        return {
            "status": self.status,
            "workers": [] if standby else [worker],
            "activedrivers": [] if standby else rows,
            "completeddrivers": [],
        }


@contextmanager
def spark_master() -> Iterator[FakeMaster]:
    """A running page; its address is the state's ``url``."""
    state = FakeMaster()
    with http_server(state.answer) as url:
        state.url = url
        yield state

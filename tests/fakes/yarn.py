"""A ResourceManager's REST API: applications by tag, their state, their end, and the proxy to their drivers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from tests.fakes.submission import FakeDriver, http_server


@dataclass
class FakeYarn:
    """The state behind the server."""

    url: str = ""
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id, as the API shows them."""
    drivers: dict[str, FakeDriver] = field(default_factory=dict)
    down: bool = False
    """Answer nothing but errors."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)

    def add(self, application: str, *, tag: str, state: str = "RUNNING") -> None:
        self.apps[application] = {
            "id": application,
            "applicationTags": tag,
            "state": state,
            "finalStatus": "UNDEFINED",
            "startedTime": 1_000 * (1 + len(self.apps)),
            "finishedTime": 0,
            "diagnostics": "",
        }

    def end(self, application: str, state: str, final: str, *, at: float = 0.0, diagnostics: str = "") -> None:
        self.apps[application] |= {
            "state": state,
            "finalStatus": final,
            "finishedTime": int(at * 1000),
            "diagnostics": diagnostics,
        }

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(target)
        self.requests.append((method, target, json.loads(body) if body else None))
        if self.down:
            return 503, b"{}"
        found = self._route(method, url, json.loads(body) if body else None)
        return (404, b"{}") if found is None else (200, json.dumps(found).encode())

    def _route(self, method: str, url: SplitResult, body: Any) -> Any:
        path, query = url.path, parse_qs(url.query)
        if path == "/ws/v1/cluster/info":
            return {"clusterInfo": {"state": "STARTED", "resourceManagerVersion": "3.4.1"}}
        if path == "/ws/v1/cluster/apps":
            (tag,) = query["applicationTags"]
            rows = [app for app in self.apps.values() if tag in app["applicationTags"].split(",")]
            return {"apps": {"app": rows} if rows else None}  # as YARN answers when there is none
        if found := re.fullmatch(r"/ws/v1/cluster/apps/(\w+)/state", path):
            assert (method, body) == ("PUT", {"state": "KILLED"})
            self.end(found[1], "KILLED", "KILLED")
            return {"state": "KILLED"}
        if found := re.fullmatch(r"/ws/v1/cluster/apps/(\w+)", path):
            return {"app": self.apps[found[1]]}
        if (found := re.fullmatch(r"/proxy/(\w+)/api/v1(/.*)", path)) and found[1] in self.drivers:
            return self.drivers[found[1]].answer(f"{found[2]}?{url.query}".rstrip("?"))
        return None


@contextmanager
def resource_manager() -> Iterator[FakeYarn]:
    """A running server; its address is the state's ``url``."""
    state = FakeYarn()
    with http_server(state.answer) as url:
        state.url = url
        yield state

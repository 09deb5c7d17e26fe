"""The few calls of Airflow's public REST API that the demo needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from airflow_mlscale import errors


@dataclass
class AirflowApi:
    """A client of one Airflow with the simple auth manager."""

    address: str
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        token = httpx.get(f"{self.address}/auth/token", timeout=60).raise_for_status().json()["access_token"]
        self._client = httpx.Client(
            base_url=f"{self.address}/api/v2", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Unpause and trigger a DAG; returns its run id. Raises if the DAG does not appear or does not parse."""
        deadline = time.monotonic() + 180
        while self._client.get(f"/dags/{dag_id}").status_code != 200:
            broken = self._client.get("/importErrors").json().get("import_errors", [])
            if broken:
                raise errors.RunFailedError(f"the DAG does not parse:\n{broken[0]['stack_trace']}")
            if time.monotonic() > deadline:
                raise errors.TransientError(f"Airflow did not find the DAG {dag_id} within 180 s")
            time.sleep(1)
        self._client.patch(f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
        body = {"logical_date": None, "conf": conf}
        return str(self._client.post(f"/dags/{dag_id}/dagRuns", json=body).raise_for_status().json()["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self._get(dag_id, run_id, "")["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(dag_id, run_id, "/taskInstances")["task_instances"]
        return found

    def summary(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """What the task last published in its state store; empty before it did."""
        return self._optional(dag_id, run_id, f"/taskInstances/{task_id}/state-store/mlscale_summary")

    def result(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """The task's XCom; empty if it returned nothing."""
        return self._optional(dag_id, run_id, f"/taskInstances/{task_id}/xcomEntries/return_value?deserialize=true")

    def _get(self, dag_id: str, run_id: str, path: str) -> dict[str, Any]:
        answer = self._client.get(f"/dags/{dag_id}/dagRuns/{quote(run_id)}{path}").raise_for_status().json()
        return dict(answer)

    def _optional(self, dag_id: str, run_id: str, path: str) -> dict[str, Any]:
        answer = self._client.get(f"/dags/{dag_id}/dagRuns/{quote(run_id)}{path}")
        if answer.status_code == 404:
            return {}
        value = answer.raise_for_status().json()["value"]
        return value if isinstance(value, dict) else {}

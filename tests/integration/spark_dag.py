"""Runs a DAG as Airflow does, once: ``python -m tests.integration.spark_dag RESULT_FILE [DAG]``.

Needs a migrated database, `DAGS` as the folder of DAGs, and the DAG's connections. Default is ``by_deadline``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DAGS = Path(__file__).parent / "dags"


def main(result: Path, dag_id: str = "by_deadline") -> None:
    from airflow.dag_processing.dagbag import DagBag

    run = DagBag(DAGS).dags[dag_id].test()
    found: dict[str, Any] = {"state": str(run.state), "run_id": run.run_id}
    for ti in run.get_task_instances():
        found[ti.task_id] = {
            "state": str(ti.state),
            "xcoms": xcoms(run.run_id, ti.task_id),
            "state_store": kept(run.run_id, ti.task_id),
        }
    result.write_text(json.dumps(found))


def xcoms(run_id: str, task_id: str) -> dict[str, Any]:
    from airflow.models.xcom import XComModel

    return {row.key: XComModel.deserialize_value(row) for row in _rows(XComModel, run_id, task_id)}


def kept(run_id: str, task_id: str) -> dict[str, Any]:
    from airflow.models.task_state_store import TaskStateStoreModel

    return {row.key: json.loads(row.value) for row in _rows(TaskStateStoreModel, run_id, task_id)}


def _rows(table: Any, run_id: str, task_id: str) -> list[Any]:
    from airflow.utils.session import create_session

    with create_session() as session:
        return list(session.query(table).filter_by(run_id=run_id, task_id=task_id).all())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

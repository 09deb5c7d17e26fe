"""Runs one `FederatedTrainingOperator` as a task process would: ``federated_process.py ARGUMENTS_JSON RESULT_FILE``."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from tests.fakes import federated_task


def main(arguments: dict[str, object], result: Path) -> None:
    arguments["target"] = Quality(**arguments["target"])
    arguments["deadline"] = timedelta(seconds=float(str(arguments["deadline"])))
    operator = FederatedTrainingOperator(**arguments)
    found = operator.execute(federated_task.context(operator.task_id))
    result.with_suffix(".partial").write_text(json.dumps(found))
    result.with_suffix(".partial").replace(result)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))

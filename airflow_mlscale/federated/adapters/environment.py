"""The environment of NVFlare's processes, of the jobs that they start and of the trainers below those."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

THREADS = "MLSCALE_TRAINER_THREADS"
DATA_ARGS = "MLSCALE_SITE_DATA_ARGS"
"""JSON object of the site's own data arguments, see `site_data_args`."""
BIND = "MLSCALE_FEDERATED_BIND"
"""Address that the server listens on, see `bound_server`."""

SILENT: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",  # MLflow and many others
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # Keras reads presets through it
    "SCARF_ANALYTICS": "false",  # Airflow's and others' install and usage pings
    "SCARF_NO_ANALYTICS": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""No library on a site or on the server tells third parties anything.

NVFlare, TensorFlow, Keras and TenSEAL send nothing by themselves; these speak to what users' functions may import.
"""


def of_participant(
    *, threads: int, python_path: Sequence[Path] = (), data_args: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """This interpreter first, few threads, no chatter, nothing of Airflow and nothing told to third parties.

    Args:
        threads: of TensorFlow in each trainer.
        python_path: directories with modules that server and sites import.
        data_args: the site's own arguments of the data functions, JSON values.
    """
    package_root = Path(__file__).parents[3]
    path = [str(package_root), *(str(each) for each in python_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not re.match(r"AIRFLOW_|_AIRFLOW|NVFL", name)}
    return {
        **kept,
        **SILENT,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "KERAS_BACKEND": "tensorflow",
        "MALLOC_ARENA_MAX": "2",
        THREADS: str(threads),
        **({DATA_ARGS: json.dumps(dict(data_args))} if data_args else {}),
    }


def site_data_args() -> dict[str, Any]:
    """Arguments of the data functions that only hold on this site: where its data is, say; they win over the run's."""
    return dict(json.loads(os.environ.get(DATA_ARGS, "{}")))


def trainer_threads() -> int:
    """TensorFlow threads of this trainer."""
    return int(os.environ.get(THREADS, "1"))

"""The NVFlare job of one segment, rendered as a folder: configuration, settings, the users' modules.

The same settings, segment and sources give the same bytes, which makes submission with a token idempotent.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import labels
from airflow_mlscale.federated.adapters import wire
from airflow_mlscale.federated.settings import FUNCTIONS, RunSettings

WORKFLOW = "airflow_mlscale.federated.adapters.nvflare_controller.SegmentWorkflow"
EXECUTOR = "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor"
TRAINER = ["python3", "-u", "-m", "airflow_mlscale.federated.adapters.trainer"]
SCRIPT_RUNNER = ["python3", "-u", "-m", "airflow_mlscale.federated.adapters.script_runner"]

REVEALER = "airflow_mlscale.federated.adapters.encryption.Revealer"
ENCRYPTOR = "nvflare.app_opt.he.model_encryptor.HEModelEncryptor"
DECRYPTOR = "nvflare.app_opt.he.model_decryptor.HEModelDecryptor"

CLIENT_TUNING = {
    # Seconds. A site's job finds a server that restarts, and results are handed over without long pauses.
    "task_check_interval": 0.5,
    "runner_sync_timeout": 2.0,
    "get_task_timeout": 30.0,
    "submit_task_result_timeout": 120.0,
}


def render(run: RunSettings, *, segment: int, run_dir: Path, folder: Path, task_interval_s: float = 0.2) -> Path:
    """Write the job into ``folder`` (emptied first); returns it.

    Raises:
        InvalidInputError: a module of the settings is not there.
    """
    sources = _sources(run)
    shutil.rmtree(folder, ignore_errors=True)
    custom = folder / "app" / "custom"
    custom.mkdir(parents=True)
    _dump(folder / "meta.json", _meta(run, segment))
    _dump(folder / "app" / "config" / "config_fed_server.json", _server(run, segment, run_dir, task_interval_s))
    _dump(folder / "app" / "config" / "config_fed_client.json", _client(run))
    _dump(custom / wire.SETTINGS_FILE, run.to_json())
    for source in sources:
        _copy(source, custom)
    for module, text in sorted(run.generated_modules.items()):
        (custom / f"{module}.py").write_text(text, encoding="utf-8")
    return folder


def check(run: RunSettings) -> None:
    """Look whether everything that has to travel with the job is there.

    Raises:
        InvalidInputError: a module of the settings is not there.
    """
    _sources(run)


def _meta(run: RunSettings, segment: int) -> Mapping[str, Any]:
    return {
        "name": f"{run.run_id}.{segment}",
        "resource_spec": {},
        "min_clients": run.min_nodes,
        "deploy_map": {"app": _where(run)},
    }


def _where(run: RunSettings) -> list[str]:
    """NVFlare knows no labels: the server job chooses, and the others' trainers are never asked."""
    return ["@ALL"] if run.sites is None or labels.selects(run.sites) else ["server", *run.sites]


def _server(run: RunSettings, segment: int, run_dir: Path, task_interval_s: float) -> Mapping[str, Any]:
    return {
        "format_version": 2,
        "server": {"heart_beat_timeout": 60, "task_request_interval": task_interval_s},
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
        "workflows": [
            {
                "id": "segment",
                "path": WORKFLOW,
                "args": {"run": run.to_json(), "segment": segment, "run_dir": str(run_dir)},
            }
        ],
    }


def _client(run: RunSettings) -> Mapping[str, Any]:
    revealers, encryptors, decryptors = _encryption() if run.encrypted else ([], [], [])
    return {
        "format_version": 2,
        **CLIENT_TUNING,
        "executors": [
            *revealers,
            {
                "tasks": [wire.TASK],
                "executor": {
                    "path": EXECUTOR,
                    "args": {
                        "execution_mode": "external_process",
                        "command": command(run),
                        "launch_once": True,
                        "launch_timeout": run.round_timeout_s + run.start_allowance_s,
                        "heartbeat_timeout": 120.0,
                        "shutdown_timeout": 2.0,
                        "stop_grace_period": 2.0,
                        "params_exchange_format": run.client_script_format if run.client_script else "raw",
                        "server_expected_format": "numpy" if run.client_script else "raw",
                    },
                },
            },
        ],
        "task_data_filters": decryptors,
        "task_result_filters": encryptors,
        "components": [],
    }


def command(run: RunSettings) -> list[str]:
    """What a site starts in the job's folder: our trainer, or the user's client script.

    Raises:
        InvalidInputError: there is no such script.
    """
    if run.client_script is None:
        return TRAINER
    name = f"custom/{_script(run.client_script).name}" if _is_file(run.client_script) else run.client_script
    return [*SCRIPT_RUNNER, name, *run.client_script_args]


def _encryption() -> tuple[list[Any], list[Any], list[Any]]:
    """A site's executor that reveals sums, the filter that encrypts its weights and the one that decrypts sums."""
    return (
        [{"tasks": [wire.REVEAL], "executor": {"path": REVEALER, "args": {}}}],
        [{"tasks": [wire.TASK], "filters": [{"path": ENCRYPTOR, "args": {"weigh_by_local_iter": False}}]}],
        [{"tasks": [wire.REVEAL], "filters": [{"path": DECRYPTOR, "args": {}}]}],
    )


def _sources(run: RunSettings) -> list[Path]:
    """Files and package directories to send; what is installed on every site anyway stays."""
    wanted = [(name, path.partition(":")[0]) for name in FUNCTIONS if (path := getattr(run, name)) is not None]
    wanted += [("extra_modules", module) for module in run.extra_modules]
    if ":" in run.target.metric:
        wanted.append(("metric", run.target.metric.partition(":")[0]))
    found: set[Path | None] = set()
    if run.client_script is not None and _is_file(run.client_script):
        found.add(_script(run.client_script))
    elif run.client_script is not None:
        wanted.append(("client_script", run.client_script))
    found |= {_source(field, module) for field, module in wanted if module not in run.generated_modules}
    return sorted(path for path in found if path is not None)


def _is_file(script: str) -> bool:
    """Whether a client script is named by its file, not as a module."""
    return script.endswith(".py")


def _script(path: str) -> Path:
    """The file of a client script; a relative path is looked for wherever modules are.

    Raises:
        InvalidInputError: it is not there.
    """
    for place in ("", *sys.path):
        if (found := Path(place) / os.path.expanduser(path)).is_file():
            return found.resolve()
    fix = "there is no such file; write an absolute path, or one below the DAG folder or another entry of Python's path"
    raise errors.InvalidInputError("client_script", path, fix)


def _source(field: str, module: str) -> Path | None:
    """The file of a module, or the directory of its top-level package; None for an installed one."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError) as exc:
        raise errors.InvalidInputError(field, module, f"the module cannot be found: {exc}") from exc
    if spec is None or spec.origin is None:
        raise errors.InvalidInputError(field, module, "the module cannot be found; put it beside the DAG file")
    origin = Path(spec.origin).resolve()
    if origin.suffix != ".py" or _installed(origin):
        return None
    depth = module.count(".") + (1 if spec.submodule_search_locations else 0)
    return origin.parents[depth - 1] if depth else origin


def _installed(path: Path) -> bool:
    places = {Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {Path(entry).resolve() for entry in sys.path if entry.endswith("site-packages")}
    return any(path.is_relative_to(place) for place in places)


def _copy(source: Path, custom: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, custom / source.name)
        return
    for path in sorted(source.rglob("*.py")):
        target = custom / source.name / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _dump(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")

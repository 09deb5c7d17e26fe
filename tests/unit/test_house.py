"""The house: what may be imported where, and what Airflow finds of this provider."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_by(module: str) -> set[str]:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize("engine", ["spark", "federated", "roma"])
def test_the_engines_load_neither_airflow_nor_their_heavy_library(engine: str) -> None:
    loaded = loaded_by(f"airflow_mlscale.{engine}.main")
    assert not loaded & {"airflow", "tensorflow", "keras", "pyspark", "nvflare", "pandas", "kubernetes"}


@pytest.mark.parametrize("dag", sorted(path.name for path in (ROOT / "dags").glob("*.py")))
def test_parsing_a_dag_loads_no_engine(dag: str) -> None:
    code = (
        f"import json, sys, runpy; runpy.run_path({str(ROOT / 'dags' / dag)!r}); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "airflow" in loaded
    assert not loaded & {"tensorflow", "keras", "nvflare", "kubernetes"}


def test_provider_info_names_only_what_exists() -> None:
    from importlib import import_module

    from airflow_mlscale import __version__, provider_info

    info = provider_info.get_provider_info()
    assert info["versions"] == [__version__]
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                import_module(module)
    for connection in info["connection-types"]:
        module, name = connection["hook-class-name"].rsplit(".", 1)
        hook = getattr(import_module(module), name)
        assert hook.conn_type == connection["connection-type"]
        assert callable(hook.test_connection)
    for path in (*info["extra-links"], *(decorator["class-name"] for decorator in info["task-decorators"])):
        module, name = path.rsplit(".", 1)
        assert getattr(import_module(module), name)


def test_provider_info_fits_airflows_schema() -> None:
    import jsonschema
    from airflow._shared.providers_discovery import providers_discovery

    from airflow_mlscale import provider_info

    schema = json.loads((Path(providers_discovery.__file__).parents[2] / "provider_info.schema.json").read_text())
    jsonschema.validate(provider_info.get_provider_info(), schema)


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["providers", "get", "airflow-provider-mlscale"], "airflow-provider-mlscale"), (["plugins"], "mlscale")],
)
def test_airflow_finds_the_provider_and_its_plugin(command: list[str], expected: str) -> None:
    done = subprocess.run([sys.executable, "-m", "airflow", *command], capture_output=True, text=True, check=True)
    assert expected in done.stdout


def test_pyspark_client_does_not_shadow_the_full_pyspark() -> None:
    from importlib.metadata import distributions
    from importlib.util import find_spec

    spec = find_spec("pyspark")
    assert spec is not None
    assert "pyspark-client" not in {dist.name for dist in distributions()}
    assert list((Path(str(spec.origin)).parent / "jars").glob("spark-core_*.jar"))


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/index.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert missing == []


RUN_EXAMPLES = """
import linecache, re, subprocess, sys
from airflow.sdk import DAG
sleeper = subprocess.Popen(["sleep", "60"])
try:
    names = {"__name__": "example", "pid": sleeper.pid}
    with DAG("page"):  # for examples that show tasks alone
        for number, code in enumerate(re.findall(r"```python\\n(.*?)```", open(sys.argv[1]).read(), re.S), 1):
            name = f"{sys.argv[1]}, example {number}"
            linecache.cache[name] = len(code), None, code.splitlines(True), name  # for who reads a function's source
            exec(compile(code, name, "exec"), names)
finally:
    sleeper.kill()
    sleeper.wait()
if "retrain" in names:
    print(sorted(names["retrain"]().task_ids))
"""


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("README.md", "['deploy', 'features', 'train']\n"),
        ("docs/cpu-shares.md", ""),
        ("docs/federated.md", ""),
        ("docs/roma.md", ""),
        ("docs/spark.md", ""),
    ],
)
def test_the_examples_of_the_documentation_work(page: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", RUN_EXAMPLES, str(ROOT / page)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(said)

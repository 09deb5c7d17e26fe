"""What people see of a federated run: lines, tables, predicted curves, metrics, commands, pictures."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import statsd_logger

from airflow_mlscale import cli, errors
from airflow_mlscale.federated import connection, forecast, limits, model, narration, policy, run_commands, summary
from airflow_mlscale.federated.adapters import picture, run_directory
from airflow_mlscale.federated.sites import Site
from airflow_mlscale.hooks import federated_telemetry
from airflow_mlscale.runtime import journal
from tests.fakes import federated, federated_task

VALUES = [round(0.9 - 0.6 * 0.8**i, 4) for i in range(12)]


def played(*values: float, sites: int = 3, **changes) -> model.RunState:
    """A run as the controller leaves it, one record of a round after the other."""
    state = federated.state(run_id="run", target=0.9, max_rounds=40, status=model.Status.RUNNING, segment=1)
    run = federated.settings(max_rounds=40)
    known = tuple(
        Site(name=f"site-{i:03d}", asked=9, answered=8, overhead_s=1.5, epoch_s=0.25, busy_s=40.0 + i, gigabytes=0.002)
        for i in range(sites)
    )
    for number, value in enumerate(values, 1):
        done = model.Round(
            number=number, value=value, loss=1 - value, asked=("a", "b", "c"), answered=("a", "b"), samples=20,
            seconds=2.0, segment=1, epochs={"a": 1, "b": 2, "c": 4}, effort=1.0, node_s=6.0, gigabytes=0.001, failed=1,
        )  # fmt: skip
        state = policy.with_round(state, run.target, done)
    seen = forecast.predict(run, state, now=1000.0)
    told = seen.to_json() if seen else None
    return replace(state, sites=known, forecast=told, updated_at=1000.0, started_at=900.0, **changes)


def record(state: model.RunState) -> journal.Record:
    return run_directory._record(state, state.rounds[-1], model.Quality("accuracy", 0.9))


def stored(tmp_path, state: model.RunState) -> run_directory.RunDirectory:
    directory = run_directory.RunDirectory(tmp_path / "run")
    directory.create(federated.settings(max_rounds=40))
    run_directory.RunWriter(directory, model.Quality("accuracy", 0.9)).checkpoint(state)
    log = journal.Journal(directory.metrics_path)
    log.append(record(state))
    log.close()
    return directory


def test_a_round_is_one_line_with_what_is_expected_and_what_it_cost():
    state = played(*VALUES)
    line = narration.line(record(state), federated.settings(max_rounds=40, deadline_at=1060.0))
    rounds, seconds, node_s = (state.forecast[name][1] for name in ("rounds", "seconds", "node_seconds"))
    assert line == (
        f"round 12 of at most 40: accuracy {VALUES[-1]:.4f} (target 0.9), "
        f"about {rounds:.0f} rounds ({seconds:.0f} s) to go, chance {state.forecast['chance']:.0%}, 60 s left, "
        f"2 of 3 sites, 1-4 epochs, 2.0 s, cost 72 site s and 0.012 GB, about {node_s:.0f} site s to come"
    )


def test_a_hopeless_number_of_rounds_is_not_counted():
    told = record(played(*VALUES))
    line = narration.line(replace(told, seen={**told.seen, "expected_rounds": 40756.2}), federated.settings())
    assert ", over 1000 rounds to go, chance " in line


def test_before_a_forecast_the_line_says_what_is_known():
    line = narration.line(record(played(0.5)), federated.settings())
    assert line == (
        "round 1 of at most 50: accuracy 0.5000 (target 0.9), 2 of 3 sites, 1-4 epochs, 2.0 s, "
        "cost 6 site s and 0.001 GB"
    )


def test_every_tenth_round_brings_a_table_of_the_sites():
    run = federated.settings()
    ninth, tenth = played(*VALUES[:9]), played(*VALUES[:10])
    assert len(list(narration.told([record(ninth)], run, ninth))) == 1
    lines = list(narration.told([record(tenth)], run, tenth))[1:]
    assert [" ".join(line.split()) for line in lines[1:3]] == [
        "site seconds of E epochs reliability answered site s MB",
        "site-000 1.50 + 0.25·E 95% 8/9 40.0 2.0",
    ]
    assert len(list(narration.told([record(tenth)] * 3, run, replace(tenth, simulated=True)))) == 3 + 5
    assert next(narration.told([record(tenth)], run, replace(tenth, simulated=True))).startswith("simulated round 10")


@pytest.mark.parametrize(
    ("gigabytes", "told"), [(0.0, "0.0"), (6.664e-6, "0.0067"), (0.00052, "0.52"), (0.002, "2.0"), (1.2345, "1234.5")]
)
def test_small_models_move_more_than_nothing(gigabytes, told):
    state = played(0.5)
    site = replace(state.sites[0], gigabytes=gigabytes)
    state = replace(state, sites=(site,), rounds=(replace(state.rounds[0], gigabytes=gigabytes),))
    assert narration.table(state.sites, state)[-1].split()[-1] == told
    assert narration.rounds_table(state)[-1].split()[-2] == told


def test_a_table_of_many_sites_is_cut():
    state = played(*VALUES, sites=500)
    lines = narration.table(state.sites, state)
    assert len(lines) == narration.ROWS + 3
    assert lines[-1] == "and 460 more that cost less"
    assert lines[-2].startswith("site-499")  # the costliest ones stay


def test_the_predicted_curve_goes_on_where_the_rounds_end_and_never_beyond_the_limits():
    points = played(*VALUES).forecast["curve"]
    numbers = [number for number, *_ in points]
    assert 1 <= len(points) <= 10
    assert numbers[0] > 12
    assert numbers == sorted(set(numbers))
    assert numbers[-1] <= 40
    for _, low, middle, high in points:
        assert low <= middle <= high
    assert points[-1][2] >= VALUES[-1] - 0.02


def test_task_state_has_room_for_five_hundred_sites_and_rounds():
    state = played(*[0.5] * 300, sites=500)
    told = summary.for_task_state(summary.summary(federated.settings(max_rounds=400), state))
    assert len(json.dumps(told)) <= 60_000
    assert len(told["sites_table"]) + told["sites_left_out"] == 500
    assert told["sites_table"][0]["site"] == "site-499"
    assert "rounds_table" not in told
    crowded = replace(state.rounds[-1], answered=tuple(f"site-{i:03d}" for i in range(500)))
    row = run_directory._record(state, crowded, model.Quality("accuracy", 0.9))
    assert len(json.dumps(journal.thin([row]))) < 2500
    assert row.decided["sites"].endswith(" and 480 more")


def test_a_row_of_the_journal_carries_what_is_drawn():
    row = record(played(*VALUES))
    told = {**row.seen, **row.decided}.items()
    assert told >= {
        "round": 12, "value": VALUES[-1], "accuracy": VALUES[-1], "target": 0.9, "node_s": 6.0, "gigabytes": 0.001,
        "asked": 3, "answered": 2, "epochs": 4, "least_epochs": 1, "failed": 1, "spent_node_seconds": 72.0,
    }.items()  # fmt: skip
    assert {"chance", "expected_rounds", "expected_seconds", "expected_node_seconds", "expected_gigabytes"} <= set(
        row.seen
    )


@pytest.fixture
def statsd() -> Iterator[Callable[[], list[str]]]:
    """Airflow's metrics go to a StatsD server: what it has received."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, pytest.MonkeyPatch.context() as patch:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        patch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        patch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        patch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
        stats.initialize(factory=statsd_logger.get_statsd_logger, export_legacy_names=True)

        def received() -> list[str]:
            stats.incr("the.end")
            found: list[str] = []
            while not (line := server.recv(4096).decode()).startswith("airflow.the.end"):
                found.append(line)
            return found

        yield received
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def test_metrics_of_a_round_and_of_the_end(statsd):
    metrics = federated_telemetry.of(federated_task.TaskInstance("task"))
    metrics(record(played(0.5)))
    metrics(journal.Record(at=0, subject="run", seen={"change": 1}, decided={}, reason="changed"))
    metrics.finished("reached")
    tags = ",dag_id=a_dag,task_id=task"
    assert statsd() == [
        f"airflow.mlscale.federated.{name}{tags}:{value}"
        for name, value in (
            ("quality", "0.5|g"),
            ("target", "0.9|g"),
            ("round", "1.0|g"),
            ("node_seconds", "6.0|g"),
            ("gigabytes", "0.001|g"),
            ("site_errors", "1|c"),
            ("reached", "1|c"),
        )
    ]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(run_commands.CONNECTION, raising=False)
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(["federated", *words, "--run-store", str(tmp_path)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_runs_and_one_run_are_shown(command, tmp_path):
    assert command("runs") == (0, "no runs\n", "")
    directory = stored(tmp_path, played(*VALUES))
    directory.change(limits.Change(what={"max_rounds": 99}, by="me"))
    code, out, _ = command("runs")
    assert code == 0
    assert out.splitlines()[1].split()[:6] == ["run", "running", "12/99", "accuracy", f"{max(VALUES):.4f}", "/"]
    code, out, _ = command("show", "run")
    assert code == 0
    for told in ("target      accuracy >= 0.9", "max_rounds 99", "chance", "site-001  ", "\n   12*"):
        assert told in out


def test_limits_are_set_by_hand(command, tmp_path):
    directory = stored(tmp_path, played(*VALUES))
    code, out, _ = command("set", "run", "--max-rounds", "70", "--target", "0.85", "--deadline", "PT1H")
    assert code == 0
    assert "max_rounds 70, target 0.85" in out
    held = directory.settings()
    assert (held.max_rounds, held.target.value, held.deadline_at is not None) == (70, 0.85, True)
    code, _, _ = command("set", "run", "--deadline", "none", "--gigabytes", "5")
    assert (directory.settings().deadline_at, directory.settings().budget.gigabytes) == (None, 5.0)
    options = "--deadline, --max-rounds, --target, --node-seconds, --gigabytes"
    assert command("set", "run") == (2, "", f"mlscale: limits=None: name what to change: {options}\n")
    assert command("set", "run", "--max-rounds", "12")[0] == 2


@pytest.mark.parametrize(
    ("option", "word", "told"),
    [
        ("--max-rounds", "none", "argument --max-rounds: 'none' is no whole number; every run has such a limit"),
        ("--node-seconds", "much", "argument --node-seconds: 'much' is no number, and not 'none'"),
    ],
)
def test_a_wrong_option_is_told_in_words(option, word, told, capsys):
    with pytest.raises(SystemExit):
        cli.main(["federated", "set", "run", option, word])
    assert told in capsys.readouterr().err


def test_a_run_is_asked_to_end_by_hand(command, tmp_path):
    directory = stored(tmp_path, played(*VALUES))
    assert command("stop", "run", "--why", "good enough")[0] == 0
    assert directory.end_asked().endswith(": good enough")
    assert not directory.stop_asked()
    code, _, err = command("stop", "nobody")
    assert (code, "there is no such run" in err) == (2, True)
    code, _, err = command("stop", "nobody", "--abort")
    assert (code, "there is no such run" in err) == (2, True)


def test_commands_take_the_store_of_the_connection_that_airflow_has(tmp_path, monkeypatch, capsys):
    stored(tmp_path, played(*VALUES))
    extra = {"run_store": str(tmp_path), "simulated_sites": ["a"]}
    for form in (extra, json.dumps(extra)):
        monkeypatch.setenv(run_commands.CONNECTION, json.dumps({"conn_type": "mlscale_federated", "extra": form}))
        assert cli.main(["federated", "runs"]) == 0
        assert "run  " in capsys.readouterr().out
    monkeypatch.delenv(run_commands.CONNECTION)
    assert cli.main(["federated", "runs", "--home", str(tmp_path / "nothing")]) == 2
    assert "name a directory of runs with --run-store" in capsys.readouterr().err


def test_a_picture_is_drawn(tmp_path):
    state = played(*VALUES)
    path = picture.draw(federated.settings(), state, tmp_path / "run.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(errors.InvalidInputError, match=r"ends in \.png"):
        picture.draw(federated.settings(), state, tmp_path / "run.txt")
    with pytest.raises(errors.InvalidInputError, match="no complete round"):
        picture.draw(federated.settings(), federated.state(), tmp_path / "run.png")


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(errors.InvalidInputError, match=r"airflow-provider-mlscale\[demo\]"):
        picture.draw(federated.settings(), played(*VALUES), tmp_path / "run.png")


def test_only_what_is_known_of_a_federation_can_be_asked(tmp_path):
    runs = connection.stored(tmp_path)
    with pytest.raises(errors.UnreachableError, match="set AIRFLOW_CONN_MLSCALE_FEDERATED"):
        runs.admin.sites()

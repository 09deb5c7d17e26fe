"""``@task.federated`` while a DAG is parsed, and client scripts as they travel."""

from __future__ import annotations

import json

import pytest
from airflow.sdk import DAG, task

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import job_folder, user_functions
from airflow_mlscale.federated.model import Quality
from airflow_mlscale.operators.federated import FederatedTrainingOperator
from tests.fakes import federated

ELSEWHERE = 3
WANTED = {"client_data": "json:loads", "target": Quality("f1_score", 0.8)}


def built(function, *call, **arguments):
    with DAG("decorated"):
        return task.federated(**{**WANTED, **arguments})(function)(*call).operator


def classifier(width: int, rate: float = 0.1, **more):
    """What it is."""
    import json as keras

    def layer(units):
        return keras.dumps({"units": units, **more})

    return layer(width), rate


def test_the_function_is_a_module_of_the_job_and_its_call_gives_arguments(tmp_path, monkeypatch):
    operator = built(classifier, 12, data_args={"path": "/data"})
    assert operator.task_id == "classifier"
    assert operator.arguments() == {"path": "/data", "width": 12}
    run = federated.settings(
        model=operator.model, client_data="json:loads", evaluation_data="json:loads",
        generated_modules=operator.generated_modules,
    )  # fmt: skip
    folder = job_folder.render(run, segment=1, run_dir=tmp_path, folder=tmp_path / "job")
    monkeypatch.syspath_prepend(str(folder / "app" / "custom"))
    function = user_functions.load("model", run.model)
    assert function.__module__ == "mlscale_task_classifier"  # nothing of this file is imported
    assert function(12, seed=1) == ('{"units": 12, "seed": 1}', 0.1)


def test_a_nested_function_and_results_of_other_tasks_are_taken():
    with DAG("nested"):

        @task
        def units() -> int:
            return 3

        @task.federated(**WANTED)
        def nested(width):
            return width

        operator = nested(units()).operator
    assert operator.upstream_task_ids == {"units"}
    assert operator.multiple_outputs
    assert "op_kwargs" in operator.template_fields


def closure():
    inside = 3

    def uses_it():
        return inside

    return uses_it


def of_its_file():
    return ELSEWHERE


def with_its_default(width=ELSEWHERE):
    return width


def generator():
    yield 1


async def asynchronous():
    return 1


def by_position(width, /):
    return width


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (closure(), "uses inside of the function around it"),
        (of_its_file, "uses ELSEWHERE of its file"),
        (with_its_default, "default values need its file"),
        (generator, "plain function"),
        (asynchronous, "plain function"),
        (by_position, "must take width by its name"),
        (lambda: 1, "plain function"),
    ],
)
def test_what_cannot_live_outside_of_its_file_is_refused_when_the_dag_is_parsed(function, told):
    with pytest.raises(errors.InvalidInputError, match=told) as refused:
        built(function, task_id="x")
    assert refused.value.field == "python_callable"


def test_a_model_beside_the_function_and_a_name_given_twice_are_refused():
    with pytest.raises(errors.InvalidInputError, match="the decorated function is the model"):
        built(classifier, 12, model="m:build")
    with pytest.raises(errors.InvalidInputError, match="the call of the function gives it"):
        built(classifier, 12, data_args={"width": 3}).arguments()


def scripted(**changes) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(
        **{"task_id": "x", "client_script": "own.py", "initial_weights": "json:loads", "target": Quality("loss", 0.1)}
        | changes
    )


def test_a_command_line_is_words_and_may_be_a_template():
    assert scripted(client_script_args="--path '/a b' --rate 1").client_script_args  # taken
    scripted(client_script_args="{{ params.line }}", client_script="{{ params.script }}")
    with pytest.raises(errors.InvalidInputError, match="client_script_args"):
        scripted(client_script_args="--path '")


def command(folder) -> list[str]:
    config = json.loads((folder / "app" / "config" / "config_fed_client.json").read_text())
    return config["executors"][0]["executor"]["args"]["command"]


@pytest.mark.parametrize(
    ("script", "name", "file"),
    [("own.py", "custom/own.py", "own.py"), ("bundle.own", "bundle.own", "bundle/own.py")],
)
def test_a_script_travels_with_the_job(tmp_path, monkeypatch, script, name, file):
    code = tmp_path / "code"
    for path in ("own.py", "bundle/__init__.py", "bundle/own.py"):
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_text("print()")
    monkeypatch.syspath_prepend(str(code))
    run = federated.settings(
        client_script=script, client_script_args=("--rate", "1"), client_data=None, evaluation_data=None, model=None,
        initial_weights="json:loads",
    )  # fmt: skip
    folder = job_folder.render(run, segment=1, run_dir=tmp_path, folder=tmp_path / "job")
    assert command(folder)[-3:] == [name, "--rate", "1"]
    assert (folder / "app" / "custom" / file).is_file()


def test_a_script_that_is_not_there_is_named(tmp_path):
    run = federated.settings(
        client_script="nowhere.py", client_data=None, evaluation_data=None, model=None, initial_weights="json:loads"
    )
    with pytest.raises(errors.InvalidInputError, match=r"client_script='nowhere.py': there is no such file"):
        job_folder.check(run)

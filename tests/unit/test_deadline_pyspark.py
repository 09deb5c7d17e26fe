"""``@task.deadline_pyspark`` without Spark: what may be decorated, and how a call travels."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task
from pyspark import cloudpickle  # noqa: TID253  as the driver does

from airflow_mlscale import errors
from airflow_mlscale.operators.pyspark import DeadlinePySparkOperator
from airflow_mlscale.spark.adapters import function_call, function_driver

HOUR = timedelta(hours=1)
FACTOR = 7


def helper(value: int) -> int:
    return FACTOR * value


def job(spark: Any, count: int, *rest: int, sc: Any = None, **named: int) -> Any:
    return [spark, helper(count), rest, sc, named]


def plain(value: int) -> int:
    return value + 1


class Unkind(Exception):
    """Pickles, but does not come back."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("unkind")


def in_driver(call: function_call.FunctionCall, **offered: Any) -> Any:
    """What the driver does with a call, without a session."""
    content = pickle.loads((call.folder / "call").read_bytes())
    function, args, kwargs, wanted = pickle.loads(content["call"])
    return function(*args, **kwargs, **{name: offered[name] for name in wanted})


def leave(call: function_call.FunctionCall, kind: str, thing: Any, words: str = "words") -> None:
    call._outcome.write_bytes(function_driver._packed(cloudpickle, kind, thing, words))


def test_spark_is_filled_in_and_arguments_keep_their_places() -> None:
    with function_call.packed(plain, [4], {}) as call:
        assert in_driver(call) == 5
    with function_call.packed(job, [4], {"x": 1}) as call:
        assert in_driver(call, spark="session", sc="context") == ["session", 28, (), "context", {"x": 1}]


def test_a_function_of_a_file_that_the_driver_cannot_import_travels_with_its_helpers() -> None:
    with function_call.packed(job, [2], {}) as call:
        code = f"""
import pickle, sys
content = pickle.loads(open({str(call.folder / "call")!r}, "rb").read())
function, args, kwargs, wanted = pickle.loads(content["call"])
assert not any(name.startswith("tests") for name in sys.modules)
print(function(*args, spark="session", sc="context", **kwargs)[1])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "14\n"  # 7 · 2


def test_the_files_of_a_call_are_private_and_gone_after_it() -> None:
    with function_call.packed(plain, [4], {}) as call:
        assert call.folder.stat().st_mode & 0o077 == 0
        compile(Path(call.application).read_text(), call.application, "exec")
    assert not call.folder.exists()


@pytest.mark.parametrize(("function", "args"), [(plain, [threading.Lock()]), (lambda lock=threading.Lock(): lock, [])])
def test_what_cannot_travel_is_refused_before_anything_starts(function: Any, args: list[Any]) -> None:
    with (
        pytest.raises(errors.InvalidInputError, match=r"cannot travel to the driver: .*pass plain values"),
        function_call.packed(function, args, {}),
    ):
        pass


def test_values_and_errors_come_back_as_themselves() -> None:
    with function_call.packed(plain, [4], {}) as call:
        assert call.failure() is None  # spark-submit itself failed
        leave(call, "value", {"rows": 3})
        assert call.value() == {"rows": 3}
        assert call.failure() is None
        leave(call, "error", LookupError("no table"))
        failure = call.failure()
        assert isinstance(failure, LookupError)
        assert str(failure) == "no table"


def test_what_cannot_come_back_is_told_in_words() -> None:
    with function_call.packed(plain, [4], {}) as call:
        leave(call, "value", threading.Lock(), "a DataFrame")
        with pytest.raises(errors.InvalidInputError, match="return value='a DataFrame': it cannot leave the Spark"):
            call.value()
        for thing in (threading.Lock(), Unkind(1, 2)):
            leave(call, "error", thing, "Unkind: unkind")
            assert isinstance(call.failure(), errors.SparkJobFailedError)
            assert str(call.failure()) == "Unkind: unkind"


def test_a_driver_that_left_nothing_is_a_failed_job() -> None:
    with (
        function_call.packed(plain, [4], {}) as call,
        pytest.raises(errors.SparkJobFailedError, match="left no result"),
    ):
        call.value()


def decorated(function: Any, *args: Any, **arguments: Any) -> Any:
    with DAG("d"):
        return task.deadline_pyspark(**{"deadline": HOUR, **arguments})(function)(*args).operator


def test_a_decorated_function_is_a_task_that_checks_its_call() -> None:
    operator = decorated(job, 3, mode="reserve")
    assert isinstance(operator, DeadlinePySparkOperator)
    assert operator.operator_name == "@task.deadline_pyspark"
    assert operator.python_callable is job
    assert operator.settings.mode == "reserve"
    assert (operator.op_args, operator.op_kwargs) == ((3,), {})
    with pytest.raises(TypeError, match="missing a required argument: 'count'"):
        decorated(job)


def test_it_can_be_mapped() -> None:
    with DAG("d") as dag:
        task.deadline_pyspark(deadline=HOUR)(job).partial(x=1).expand(count=[1, 2])
    mapped = dag.get_task("job")
    real = mapped.unmap({"op_kwargs": {"count": 2, "x": 1}, "op_args": []})
    assert real.op_kwargs == {"count": 2, "x": 1}
    assert real.python_callable is job


async def asynchronous(spark: Any) -> None: ...


def generator(spark: Any) -> Any:
    yield 1


def wants_the_task(spark: Any, ti: Any) -> None: ...


def by_position(spark: Any, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (asynchronous, {}, "python_callable='asynchronous': must be a plain function"),
        (generator, {}, "python_callable='generator': must be a plain function"),
        (wants_the_task, {}, r"python_callable='wants_the_task\(ti\)': cannot have these in the Spark driver"),
        (by_position, {}, "must take spark by its name"),
        (plain, {"application": "/job.py"}, "application='/job.py': the function is the application"),
        (plain, {"java_class": "Main"}, "java_class='Main': the function is the application"),
        (plain, {"deploy_mode": "cluster"}, "deploy_mode='cluster': use client"),
        (plain, {"deadline": timedelta(0)}, "deadline="),
    ],
)
def test_what_cannot_work_breaks_the_dag_at_once(function: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=said):
        DeadlinePySparkOperator(task_id="t", **{"deadline": HOUR, "python_callable": function, **arguments})


def test_of_the_context_a_function_gets_what_it_asks_for() -> None:
    def dated(spark: Any, ds: str, params: dict[str, int], rows: int = 0) -> None: ...

    operator = DeadlinePySparkOperator(task_id="t", deadline=HOUR, python_callable=dated, op_kwargs={"rows": 4})
    context = {"ds": "2026-01-01", "ts": "unasked", "params": {"a": 1}, "ti": object()}
    assert operator._arguments(context) == {"ds": "2026-01-01", "params": {"a": 1}, "rows": 4}


def test_a_value_that_cannot_be_an_xcom_says_so() -> None:
    operator = DeadlinePySparkOperator(task_id="t", deadline=HOUR, python_callable=plain)
    assert operator._checked({"a": [1, 2.5, "x", None]}) == {"a": [1, 2.5, "x", None]}
    with pytest.raises(errors.InvalidInputError, match=r"return value='a object': cannot be an XCom .*return plain"):
        operator._checked(object())
    silent = DeadlinePySparkOperator(task_id="t", deadline=HOUR, python_callable=plain, do_xcom_push=False)
    assert silent._checked(threading.local) is threading.local

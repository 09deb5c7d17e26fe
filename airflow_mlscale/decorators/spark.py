"""``@task.deadline_pyspark``: a function with a Spark session, done by a deadline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from airflow_mlscale.operators.pyspark import DeadlinePySparkOperator, check
from airflow_mlscale.spark.adapters import function_call


class _DeadlinePySparkDecoratedOperator(DecoratedOperator, DeadlinePySparkOperator):
    """`DeadlinePySparkOperator` for a decorated function."""

    template_fields: Sequence[str] = DeadlinePySparkOperator.template_fields
    template_fields_renderers: ClassVar[dict[str, str]] = DeadlinePySparkOperator.template_fields_renderers
    custom_operator_name = "@task.deadline_pyspark"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check(python_callable)
        super().__init__(
            kwargs_to_upstream={"python_callable": python_callable, "op_args": op_args, "op_kwargs": op_kwargs},
            python_callable=_as_called(python_callable),
            op_args=op_args,
            op_kwargs=op_kwargs,
            **kwargs,
        )


def deadline_pyspark_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Run the decorated function in a Spark driver that is done by a deadline.

    Takes all arguments of `DeadlinePySparkOperator`, first of all ``deadline``.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=_DeadlinePySparkDecoratedOperator,
        **kwargs,
    )


def _as_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as Airflow is to see it, which checks a call's arguments: without what the driver fills."""

    @functools.wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    seen.__signature__ = function_call.without_spark(function)  # type: ignore[attr-defined]
    return seen

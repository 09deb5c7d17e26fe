"""Python functions that run in a Spark driver and are done by a deadline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS
from airflow.sdk.serde import serialize

from airflow_mlscale import errors
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.spark.adapters import function_call

SUMMARY_KEY = "mlscale_summary"
"""XCom of the run's summary, beside the function's own result."""
TRAVELLING = frozenset(
    {
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "params",
        "run_id",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
    }
)
"""Of the task's context, what a function in the driver can ask for by the name of a parameter."""


class DeadlinePySparkOperator(DeadlineSparkSubmitOperator):
    """Runs a function in the driver of a Spark application that is done by a deadline.

    The function may take ``spark`` (the session) and ``sc`` (the context); its arguments and result travel as
    pickles. Takes all arguments of `DeadlineSparkSubmitOperator` but those that name an application, and:

    Args:
        python_callable: the function.
        op_args: its arguments by position. (templated)
        op_kwargs: its arguments by name. (templated)

    Returns:
        What the function returns (XCom); the run's summary is the XCom ``mlscale_summary``.

    Raises:
        InvalidInputError: the function, an argument or its result cannot travel.
        Exception: what the function raised, as itself where it can travel.
    """

    template_fields: Sequence[str] = (
        *(
            field
            for field in DeadlineSparkSubmitOperator.template_fields
            if field not in ("application", "application_args")
        ),
        "op_args",
        "op_kwargs",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    shallow_copy_attrs: Sequence[str] = ("python_callable",)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            if name in ("application", "application_args", "java_class"):
                raise errors.InvalidInputError(name, value, "the function is the application; leave it out")
        if kwargs.get("deploy_mode") == "cluster":
            raise _no_cluster_mode()
        check(python_callable)
        super().__init__(**kwargs)
        self.python_callable = python_callable
        self.op_args = op_args or []
        self.op_kwargs = op_kwargs or {}

    def execute(self, context: Any) -> Any:
        """Run the function in a driver, control until its end; returns its value."""
        with (
            translated(),
            function_call.packed(self.python_callable, list(self.op_args), self._arguments(context)) as call,
        ):
            self.application, self.application_args = call.application, call.application_args
            try:
                summary = super().execute(context)
            except errors.SparkJobFailedError:
                failure = call.failure()
                if failure is None:
                    raise
                raise failure from None  # the log has the driver's own traceback
            context["ti"].xcom_push(key=SUMMARY_KEY, value=summary)
            return self._checked(call.value())

    def _execute_in_cluster(self, context: Any, hook: DeadlineSparkSubmitHook) -> dict[str, Any]:
        raise _no_cluster_mode()  # by the connection

    def _arguments(self, context: Any) -> dict[str, Any]:
        asked = inspect.signature(self.python_callable).parameters.keys() & TRAVELLING & context.keys()
        found = {name: context[name] for name in asked}
        if "params" in found:
            found["params"] = dict(found["params"])
        return {**found, **self.op_kwargs}

    def _checked(self, value: Any) -> Any:
        if self.do_xcom_push:
            try:
                serialize(value)
            except Exception as exc:  # TypeError, RecursionError and what serializers raise
                raise errors.InvalidInputError(
                    "return value",
                    f"a {type(value).__name__}",
                    f"cannot be an XCom ({exc}); return plain values, or write the data and return its path",
                ) from exc
        return value


def _no_cluster_mode() -> errors.InvalidInputError:
    fix = "use client: the function travels to a driver on this worker"
    return errors.InvalidInputError("deploy_mode", "cluster", fix)


def check(function: Callable[..., Any]) -> None:
    """Refuse a function that cannot run in a driver, while the DAG is parsed.

    Raises:
        InvalidInputError: it is asynchronous, a generator, or asks for something of the task that cannot travel.
    """
    name = getattr(function, "__name__", repr(function))
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise errors.InvalidInputError("python_callable", name, "must be a plain function")
    parameters = function_call.without_spark(function).parameters
    if stuck := sorted(parameters.keys() & KNOWN_CONTEXT_KEYS - TRAVELLING):
        raise errors.InvalidInputError(
            "python_callable",
            f"{name}({', '.join(stuck)})",
            f"cannot have these in the Spark driver; of the context it can take {', '.join(sorted(TRAVELLING))}",
        )

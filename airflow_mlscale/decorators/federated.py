"""``@task.federated``: a function that builds a Keras model, trained on sites until a quality is reached."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory
from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import function_module
from airflow_mlscale.operators.federated import FederatedTrainingOperator


class _FederatedDecoratedOperator(DecoratedOperator, FederatedTrainingOperator):
    """`FederatedTrainingOperator` for a decorated function."""

    template_fields: Sequence[str] = (
        *(field for field in FederatedTrainingOperator.template_fields if field not in ("model", "initial_weights")),
        *DecoratedOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    custom_operator_name = "@task.federated"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("model", "initial_weights"):
            if name in kwargs:
                raise errors.InvalidInputError(name, kwargs[name], "leave it out: the decorated function is the model")
        module, source = function_module.module_of("python_callable", python_callable)
        taken = sorted(inspect.signature(python_callable).parameters.keys() & KNOWN_CONTEXT_KEYS)
        if taken:
            fix = f"rename {', '.join(taken)}: what it builds on the sites cannot depend on a task's context"
            raise errors.InvalidInputError("python_callable", python_callable.__name__, fix)
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            model=f"{module}:{python_callable.__name__}",
            **kwargs,
        )
        self.generated_modules = {module: source}

    def arguments(self) -> dict[str, Any]:
        """The data arguments, and those of the call by their names."""
        bound = inspect.signature(self.python_callable).bind(*self.op_args, **self.op_kwargs)
        called = dict(bound.arguments)
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                called |= called.pop(parameter.name, {})
        given = super().arguments()
        if twice := sorted(called.keys() & given.keys()):
            fix = "leave it out: the call of the function gives it"
            raise errors.InvalidInputError(f"data_args[{twice[0]!r}]", given[twice[0]], fix)
        return {**given, **called}


def federated_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Train the Keras model that the decorated function builds, until its target is reached.

    The function's source travels to the sites, so it imports inside whatever it uses. The arguments of its call (plain
    JSON values, results of other tasks too) go to it and to whichever data function takes them. Takes all arguments of
    `FederatedTrainingOperator` but ``model``: ``client_data``, ``target`` and so on.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=True if multiple_outputs is None else multiple_outputs,
        decorated_operator_class=_FederatedDecoratedOperator,
        **kwargs,
    )

"""The user's own functions: found by name, called with the arguments they accept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated.settings import RunSettings


def load(field: str, path: str) -> Callable[..., Any]:
    """The function at ``module:function``.

    Raises:
        InvalidInputError: the module cannot be imported here or has no such function.
    """
    module_name, _, name = path.partition(":")
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as exc:
        raise errors.InvalidInputError(
            field, path, f"cannot be loaded ({exc}); name a function of a module beside the DAG, or add extra_modules"
        ) from exc
    if not callable(found):
        raise errors.InvalidInputError(field, path, "is not a function")
    return found  # type: ignore[no-any-return]


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def arguments(run: RunSettings, field: str, path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """With what a data function is called: all of it, so that a mistyped name is heard; where the arguments are also
    those of the call of a decorated model function, what it takes."""
    return accepted(load(field, path), given) if run.generated_modules else dict(given)


def call(field: str, path: str, *arguments: Any, **named: Any) -> Any:
    """Load and call a function of the user.

    Raises:
        InvalidInputError: it cannot be loaded.
        FederatedRunFailedError: it raised; another try would raise again.
    """
    function = load(field, path)
    try:
        return function(*arguments, **named)
    except Exception as exc:  # whatever the user's code raises
        raise errors.FederatedRunFailedError(f"{field}={path!r} raised {type(exc).__name__}: {exc}") from exc


Pair = tuple[Any, Any]


def site_data(field: str, path: str, found: Any) -> tuple[Pair, Pair | None]:
    """Check what a site's data function returned: ``(x, y)``, or ``((x, y), (x_val, y_val))``, or the same two pairs as
    ``{"train": …, "validation": …}``. Returns what is trained on and what is measured on, if that was told apart.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(found, Mapping):
        if set(found) != {"train", "validation"}:
            raise errors.InvalidInputError(field, path, f"must have 'train' and 'validation', has {sorted(found)}")
        found = (found["train"], found["validation"])
    told_apart = isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[0], tuple | list)
    if not told_apart:
        return arrays(field, path, found), None
    return arrays(field, path, found[0]), arrays(field, path, found[1])


def arrays(field: str, path: str, found: Any) -> tuple[Any, Any]:
    """Check what a data function returned: two arrays of the same, positive length.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise errors.InvalidInputError(field, path, f"must return (x, y), returned {type(found).__name__}")
    x, y = found
    if not hasattr(x, "shape") or not hasattr(y, "shape"):
        raise errors.InvalidInputError(field, path, "must return NumPy arrays")
    if len(x) != len(y) or len(x) == 0:
        raise errors.InvalidInputError(
            field, path, f"returned {len(x)} inputs and {len(y)} labels; need as many, at least one"
        )
    return x, y

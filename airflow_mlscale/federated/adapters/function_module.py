"""A function of a DAG file as a module of its own, that server and sites import in place of the DAG file."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from airflow_mlscale import errors


def module_of(field: str, function: Callable[..., Any]) -> tuple[str, str]:
    """Name and source of a module that defines the function and nothing else, without its decorators.

    Args:
        field: how the user calls the function.
        function: that imports inside whatever it uses.

    Raises:
        InvalidInputError: it cannot live outside of its file.
    """
    name = getattr(function, "__name__", repr(function))
    _check_kind(field, function, name)
    if function.__code__.co_freevars:
        told = ", ".join(function.__code__.co_freevars)
        raise errors.InvalidInputError(field, name, f"uses {told} of the function around it; pass it as an argument")
    if strange := sorted(_foreign(function.__code__)):
        told = ", ".join(strange)
        raise errors.InvalidInputError(field, name, f"uses {told} of its file; import or define it inside the function")
    text = f"from __future__ import annotations\n\n\n{ast.unparse(_definition(field, function, name))}\n"
    try:
        exec(compile(text, name, "exec"), {})  # noqa: S102  the user's own definition, to see whether its defaults do
    except Exception as exc:
        raise errors.InvalidInputError(
            field, name, f"its default values need its file ({exc}); use plain ones"
        ) from exc
    return f"mlscale_task_{name}", text


def _check_kind(field: str, function: Callable[..., Any], name: str) -> None:
    special = inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)
    if not inspect.isfunction(function) or special or name == "<lambda>":
        raise errors.InvalidInputError(field, name, "must be a plain function, written with def")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise errors.InvalidInputError(field, name, f"must take {parameter.name} by its name")


def _definition(field: str, function: Callable[..., Any], name: str) -> ast.FunctionDef:
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError, tokenize.TokenError) as exc:
        raise errors.InvalidInputError(field, name, f"its source cannot be read ({exc}); define it in a file") from exc
    if not isinstance(parsed, ast.FunctionDef) or parsed.name != name:
        raise errors.InvalidInputError(field, name, "must be a plain function, written with def")
    parsed.decorator_list = []
    return parsed


def _foreign(code: CodeType) -> Iterator[str]:
    """Global names that code reads, its inner functions' too, and that every module does not have."""
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL" and not hasattr(builtins, step.argval):
            yield step.argval
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _foreign(part)

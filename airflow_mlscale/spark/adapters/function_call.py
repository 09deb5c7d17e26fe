"""A Python function as a Spark application: how it travels to the driver, and its result back."""

from __future__ import annotations

import inspect
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.spark.adapters import function_driver

OFFERED = ("spark", "sc")
"""Parameters that the driver fills: its session and its context."""


@dataclass(frozen=True)
class FunctionCall:
    """One call, in a folder of its own that only this user can read."""

    folder: Path

    @property
    def application(self) -> str:
        """What to submit."""
        return str(self.folder / "deadline_pyspark.py")

    @property
    def application_args(self) -> list[str]:
        return [str(self.folder / "call"), str(self._outcome)]

    def value(self) -> Any:
        """What the function has returned.

        Raises:
            InvalidInputError: it cannot leave the driver.
        """
        outcome = self._read()
        if outcome["thing"] is None:
            raise errors.InvalidInputError(
                "return value",
                outcome["words"],
                "it cannot leave the Spark driver; return plain values, or write the data and return its path",
            )
        return pickle.loads(outcome["thing"])  # noqa: S301  written by our own driver

    def failure(self) -> Exception | None:
        """What the function raised, as itself where it can travel; None when it was not the function that failed."""
        if not self._outcome.exists():
            return None
        outcome = self._read()
        if outcome["kind"] != "error":
            return None
        try:
            raised = pickle.loads(outcome["thing"] or b"")  # noqa: S301
        except Exception:  # its class may be unknown here, or take other arguments
            raised = None
        return raised if isinstance(raised, Exception) else errors.SparkJobFailedError(outcome["words"])

    @property
    def _outcome(self) -> Path:
        return self.folder / "outcome"

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = pickle.loads(self._outcome.read_bytes())  # noqa: S301
        except FileNotFoundError as exc:
            raise errors.SparkJobFailedError("the driver ended well but left no result") from exc
        return found


def without_spark(function: Callable[..., Any]) -> inspect.Signature:
    """The function's signature as its caller sees it, without what the driver fills.

    Raises:
        InvalidInputError: a parameter that the driver fills can only be given by position.
    """
    signature = inspect.signature(function)
    for name in OFFERED:
        parameter = signature.parameters.get(name)
        if parameter and parameter.kind is not parameter.KEYWORD_ONLY and parameter.kind is not _EITHER:
            raise errors.InvalidInputError(
                "python_callable", f"{function.__name__}{signature}", f"must take {name} by its name"
            )
    return signature.replace(parameters=[part for part in signature.parameters.values() if part.name not in OFFERED])


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


@contextmanager
def packed(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[FunctionCall]:
    """Put a call into files for as long as this context lasts.

    Raises:
        InvalidInputError: arguments that do not fit the function, or cannot travel to the driver.
    """
    wanted = tuple(name for name in OFFERED if name in inspect.signature(function).parameters)
    args, kwargs = _by_name(function, args, kwargs) if wanted else (tuple(args), dict(kwargs))
    with tempfile.TemporaryDirectory(prefix="mlscale-call-") as folder:
        call = FunctionCall(Path(folder))
        content = {"path": [path for path in sys.path if path], "call": _pickled(function, args, kwargs, wanted)}
        (call.folder / "call").write_bytes(pickle.dumps(content))
        # A copy: Python puts a script's folder before everything else, and ours has modules of common names.
        shutil.copyfile(function_driver.__file__, call.application)
        yield call


def _by_name(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with arguments by name: ``spark`` may come before those given by position."""
    bound = without_spark(function).bind(*args, **kwargs)
    rest: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.POSITIONAL_ONLY as kind:
                rest += tuple(value) if kind is inspect.Parameter.VAR_POSITIONAL else (value,)
            case inspect.Parameter.VAR_KEYWORD:
                named |= value
            case _:
                named[name] = value
    return rest, named


def _pickled(function: Callable[..., Any], *call: Any) -> bytes:
    from pyspark import cloudpickle

    # The module of a DAG file has a name of this process only: what it defines travels by value.
    module = sys.modules.get(function.__module__)
    if module is not None:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps((function, *call)))
    except Exception as exc:  # whatever a __reduce__ raises
        raise errors.InvalidInputError(
            "python_callable",
            function.__name__,
            f"it, its arguments or what it refers to cannot travel to the driver: {exc}; "
            "pass plain values, and open connections and files inside the function",
        ) from exc
    finally:
        if module is not None:
            cloudpickle.unregister_pickle_by_value(module)

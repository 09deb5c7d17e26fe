"""Questions that settings ask of their fields; each refusal names the field, the value and the fix."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from math import inf

from airflow_mlscale import errors


def check(good: object, name: str, value: object, fix: str) -> None:
    """Refuse a value.

    Raises:
        InvalidInputError: ``good`` is false.
    """
    if not good:
        raise errors.InvalidInputError(name, value, fix)


def is_number(value: object) -> bool:
    """Whether this is a finite number (and no truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -inf < value < inf


def is_json_object(value: object) -> bool:
    """Whether this is a mapping that JSON gives back as it was."""
    try:
        return isinstance(value, Mapping) and json.loads(json.dumps(dict(value))) == dict(value)
    except (TypeError, ValueError):
        return False


def number(value: object, name: str, least: float, most: float = inf) -> None:
    """Refuse all but finite numbers within bounds, both included.

    Raises:
        InvalidInputError: it is none.
    """
    span = f">= {least:g}" if most == inf else f"from {least:g} to {most:g}"
    check(is_number(value) and least <= value <= most, name, value, f"must be a number {span}")  # type: ignore[operator]


def within(value: object, name: str, above: float, below: float = inf) -> None:
    """Refuse all but finite numbers strictly within bounds.

    Raises:
        InvalidInputError: it is none.
    """
    span = f"above {above:g}" if below == inf else f"above {above:g} and below {below:g}"
    check(is_number(value) and above < value < below, name, value, f"must be a number {span}")  # type: ignore[operator]


def whole(value: object, name: str, least: int) -> None:
    """Refuse all but whole numbers from a bound on.

    Raises:
        InvalidInputError: it is none.
    """
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(good, name, value, f"must be a whole number >= {least}")


def one_of(value: object, name: str, known: Collection[str]) -> None:
    """Refuse all but some words.

    Raises:
        InvalidInputError: it is none of them.
    """
    check(isinstance(value, str) and value in known, name, value, f"use one of {', '.join(known)}")

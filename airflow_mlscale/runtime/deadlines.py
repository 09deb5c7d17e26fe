"""What a user may write as a deadline, and the absolute time that it means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from airflow_mlscale import errors

FIX = (
    "give a timedelta or pendulum.duration from the start of the task, a datetime with a time zone, "
    "or a template that renders to seconds, an ISO 8601 duration (PT2M30S) or an ISO 8601 date and time"
)


def check(deadline: Any) -> None:
    """Refuse what can never be a deadline, before anything is rendered.

    Raises:
        InvalidInputError: a wrong type, or a duration that is not positive.
    """
    if not isinstance(deadline, (timedelta, datetime, str)):
        raise errors.InvalidInputError("deadline", deadline, FIX)
    if not isinstance(deadline, str):
        resolve(deadline, started_at=datetime.now(UTC))


def resolve(deadline: Any, *, started_at: datetime) -> datetime:
    """The absolute time of a deadline; durations count from ``started_at``.

    Raises:
        InvalidInputError: not one of the forms that `FIX` lists, not positive, or not later than ``started_at``
            where it is absolute.
    """
    value = meant(deadline)
    try:
        return started_at + value if isinstance(value, timedelta) else value
    except OverflowError as exc:
        raise _too_long(deadline) from exc


def meant(deadline: Any) -> timedelta | datetime:
    """What a deadline says by itself: a duration from the start of the task, or an absolute time.

    Raises:
        InvalidInputError: as in `resolve`.
    """
    value = _parsed(deadline) if isinstance(deadline, str) else deadline
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
            value = timedelta(seconds=value)
    except OverflowError as exc:
        raise _too_long(deadline) from exc
    if isinstance(value, timedelta):
        if value <= timedelta(0):
            raise errors.InvalidInputError("deadline", deadline, "a duration must be longer than nothing")
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise errors.InvalidInputError("deadline", deadline, "a date and time needs a time zone")
        return value
    raise errors.InvalidInputError("deadline", deadline, FIX)


def _too_long(deadline: Any) -> errors.InvalidInputError:
    return errors.InvalidInputError("deadline", deadline, "a duration must end before the year 10000")


def check_ahead(deadline: Any, deadline_at: datetime, *, now: datetime) -> None:
    """Refuse a deadline that has passed.

    Raises:
        InvalidInputError: it lies in the past.
    """
    if deadline_at <= now:
        late_s = (now - deadline_at).total_seconds()
        raise errors.InvalidInputError(
            "deadline", str(deadline), f"{deadline_at.isoformat()} lies {late_s:.0f} s in the past; give a later one"
        )


def _parsed(text: str) -> Any:
    import pendulum
    from pendulum.parsing.exceptions import ParserError

    try:
        return float(text)
    except ValueError:
        pass
    try:
        # exact: "10:30" stays a time of day, which is refused, instead of becoming one of today.
        value = pendulum.parse(text.strip(), exact=True)
    except (ParserError, ValueError, TypeError, OverflowError) as exc:  # the last two from ill-formed intervals
        raise errors.InvalidInputError("deadline", text, FIX) from exc
    if isinstance(value, pendulum.Interval):  # a timedelta too, but of two given dates: not one from the start
        raise errors.InvalidInputError("deadline", text, FIX)
    return value

"""How our errors look to Airflow: those that another try cannot mend fail the task at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException

from airflow_mlscale import errors


@contextmanager
def translated() -> Iterator[None]:
    """Turn permanent `MlscaleError` into `AirflowFailException` (no retries); let the others be retried."""
    try:
        yield
    except errors.MlscaleError as exc:
        if exc.retryable or isinstance(exc, errors.RunFailedError):
            raise
        raise AirflowFailException(f"{type(exc).__name__}: {exc}") from exc

"""Our errors as HTTP statuses; gRPC's codes follow from these."""

from __future__ import annotations

from airflow_mlscale import errors
from airflow_mlscale.roma import deployment, fleet
from airflow_mlscale.roma import replica as replicas


class StatusError(errors.MlscaleError):
    """An error with an HTTP status of its own."""

    def __init__(
        self, status: int, message: str, *, retry_after_s: float | None = None, allow: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.allow = allow
        """Methods that would have been right, with status 405."""


class ClientGoneError(errors.MlscaleError):
    """Nobody waits for the answer any more."""


def of(exc: Exception) -> tuple[int, float | None]:
    """The status of an error, and the seconds after which another try may succeed."""
    match exc:
        case StatusError() | replicas.RefusedError():
            return exc.status, exc.retry_after_s
        case fleet.UnknownModelError() | deployment.UnknownVersionError():
            return 404, None
        case errors.InvalidInputError():
            return 400, None
        case errors.AdmissionRefusedError():
            return 409, None
        case errors.TransientError():
            return 503, exc.retry_after_s
        case _:
            return 500, None


def told(exc: Exception, status: int) -> str:
    """What the client is told; of our own defects no more than that there is one."""
    return str(exc) if status != 500 else "internal error, see the daemon's log"

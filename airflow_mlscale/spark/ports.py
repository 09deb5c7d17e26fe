"""What deadline control needs from the world."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from airflow_mlscale.spark.model import Profile, Progress


class ProgressPort(Protocol):
    """Readings of a running application's driver."""

    async def read(self) -> Progress | None:
        """One reading; None while the driver does not answer yet.

        Raises:
            UnreachableError: the driver answered before and does not now.
        """

    async def close(self) -> None:
        """Release connections."""


class ProfileStore(Protocol):
    """Where profiles are kept between runs."""

    def load(self, key: str) -> Profile | None:
        """The profile, or None when there is none. One that cannot be read is set aside with a warning."""

    def save(self, profile: Profile) -> None:
        """Write it in one step: a reader sees the old one or the new one.

        Raises:
            TransientError: the store cannot be written.
        """


class ExecutorFinder(Protocol):
    """Finds executors on this host that could not enter their CPU group by themselves."""

    def find(self, application_id: str) -> frozenset[int]:
        """Process ids of the application's executors on this host."""


class RemoteState(StrEnum):
    """How an application fares whose driver runs in the cluster."""

    WAITING = "waiting"
    """Submitted; its driver does not run yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"
    """Somebody ended it."""
    LOST = "lost"
    """The cluster does not know it, or no longer."""

    @property
    def over(self) -> bool:
        return self not in (RemoteState.WAITING, RemoteState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class RemoteStatus:
    """One answer of the cluster."""

    state: RemoteState
    reason: str
    """In the cluster's words."""
    ended_at: float | None = None
    """Seconds since the epoch, where the cluster tells."""


class RemoteApplication(Protocol):
    """A submitted application whose driver runs in the cluster. Calls block for seconds at most."""

    @property
    def page(self) -> str | None:
        """Address of the driver's web page, for people; None where there is none, or it is not known (yet)."""

    def find(self) -> str | None:
        """Its id in the cluster; None when the cluster does not know the run.

        Raises:
            UnreachableError: the cluster does not answer, as in `status` and `kill`.
        """

    def status(self) -> RemoteStatus:
        """How it fares."""

    def driver(self, path: str) -> Any:
        """An answer of the driver's REST API; ``path`` is below ``/api/v1``, such as ``/applications``.

        Raises:
            UnreachableError: the driver does not answer, or not yet.
            KeyError: it answers that there is no such thing.
        """

    def kill(self) -> None:
        """End the driver and with it the application; one that has ended already is left alone."""

    def close(self) -> None:
        """Release connections."""

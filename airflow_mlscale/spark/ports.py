"""What deadline control needs from the world."""

from __future__ import annotations

from typing import Protocol

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

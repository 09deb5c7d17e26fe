"""All that is needed to control an application that was submitted before, by whoever comes to do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.spark.launch import Manager
from airflow_mlscale.spark.model import Mode, Promise
from airflow_mlscale.spark.settings import DeadlineSettings


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One submission to a cluster. Holds no secrets; `to_json` is plain values."""

    run: str
    """Names the submission; the application carries it as a property, a label or a tag."""
    manager: Manager
    master_url: str
    application_id: str | None = None
    """The cluster's id: of the driver (standalone), of the application (YARN), or namespace:pod; None until known."""
    name: str
    """Of the application, for people."""
    web_url: str | None = None
    """The standalone master's web page, or the ResourceManager's."""
    namespace: str | None = None
    ui_port: int = 0
    """First port that the driver's web page tries; 0 where the cluster knows."""
    promise: Promise
    settings: DeadlineSettings
    profile_folder: str | None = None
    profile_key: str
    warm: bool = False
    """Whether there was a profile at submission."""
    slots: float
    group: str
    driver_group: str | None = None
    used_before: Mapping[str, float] = field(default_factory=dict)
    """Core-seconds on each group's meter at submission."""
    allocator: str = "auto"
    host: str
    """Where the groups were opened."""
    here: bool = False
    """Whether executors run on that host."""
    submitted_at: float
    """Seconds since the epoch."""

    def known_as(self, application_id: str) -> Ticket:
        """With the id that the cluster gave."""
        return replace(self, application_id=application_id)

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {
            **found,
            "manager": str(self.manager),
            "settings": {**found["settings"], "mode": str(self.settings.mode)},
        }


def from_json(value: Mapping[str, Any]) -> Ticket:
    """What `Ticket.to_json` made; what another version of this package has more or less is passed over or usual.

    Raises:
        InvalidInputError: it is something else, or of a version that was too different.
    """
    try:
        settings = _known(DeadlineSettings, {**value["settings"], "mode": Mode(value["settings"]["mode"])})
        return Ticket(
            **{
                **_known(Ticket, value),
                "manager": Manager(value["manager"]),
                "promise": Promise(**value["promise"]),
                "settings": DeadlineSettings(**settings),
            }
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise errors.InvalidInputError("ticket", "…", f"is not of this version ({exc}); submit again") from exc


def _known(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: each for name, each in value.items() if name in names}

"""Labels of the connected sites, as the server job knows them.

A site tells its labels when it registers (NVFlare's *site config*). A server that was restarted has forgotten them,
although its sites go on; then those count that the server's own kit got from ``sites.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import labels
from airflow_mlscale.federated.adapters.kits import OWN


def known(clients: Iterable[Any], server_kit: Path) -> dict[str, labels.Labels]:
    """Labels by site, of NVFlare's clients; a site that tells nonsense has those of the server's kit."""
    listed = _listed(server_kit)
    return {client.name: _told(client, listed.get(client.name, {})) for client in clients}


def _told(client: Any, listed: labels.Labels) -> labels.Labels:
    told = (client.get_site_config() or {}).get("labels")
    if told is None:
        return listed
    try:
        return labels.check("labels", told)
    except errors.InvalidInputError:
        return listed


def _listed(server_kit: Path) -> Mapping[str, labels.Labels]:
    try:
        return json.loads((server_kit / "local" / OWN).read_text()).get("labels", {})  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}  # another's kit, or that of a local federation

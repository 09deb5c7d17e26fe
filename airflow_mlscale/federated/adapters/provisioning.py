"""Certificate authority, certificates and start-up kits, by NVFlare's provisioning; and a local federation's own."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated.settings import FederationSettings

SERVER = "localhost"
"""The server's certified name; NVFlare binds to loopback only when it is this one."""
ADMIN = "admin@mlscale.local"
ORG = "mlscale"
PROJECT = "federation"


@dataclass(frozen=True)
class Kits:
    """Where the start-up kits of a federation are."""

    root: Path

    @property
    def server(self) -> Path:
        """The server's kit and workspace."""
        return self.root / SERVER

    @property
    def admin(self) -> Path:
        """The admin's kit: a secret."""
        return self.root / ADMIN

    def site(self, name: str) -> Path:
        """A site's kit and workspace."""
        return self.root / name

    @property
    def encrypted(self) -> bool:
        """Whether the sites hold a common key that the server does not hold."""
        return (self.server / "startup" / "server_context.tenseal").exists()


def provision(directory: Path, settings: FederationSettings, *, port: int) -> Kits:
    """Create fresh kits of a local federation below ``directory``, which is emptied first.

    Raises:
        InvalidInputError: encryption is asked for and its library is not installed here.
        RunFailedError: NVFlare could not provision.
    """
    check_encryption(settings.encrypted)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    participants: list[Mapping[str, Any]] = [
        {"name": SERVER, "type": "server", "org": ORG, "fed_learn_port": port, "admin_port": port},
        *({"name": site, "type": "client", "org": ORG} for site in settings.sites),
        {"name": ADMIN, "type": "admin", "org": ORG, "role": "project_admin"},
    ]
    kits = Kits(directory / "kits")
    build(project(PROJECT, participants, encrypted=settings.encrypted), directory).rename(kits.root)
    tune_server(
        kits.server / "local", storage=directory, sites=len(settings.sites), site_timeout_s=settings.site_timeout_s
    )
    for site in settings.sites:
        tune_site(kits.site(site) / "local", {})
        (kits.site(site) / "transfer").mkdir(exist_ok=True)
    (kits.server / "transfer").mkdir(exist_ok=True)
    return kits


def check_encryption(asked: bool) -> None:
    """Look whether what encryption needs is here.

    Raises:
        InvalidInputError: it is asked for and its library is not installed.
    """
    if asked and find_spec("tenseal") is None:
        raise errors.InvalidInputError(
            "encrypted", True, "needs TenSEAL: pip install airflow-provider-mlscale[encryption]"
        )


def project(
    name: str, participants: Sequence[Mapping[str, Any]], *, encrypted: bool, authority_days: int | None = None
) -> dict[str, Any]:
    """NVFlare's description of a federation and of how its kits are built."""
    builders = "nvflare.lighter.impl"
    common_key = "airflow_mlscale.federated.adapters.common_key.KeptHEBuilder"
    return {
        "api_version": 3,
        "name": name,
        "description": "A federation",
        "participants": [dict(each) for each in participants],
        "builders": [
            {"path": f"{builders}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {"path": f"{builders}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "tcp"}},
            {
                "path": f"{builders}.cert.CertBuilder",
                "args": {} if authority_days is None else {"root_valid_days": authority_days},
            },
            *([{"path": common_key, "args": {}}] if encrypted else []),
            {"path": f"{builders}.signature.SignatureBuilder", "args": {}},
        ],
    }


def build(described: dict[str, Any], root: Path) -> Path:
    """Build all kits of a project below ``root``, with the authority that is there; returns their directory.

    Raises:
        RunFailedError: NVFlare could not provision.
    """
    from nvflare.lighter.constants import CtxKey
    from nvflare.lighter.prov_utils import prepare_builders
    from nvflare.lighter.provision import prepare_project
    from nvflare.lighter.provisioner import Provisioner

    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            done = Provisioner(str(root), prepare_builders(described)).provision(prepare_project(described))
    except (ValueError, RuntimeError) as exc:
        raise errors.RunFailedError(f"NVFlare could not provision the federation: {exc}") from exc
    if done.get(CtxKey.BUILD_ERROR) or not done.get(CtxKey.CURRENT_PROD_DIR):
        raise errors.RunFailedError(f"NVFlare could not provision the federation: {told.getvalue()[-2000:]}")
    return Path(done[CtxKey.CURRENT_PROD_DIR])


def tune_server(local: Path, *, storage: Path, sites: int, site_timeout_s: float) -> None:
    """Everything the server stores stays below one directory; silent sites are dropped sooner than in ten minutes.

    Args:
        local: of the server's kit.
        storage: absolute path of a directory for jobs and snapshots.
        sites: that may register.
        site_timeout_s: a site silent for this long is no longer offered work of new segments.
    """

    def change(resources: dict[str, Any]) -> None:
        resources["servers"][0]["heart_beat_timeout"] = site_timeout_s
        resources["servers"][0]["max_num_clients"] = max(100, sites)
        resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(storage / "snapshots")
        for component in resources["components"]:
            if component["id"] == "job_manager":
                component["args"]["uri_root"] = str(storage / "jobs")
            if component["id"] == "job_scheduler":
                seconds = {"min_schedule_interval": 1.0, "max_schedule_interval": 5.0}
                component["args"] |= {**seconds, "max_schedule_count": 60}
        resources["components"] = [each for each in resources["components"] if each["id"] != "log_receiver"]

    _tune(local, change)


def tune_site(local: Path, labels: Mapping[str, str]) -> None:
    """Logs stay on the site; its labels go to the server when it registers."""

    def change(resources: dict[str, Any]) -> None:
        resources["allow_log_streaming"] = False
        resources["components"] = [each for each in resources["components"] if each["id"] != "site_log_streamer"]
        resources["labels"] = dict(labels)

    _tune(local, change)


def _tune(local: Path, change: Callable[[dict[str, Any]], None]) -> None:
    resources = json.loads((local / "resources.json.default").read_text())
    change(resources)
    (local / "resources.json").write_text(json.dumps(resources, indent=1))

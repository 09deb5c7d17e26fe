"""Start-up kits of a local federation: CA, per-site certificates, tuned configuration; by NVFlare's provisioning."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
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
    """Create fresh kits below ``directory``, which is emptied first.

    Raises:
        InvalidInputError: encryption is asked for and its library is not installed here.
        RunFailedError: NVFlare could not provision.
    """
    if settings.encrypted and find_spec("tenseal") is None:
        raise errors.InvalidInputError(
            "encrypted", True, "needs TenSEAL: pip install airflow-provider-mlscale[encryption]"
        )
    from nvflare.lighter.constants import CtxKey
    from nvflare.lighter.prov_utils import prepare_builders
    from nvflare.lighter.provision import prepare_project
    from nvflare.lighter.provisioner import Provisioner

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    project = _project(settings, port)
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        done = Provisioner(str(directory), prepare_builders(project)).provision(prepare_project(project))
    if done.get(CtxKey.BUILD_ERROR) or not done.get(CtxKey.CURRENT_PROD_DIR):
        raise errors.RunFailedError(f"NVFlare could not provision the federation: {told.getvalue()[-2000:]}")
    kits = Kits(directory / "kits")
    Path(done[CtxKey.CURRENT_PROD_DIR]).rename(kits.root)
    _tune(kits.server / "local", lambda resources: _tune_server(resources, directory, settings))
    for site in settings.sites:
        _tune(kits.site(site) / "local", _tune_site)
        (kits.site(site) / "transfer").mkdir(exist_ok=True)
    (kits.server / "transfer").mkdir(exist_ok=True)
    return kits


def _project(settings: FederationSettings, port: int) -> dict[str, Any]:
    builders = "nvflare.lighter.impl"
    return {
        "api_version": 3,
        "name": PROJECT,
        "description": "A local federation",
        "participants": [
            {"name": SERVER, "type": "server", "org": ORG, "fed_learn_port": port, "admin_port": port},
            *({"name": site, "type": "client", "org": ORG} for site in settings.sites),
            {"name": ADMIN, "type": "admin", "org": ORG, "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{builders}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {"path": f"{builders}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "tcp"}},
            {"path": f"{builders}.cert.CertBuilder", "args": {}},
            *([{"path": f"{builders}.he.HEBuilder", "args": {}}] if settings.encrypted else []),
            {"path": f"{builders}.signature.SignatureBuilder", "args": {}},
        ],
    }


def _tune(local: Path, change: Callable[[dict[str, Any]], None]) -> None:
    resources = json.loads((local / "resources.json.default").read_text())
    change(resources)
    (local / "resources.json").write_text(json.dumps(resources, indent=1))


def _tune_server(resources: dict[str, Any], directory: Path, settings: FederationSettings) -> None:
    """Everything the server stores stays below our directory; silent sites are dropped sooner than in ten minutes."""
    resources["servers"][0]["heart_beat_timeout"] = settings.site_timeout_s
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(directory / "snapshots")
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(directory / "jobs")
        if component["id"] == "job_scheduler":
            component["args"] |= {"min_schedule_interval": 1.0, "max_schedule_interval": 5.0, "max_schedule_count": 60}
    resources["components"] = [each for each in resources["components"] if each["id"] != "log_receiver"]


def _tune_site(resources: dict[str, Any]) -> None:
    """Logs stay on the site."""
    resources["allow_log_streaming"] = False
    resources["components"] = [each for each in resources["components"] if each["id"] != "site_log_streamer"]

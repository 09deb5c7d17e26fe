"""The federation from outside, over NVFlare's admin API (`ports.FederationAdmin`)."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import handshake

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NvflareAdmin:
    """Logs in with a start-up kit for each call, so that nothing is held open between them."""

    kit: Path
    """The admin's start-up kit: a directory with ``startup/fed_admin.json`` and its certificates."""
    login_timeout_s: float = 10.0
    """How long a login may take."""

    def check_kit(self) -> dict[str, Any]:
        """The kit's configuration.

        Raises:
            InvalidInputError: the directory is not an admin's start-up kit.
        """
        startup = self.kit / "startup"
        try:
            found = json.loads((startup / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
            for name in ("client_cert", "client_key", "ca_cert"):
                (startup / found[name]).stat()
            return {name: found[name] for name in ("username", "host", "port", "client_cert", "client_key", "ca_cert")}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise errors.InvalidInputError(
                "admin_kit",
                str(self.kit),
                "name the directory of an NVFlare admin's start-up kit (startup/fed_admin.json and its certificates)",
            ) from exc

    def submit(self, job: Path, token: str) -> str:
        from nvflare.fuel.flare_api.api_spec import SubmitTokenConflict

        with self._session() as session:
            try:
                return str(session.submit_job(str(job), submit_token=token))
            except SubmitTokenConflict as exc:
                # The code was edited between two tries of the same segment: the job that runs is the first one.
                job_id = next((arg for arg in (getattr(exc, "job_id", None), *exc.args[1:]) if arg), None)
                if not job_id:
                    raise errors.InvalidInputError("submit token", token, "was used for another job") from exc
                log.warning("segment was already submitted with other code; following job %s", job_id)
                return str(job_id)

    def job_status(self, job_id: str) -> str | None:
        from nvflare.fuel.flare_api.api_spec import JobNotFound

        with self._session() as session:
            try:
                status = session.get_job_status(job_id)
            except JobNotFound:
                return None
            if status != PLAYED or job_id in [job.job_id for job in session.get_system_info().job_info]:
                return status  # type: ignore[no-any-return]
            return None  # a server that was restarted does not play what it still calls running

    def abort(self, job_id: str) -> None:
        from nvflare.fuel.flare_api.api_spec import JobNotFound, JobNotRunning

        with self._session() as session, contextlib.suppress(JobNotRunning, JobNotFound):
            session.abort_job(job_id)

    def sites(self) -> Sequence[str]:
        with self._session() as session:
            return sorted(client.name for client in session.get_system_info().client_info)

    def sites_without(self, job_id: str) -> Sequence[str]:
        with self._session() as session:
            told = session.get_client_job_status() or ()
        jobs: dict[str, set[str | None]] = {}
        for row in told:
            if "job_id" in row or row.get("status") == NO_JOBS:  # a site that does not answer has said nothing
                jobs.setdefault(str(row["client_name"]), set()).add(row.get("job_id"))
        return sorted(site for site, its in jobs.items() if job_id not in its)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        """A logged-in session; foreign errors leave as ours."""
        kit = self.check_kit()
        address = f"{kit['host']}:{kit['port']}"
        self._knock(kit)
        if (nvflare_log := logging.getLogger("nvflare")).level == logging.NOTSET:
            nvflare_log.setLevel(logging.WARNING)  # each login tells a dozen lines about its channel
        from nvflare.fuel.flare_api import api_spec
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        lost = (api_spec.NoConnection, api_spec.SessionClosed, api_spec.SessionExpired, api_spec.NoReply)
        try:
            session = new_secure_session(kit["username"], str(self.kit), timeout=self.login_timeout_s)
        except (api_spec.AuthenticationError, api_spec.AuthorizationError) as exc:
            raise errors.InvalidInputError(
                "admin_kit", str(self.kit), f"the server at {address} does not accept it"
            ) from exc
        except Exception as exc:  # NVFlare raises plain and private errors here; all mean that nobody logged us in
            raise errors.UnreachableError("the federation server", address, START_HINT) from exc
        try:
            yield session
        except lost as exc:
            raise errors.UnreachableError("the federation server", address, START_HINT) from exc
        except (api_spec.InvalidJobDefinition, api_spec.AuthorizationError) as exc:
            raise errors.FederatedRunFailedError(f"the federation refuses: {exc}") from exc
        except (api_spec.InternalError, RuntimeError) as exc:
            raise errors.TransientError(f"the federation server at {address} could not do it: {exc}") from exc
        finally:
            with contextlib.suppress(Exception):  # the server may be gone by now
                session.close()

    def _knock(self, kit: Mapping[str, Any]) -> None:
        """Shake hands once with a time limit: NVFlare itself would wait for a dead or silent server for good."""
        startup = self.kit / "startup"
        handshake.server_name(
            kit["host"], int(kit["port"]), authority=startup / kit["ca_cert"], kit=self.kit, field="admin_kit",
            pair=(startup / kit["client_cert"], startup / kit["client_key"]), hint=START_HINT,
            timeout_s=self.login_timeout_s,
        )  # fmt: skip


PLAYED = "RUNNING"
NO_JOBS = "no_jobs"
"""NVFlare's words for a job and for a site."""
START_HINT = "start it ('mlscale federated up' for a local one) or correct admin_kit of the connection"

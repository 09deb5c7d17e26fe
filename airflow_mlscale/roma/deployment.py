"""One model: the version that serves, the one being brought up beside it, and the way from one to the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, model, ports, settings
from airflow_mlscale.roma import replica as replicas

log = logging.getLogger(__name__)


class NotReadyError(errors.TransientError):
    """The model exists, but no version of it serves now."""


class UnknownVersionError(errors.InvalidInputError):
    """Another version than the one asked for serves."""


class Deployment:
    """A model's desired state and what has become of it. Every change is saved before anything acts on it."""

    def __init__(
        self,
        desired: model.Desired,
        *,
        store: ports.StatePort,
        launcher: ports.LauncherPort,
        groups: cores.CoreGroups,
        config: settings.Settings,
        group_name: Callable[[str], str],
    ) -> None:
        self.desired = desired
        self.active: replicas.Replica | None = None
        self.candidate: replicas.Replica | None = None
        self._store = store
        self._launcher = launcher
        self._groups = groups
        self._config = config
        self._group_name = group_name
        self._task: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()

    @property
    def name(self) -> str:
        return self.desired.name

    @property
    def spec(self) -> model.ModelSpec:
        """Of the version that serves, or else of the one that should."""
        spec = self.active.spec if self.active else self.desired.spec
        if spec is None:
            raise AssertionError(f"{self.name}: a model without any version")
        return spec

    @property
    def state(self) -> model.State:
        """The version that serves says it; without one, the candidate."""
        if not self.desired.loaded:
            return model.State.UNLOADED
        if self.active:
            return self.active.supervisor.state
        if self.candidate:
            return self.candidate.supervisor.state
        return model.State.FAILED if self.desired.failure else model.State.LOADING

    @property
    def reason(self) -> str:
        if not self.desired.loaded:
            return "unloaded through the repository API"
        if self.active:
            return self.active.supervisor.reason
        return self.desired.failure or ""

    @property
    def settled(self) -> bool:
        """Whether nothing is being brought up."""
        return self._task is None

    @property
    def min_cores(self) -> float:
        """Guarantee it holds, or will hold once what is being brought up serves; none if nothing of it runs."""
        if self.state in (model.State.FAILED, model.State.UNLOADED):
            return 0.0
        return max(spec.min_cores for spec in (self.desired.active, self.desired.candidate) if spec)

    def replica(self, version: str | None = None) -> replicas.Replica:
        """The replica that serves a request.

        Raises:
            NotReadyError: none does now.
            UnknownVersionError: another version than the one asked for does.
        """
        if self.active is None:
            detail = f": {self.reason}" if self.reason else ""
            wait_s = 30.0 if self.settled else 2.0
            raise NotReadyError(f"model {self.name!r} is {self.state}{detail}", retry_after_s=wait_s)
        if version is not None and version != self.active.spec.version:
            serving = self.active.spec.version
            raise UnknownVersionError("version", version, f"model {self.name!r} serves version {serving}")
        return self.active

    def deploy(self, spec: model.ModelSpec) -> None:
        """Serve this from now on: at once if only settings changed, else beside the old version until it is warm."""
        active = self.active
        if active and active.spec.same_files(spec) and spec.threads(self._groups.host_cores) == active.threads:
            self._withdraw_candidate()
            active.update(spec)
            self._save(model.Desired(name=self.name, active=spec))
            log.info("%s: settings updated", self.name)
        else:
            self.bring_up(spec)

    def bring_up(self, spec: model.ModelSpec) -> None:
        """Start a version; whatever was being brought up before is dropped."""
        self._withdraw_candidate()
        self._save(model.Desired(name=self.name, active=self.active.spec if self.active else None, candidate=spec))
        self._start(spec)

    def resume(self) -> None:
        """Bring back what was saved: the serving version first, then its candidate."""
        if (
            self.desired.loaded
            and (spec := self.desired.spec)
            and not (self.desired.failure and not self.desired.active)
        ):
            self._start(spec)

    def unload(self) -> None:
        """Stop serving but remember the model."""
        self._withdraw_candidate()
        self._save(
            replace(self.desired, candidate=None if self.desired.active else self.desired.candidate, loaded=False)
        )
        if self.active:
            self._retire(self.active)
            self.active = None

    async def wait_settled(self, timeout_s: float) -> None:
        """Return once nothing is being brought up, or after the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.settled:
                    await self._settled.wait()
        except TimeoutError:
            return

    async def end(self, *, drain_s: float | None = None) -> None:
        """End every worker of this model after it has drained, for ``drain_s`` seconds or as the settings say."""
        self._withdraw_candidate()
        if self.active:
            self._retire(self.active, drain_s)
            self.active = None
        while retiring := tuple(self._retiring):
            await asyncio.gather(*retiring, return_exceptions=True)
            self._retiring.difference_update(retiring)  # their callbacks may not have run: gather need not suspend

    def _start(self, spec: model.ModelSpec) -> None:
        self.candidate = replicas.Replica(
            spec,
            group=self._group_name(self.name),
            launcher=self._launcher,
            groups=self._groups,
            config=self._config,
        )
        self._settled.clear()
        self._task = asyncio.create_task(self._bring_up(self.candidate), name=f"bring up {self.name}")

    async def _bring_up(self, candidate: replicas.Replica) -> None:
        log.info("%s: loading version %s from %s", self.name, candidate.spec.version, candidate.spec.artefact)
        try:
            await candidate.start()
        except errors.MlscaleError as exc:
            self._give_up(candidate, str(exc))
        except Exception as exc:  # a defect must show as a failed model, not as one that loads for ever
            log.exception("%s: version %s cannot be brought up", self.name, candidate.spec.version)
            self._give_up(candidate, f"{type(exc).__name__}: {exc}")
        else:
            self._promote(candidate)

    def _promote(self, candidate: replicas.Replica) -> None:
        old, self.active, self.candidate, self._task = self.active, candidate, None, None
        resumed = self.desired.candidate if self.desired.active == candidate.spec else None
        self._save(model.Desired(name=self.name, active=candidate.spec, candidate=resumed))
        log.info("%s: version %s is ready after %.1f s", self.name, candidate.spec.version, candidate.supervisor.load_s)
        if old:
            self._retire(old)
        if resumed:
            self._start(resumed)
        else:
            self._settled.set()

    def _give_up(self, candidate: replicas.Replica, why: str) -> None:
        log.error("%s: version %s failed: %s", self.name, candidate.spec.version, why)
        self.candidate, self._task = None, None
        first = self.desired.active is None
        # A saved version that does not come back must not take its successor with it.
        waiting = self.desired.candidate if self.desired.candidate != candidate.spec else None
        self._save(
            replace(
                self.desired,
                candidate=candidate.spec if first else waiting,
                failure=why,
                failed_version=candidate.spec.version,
            )
        )
        self._retire(candidate)
        if waiting and not first:
            self._start(waiting)
        else:
            self._settled.set()

    def _withdraw_candidate(self) -> None:
        if self._task:
            self._task.cancel()
            self._task = None
        if self.candidate:
            self._retire(self.candidate)
            self.candidate = None
        self._settled.set()

    def _retire(self, replica: replicas.Replica, drain_s: float | None = None) -> None:
        """Let a replica finish what it accepted, then end it; nothing new reaches it."""
        task = asyncio.create_task(self._drain_and_end(replica, drain_s), name=f"retire {self.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _drain_and_end(self, replica: replicas.Replica, drain_s: float | None) -> None:
        if not await replica.drain(self._config.worker.drain_s if drain_s is None else drain_s):
            log.warning("%s: version %s did not drain in time", self.name, replica.spec.version)
        await replica.end()

    def _save(self, desired: model.Desired) -> None:
        self._store.save(desired)
        self.desired = desired

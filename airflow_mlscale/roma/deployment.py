"""One model: the version that serves, the one brought up or tried beside it, and the way from one to the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from airflow_mlscale import errors
from airflow_mlscale.roma import canary as canaries
from airflow_mlscale.roma import comeback, cores, dispatch, model, ports, retirement, settings
from airflow_mlscale.roma import replica as replicas

log = logging.getLogger(__name__)


class NotReadyError(errors.TransientError):
    """The model exists, but no version of it serves now."""


class UnknownVersionError(errors.InvalidInputError):
    """Another version than the one asked for serves."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A replica that takes requests, as control sees it."""

    name: str
    """Of the model; of a canary ``model@version``, which no model can be called."""
    replica: replicas.Replica
    spec: model.ModelSpec
    """With the part of the guaranteed minimum that this replica holds: a canary's comes out of the model's own."""


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
        dispatcher: dispatch.Dispatcher | None = None,
    ) -> None:
        self.desired = desired
        self.active: replicas.Replica | None = None
        self.candidate: replicas.Replica | None = None
        self.trial_since: float | None = None
        """When the candidate began to take requests as a canary (monotonic); None if it does not."""
        self._splitter = canaries.Splitter()
        self._store = store
        self._launcher = launcher
        self._groups = groups
        self._config = config
        self._group_name = group_name
        self._dispatcher = dispatcher
        self._task: asyncio.Task[None] | None = None
        self._comeback = comeback.Comeback()
        """Of a saved version that could not be brought back."""
        self._retirement = retirement.Retirement()
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
        if self._comeback.waits:
            return model.State.CRASH_LOOP
        return model.State.FAILED if self.desired.failure else model.State.LOADING

    @property
    def reason(self) -> str:
        if not self.desired.loaded:
            return "unloaded through the repository API"
        if self.active:
            return self.active.supervisor.reason
        return self.desired.failure or ""

    @property
    def trial(self) -> replicas.Replica | None:
        """The candidate while it is tried on a part of the requests."""
        return None if self.trial_since is None else self.candidate

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

    def serving(self) -> list[Serving]:
        """Every replica that takes requests."""
        if self.active is None:
            return []
        trial, rules = self.trial, self.desired.canary
        if trial is None or rules is None:
            return [Serving(self.name, self.active, self.active.spec)]
        trial_name = f"{self.name}@{trial.spec.version}"
        parts = ((self.name, self.active, 1 - rules.fraction), (trial_name, trial, rules.fraction))
        return [Serving(name, one, replace(one.spec, min_cores=part * one.spec.min_cores)) for name, one, part in parts]

    def replica(self, version: str | None = None) -> replicas.Replica:
        """The replica of the version that serves, or of the version asked for; a canary may be asked for too.

        Raises:
            NotReadyError: none does now.
            UnknownVersionError: another version than the one asked for does.
        """
        if self.active is None:
            detail = f": {self.reason}" if self.reason else ""
            wait_s = 30.0 if self.settled else 2.0
            raise NotReadyError(f"model {self.name!r} is {self.state}{detail}", retry_after_s=wait_s)
        if version is None or version == self.active.spec.version:
            return self.active
        if (trial := self.trial) and version == trial.spec.version:
            return trial
        serving = self.active.spec.version
        raise UnknownVersionError("version", version, f"model {self.name!r} serves version {serving}")

    def route(self, key: str | None = None) -> replicas.Replica:
        """The replica that the next request goes to: a canary gets its part while its worker is there.

        Raises:
            NotReadyError: no version serves now.
        """
        serving = self.replica()
        trial, rules = self.trial, self.desired.canary
        if trial and rules and trial.supervisor.state is model.State.READY and self._splitter.takes(rules, key):
            return trial
        return serving

    def deploy(self, spec: model.ModelSpec, canary: model.Canary | None = None) -> None:
        """Serve this from now on: at once if only settings changed, else beside the old version until it is warm.

        With a canary it is then tried, if there is a version to compare it with.
        """
        active, candidate = self.active, self.candidate
        if active and active.spec.same_files(spec):
            self._save(model.Desired(name=self.name, active=spec, previous=self.desired.previous))
            self._withdraw_candidate()
            active.update(spec)
            log.info("%s: settings updated", self.name)
        elif active and candidate and candidate.spec.same_files(spec):
            self._save(replace(self.desired, candidate=spec, canary=canary))
            candidate.update(spec)
            if canary is None and self.trial:
                self._promote(candidate)
        else:
            self.bring_up(spec, canary)

    def bring_up(
        self, spec: model.ModelSpec, canary: model.Canary | None = None, *, failure: str | None = None
    ) -> None:
        """Start a version; whatever was being brought up before is dropped.

        Args:
            spec: the version.
            canary: how to try it; without a serving version there is nothing to compare it with, so it serves.
            failure: why it takes the place of the version that serves.
        """
        self._save(
            model.Desired(
                name=self.name,
                active=self.active.spec if self.active else None,
                candidate=spec,
                canary=canary if self.active else None,
                previous=None if failure else self.desired.previous,
                failure=failure,
                failed_version=self.active.spec.version if failure and self.active else None,
            )
        )
        self._withdraw_candidate()
        self._start(spec)

    def promote(self, version: str | None = None) -> None:
        """Let the candidate serve everything: at once if it is warm, else as soon as it is.

        Raises:
            InvalidInputError: there is no such candidate.
            NotReadyError: its worker is away.
        """
        candidate, serves = self.candidate, self.spec.version
        if candidate is None or version not in (None, candidate.spec.version):
            if version is not None and self.active and version == serves:
                return
            fix = f"model {self.name!r} serves version {serves}"
            told = f"{fix} and tries version {candidate.spec.version}" if candidate else f"{fix} and tries no other"
            if version is not None and version == self.desired.failed_version:
                told = f"{told}; version {version} was left: {self.desired.failure}"
            raise UnknownVersionError("version", version, told)
        if self.trial is None:
            self._save(replace(self.desired, canary=None))
        elif candidate.supervisor.state is model.State.READY:
            self._promote(candidate)
        else:
            raise NotReadyError(
                f"version {candidate.spec.version} of {self.name!r} is {candidate.supervisor.state}",
                retry_after_s=candidate.supervisor.back_in_s(),
            )

    def roll_back(self, why: str, version: str | None = None) -> None:
        """Give up the candidate, or without one go back to the version that served before.

        Args:
            why: for the status.
            version: which to leave; one that was left already changes nothing. None for whatever came last.

        Raises:
            UnknownVersionError: another version serves, or there is none to go back to.
        """
        serves = self.spec.version
        if version is not None and version == self.desired.failed_version and version != serves:
            return
        candidate = self.candidate
        if candidate and self.active and version in (None, candidate.spec.version):
            left = candidate.spec.version
            self._save(replace(self.desired, candidate=None, canary=None, failure=why, failed_version=left))
            self._withdraw_candidate()
            log.warning("%s: version %s rolled back: %s", self.name, left, why)
            return
        if version not in (None, serves):
            raise UnknownVersionError("version", version, f"model {self.name!r} serves version {serves}")
        previous = self.desired.previous
        if previous is None or self.active is None:
            raise UnknownVersionError("version", version, f"model {self.name!r} has no version before {serves}")
        log.warning("%s: going back from version %s to %s: %s", self.name, serves, previous.version, why)
        self.bring_up(previous, failure=why)

    def resume(self) -> None:
        """Bring back what was saved: the serving version first, then its candidate."""
        spec = self.desired.spec
        if spec and self.desired.loaded and (self.desired.active or not self.desired.failure):
            self._start(spec)

    def unload(self) -> None:
        """Stop serving but remember the model."""
        remembered = None if self.desired.active else self.desired.candidate
        self._save(replace(self.desired, candidate=remembered, canary=None, loaded=False))
        self._withdraw_candidate()
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
        await self._retirement.over()

    def _start(self, spec: model.ModelSpec) -> None:
        self.candidate = replicas.Replica(
            spec,
            group=self._group_name(self.name),
            launcher=self._launcher,
            groups=self._groups,
            config=self._config,
            dispatcher=self._dispatcher,
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
            if self.active and self.desired.canary:
                self._try(candidate)
            else:
                self._promote(candidate)

    def _try(self, candidate: replicas.Replica) -> None:
        """Give a warm candidate its part of the requests."""
        self._task = None
        self.trial_since = time.monotonic()
        self._splitter = canaries.Splitter(salt=f"{self.name}\0{candidate.spec.version}")
        log.info("%s: version %s is tried as a canary", self.name, candidate.spec.version)
        self._settled.set()

    def _promote(self, candidate: replicas.Replica) -> None:
        old, self.active, self.candidate, self._task = self.active, candidate, None, None
        self.trial_since = None
        resumed = self.desired.candidate if self.desired.active == candidate.spec else None
        came_back = self.desired.failed_version == candidate.spec.version and not resumed  # else it is to be left
        self._record(
            replace(
                self.desired,
                active=candidate.spec,
                candidate=resumed,
                canary=self.desired.canary if resumed else None,
                previous=old.spec if old and not self.desired.failure else self.desired.previous,
                failure=None if came_back else self.desired.failure,
                failed_version=None if came_back else self.desired.failed_version,
                loaded=True,
            )
        )
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
        self._record(
            replace(
                self.desired,
                candidate=candidate.spec if first else waiting,
                canary=self.desired.canary if waiting and not first else None,
                failure=why,
                failed_version=candidate.spec.version,
            )
        )
        self._retire(candidate)
        if waiting and not first:
            self._start(waiting)
            return
        self._settled.set()
        if self.active is None and self.desired.active == candidate.spec:
            # It served before this daemon started: not given up for what may be over in a minute.
            pause_s = self._comeback.later(lambda: self._start(candidate.spec))
            log.warning("%s: version %s is tried again in %.0f s", self.name, candidate.spec.version, pause_s)

    def _withdraw_candidate(self) -> None:
        self._comeback.give_up()
        if self._task:
            self._task.cancel()
            self._task = None
        if self.candidate:
            self._retire(self.candidate)
            self.candidate = None
        self.trial_since = None
        self._settled.set()

    def _retire(self, replica: replicas.Replica, drain_s: float | None = None) -> None:
        """Let a replica finish what it accepted, then end it; nothing new reaches it."""
        self._retirement.add(replica, self._config.worker.drain_s if drain_s is None else drain_s)

    def _record(self, desired: model.Desired) -> None:
        """Save what has happened already: a disk that refuses cannot undo it."""
        try:
            self._save(desired)
        except errors.TransientError:
            log.exception("%s: its state is not saved; a daemon that starts again goes by the last one", self.name)
            self.desired = desired

    def _save(self, desired: model.Desired) -> None:
        self._store.save(desired := desired.counted(self.desired.highest))
        self.desired = desired

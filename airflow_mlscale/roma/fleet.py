"""All models of one daemon: deploying, finding, unloading, and bringing them back after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterator
from itertools import count

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, deployment, model, ports, settings

log = logging.getLogger(__name__)


class UnknownModelError(errors.InvalidInputError):
    """No such model."""


class Fleet:
    """The models by name."""

    def __init__(
        self,
        *,
        store: ports.StatePort,
        launcher: ports.LauncherPort,
        groups: cores.CoreGroups,
        artefacts: ports.ArtefactPort,
        config: settings.Settings,
    ) -> None:
        self._models: dict[str, deployment.Deployment] = {}
        self._store = store
        self._launcher = launcher
        self._groups = groups
        self._artefacts = artefacts
        self._config = config
        self._generation = count(1)
        self._changing = asyncio.Lock()
        # Two daemons on one host must not share groups; one that comes back must find its own.
        self._instance = hashlib.sha256(str(config.state_dir.resolve()).encode()).hexdigest()[:6]

    def __iter__(self) -> Iterator[deployment.Deployment]:
        return iter(list(self._models.values()))

    def __getitem__(self, name: str) -> deployment.Deployment:
        try:
            return self._models[name]
        except KeyError:
            raise self._unknown(name) from None

    @property
    def ready(self) -> bool:
        """Whether every model that should serve does; those that failed for good do not count."""
        waiting = (model.State.LOADING, model.State.WARMING, model.State.RESTARTING)
        return not any(one.state in waiting for one in self)

    @property
    def gateway_group(self) -> str:
        """CPU group of the daemon's own process."""
        return f"roma.{self._instance}.gateway"

    async def restore(self) -> None:
        """Bring back every model that was saved, and remove the groups of workers that a crash left."""
        await self._groups.sweep(f"roma.{self._instance}.")
        for desired in self._store.load():
            one = self._models[desired.name] = self._deployment(desired)
            one.resume()

    async def deploy(self, order: model.DeployOrder) -> deployment.Deployment:
        """Take an order; returns as soon as it is saved and under way.

        Raises:
            InvalidInputError: something about it is wrong; nothing has changed then.
            AdmissionRefusedError: the guarantees of all models would not fit the host.
        """
        async with self._changing:
            last = self._models.get(order.name)
            path, fingerprint = await asyncio.to_thread(self._artefacts.check, order.artefact)
            version = order.version or _next_version(last, str(path), fingerprint)
            spec = order.onto(last.spec if last else None, version=version, artefact=str(path), fingerprint=fingerprint)
            self._admit(spec)
            if last is None:
                last = self._deployment(model.Desired(name=order.name))
                last.deploy(spec)
                self._models[order.name] = last
            else:
                last.deploy(spec)
            return last

    async def load(self, name: str) -> deployment.Deployment:
        """Serve a model that was unloaded, or one found under the model root; no change if it serves already."""
        if name not in self._models:
            artefact = await asyncio.to_thread(self._artefacts.find, name)
            if artefact is None:
                raise self._unknown(name)
            path, version = artefact
            objective = model.Objective(milliseconds=1000)
            return await self.deploy(
                model.DeployOrder(name=name, artefact=str(path), version=version, objective=objective)
            )
        async with self._changing:
            one = self[name]
            if not one.active and one.settled:
                self._admit(one.spec)
                one.bring_up(one.spec)
            return one

    async def unload(self, name: str) -> None:
        """Stop serving a model but remember it."""
        async with self._changing:
            self[name].unload()

    async def remove(self, name: str) -> None:
        """Forget a model; what it has accepted is still answered."""
        async with self._changing:
            one = self[name]
            self._store.remove(name)
            del self._models[name]
        await one.end()

    async def end(self) -> None:
        """End all workers; who waits for an answer is told to come back."""
        await asyncio.gather(*(one.end(drain_s=0) for one in self))

    def _unknown(self, name: str) -> UnknownModelError:
        known = ", ".join(sorted(self._models)) or "none"
        return UnknownModelError("model", name, f"unknown model; deployed are: {known}")

    def _admit(self, spec: model.ModelSpec) -> None:
        others = sum(one.min_cores for one in self if one.name != spec.name)
        host = self._groups.host_cores
        if others + spec.min_cores > host + 1e-9:
            raise errors.AdmissionRefusedError(
                f"min_cores={spec.min_cores:g} of model {spec.name!r} does not fit: the other models are guaranteed "
                f"{others:g} of this host's {host:g} cores; lower min_cores or remove a model"
            )

    def _deployment(self, desired: model.Desired) -> deployment.Deployment:
        return deployment.Deployment(
            desired,
            store=self._store,
            launcher=self._launcher,
            groups=self._groups,
            config=self._config,
            group_name=self._group_name,
        )

    def _group_name(self, name: str) -> str:
        return f"roma.{self._instance}.{re.sub('[^a-z0-9._-]', '_', name.lower())}.{next(self._generation)}"


def _next_version(last: deployment.Deployment | None, artefact: str, fingerprint: str) -> str:
    if last is None:
        return "1"
    if (last.spec.artefact, last.spec.fingerprint) == (artefact, fingerprint):
        return last.spec.version
    candidate = last.desired.candidate
    if (
        candidate
        and (candidate.artefact, candidate.fingerprint) == (artefact, fingerprint)
        and not last.desired.failure
    ):
        return candidate.version
    tried = (last.spec.version, candidate and candidate.version, last.desired.failed_version)
    numbers = [int(version) for version in tried if version and version.isdecimal()]
    return str(max(numbers, default=0) + 1)

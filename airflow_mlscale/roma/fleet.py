"""All models of one daemon: deploying, finding, unloading, and bringing them back after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count
from math import ceil, inf
from weakref import WeakValueDictionary

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, deployment, dispatch, feedback, model, ports, settings

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
        quality: ports.QualityPort | None = None,
        generation: int = 1,
    ) -> None:
        self.quality: ports.QualityPort = quality or feedback.Tallies()
        """What feedback said; in memory alone if nothing else was given."""
        self.recent = feedback.Recent()
        """Answers that feedback may speak of."""
        self._models: dict[str, deployment.Deployment] = {}
        self._store = store
        self._launcher = launcher
        self._groups = groups
        self._artefacts = artefacts
        self._config = config
        places = float(ceil(groups.host_cores)) if config.control.takes_turns else inf
        self.dispatcher = dispatch.Dispatcher(host_places=places, order=config.control.dispatch)
        self._generation = count(generation)
        self._frozen = False
        self._changing = asyncio.Lock()
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Two daemons on one host must not share groups; one that comes back must find its own.
        self._instance = hashlib.sha256(str(config.state_dir.resolve()).encode()).hexdigest()[:6]
        self._first = generation
        """More than 1 if this fleet takes over from another daemon, whose groups it must leave alone."""

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
        own = f".{self._first}" if self._first > 1 else ""
        return f"roma.{self._instance}.gateway{own}"

    def next_generation(self) -> int:
        """A number of groups, 2 or more, that this fleet has not used, and will not reach while it is frozen."""
        return next(self._generation) + 1

    async def freeze(self) -> None:
        """Refuse changes from now on, once those under way are taken."""
        async with self._changing:
            self._frozen = True

    def thaw(self) -> None:
        """Take changes again."""
        self._frozen = False

    @contextlib.asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One change at a time.

        Raises:
            NotReadyError: another daemon takes over.
        """
        async with self._changing:
            if self._frozen:
                raise deployment.NotReadyError("another daemon takes over; it will take changes", retry_after_s=5)
            yield

    async def restore(self) -> None:
        """Bring back every model that was saved, and remove the groups of workers that a crash left."""
        if self._first == 1:
            await self._groups.sweep(f"roma.{self._instance}.")
        for desired in self._store.load():
            one = self._models[desired.name] = self._deployment(desired)
            one.resume()

    async def deploy(self, order: model.DeployOrder) -> deployment.Deployment:
        """Take an order; returns as soon as it is saved and under way.

        Raises:
            InvalidInputError: something about it is wrong; nothing has changed then.
            TransientError: the model cannot be had now.
            AdmissionRefusedError: the guarantees of all models would not fit the host.
        """
        last = self._models.get(order.name)
        order.onto(last.spec if last else None, version=order.version or "1", artefact=order.artefact)  # or it raises
        # Only orders for the same model wait for each other's downloads.
        lock = self._fetching.setdefault(order.name, asyncio.Lock())
        async with lock:
            found = await asyncio.to_thread(self._artefacts.fetch, order.artefact, order.checksum)
            async with self._change():
                one = self._take(order, found)
            await asyncio.to_thread(self._artefacts.prune, self._needed())
        return one

    def _take(self, order: model.DeployOrder, found: ports.Artefact) -> deployment.Deployment:
        last = self._models.get(order.name)
        spec = self._spec(last, order, found)
        self._admit(spec)
        if last is None:
            last = self._deployment(model.Desired(name=order.name))
            last.deploy(spec, order.canary)
            self._models[order.name] = last
        elif order.canary and last.desired.active and last.desired.loaded and not last.active:
            told = f"model {order.name!r} is {last.state}: there is no version yet to try another beside"
            raise deployment.NotReadyError(told, retry_after_s=2)
        else:
            last.deploy(spec, order.canary)
        return last

    def _spec(
        self, last: deployment.Deployment | None, order: model.DeployOrder, found: ports.Artefact
    ) -> model.ModelSpec:
        """What an order makes of the version that has these files, or else of the one that serves."""

        def onto(base: model.ModelSpec | None) -> model.ModelSpec:
            source, files = found.source, str(found.files)
            version = order.version or "1"
            return order.onto(base, version=version, artefact=source, fingerprint=found.checksum, files=files)

        spec = onto(last.spec if last else None)
        tried = last.desired.candidate if last else None
        if tried and last and spec.source != last.spec.source and onto(tried).source == tried.source:
            spec = onto(tried)
        active = last.desired.active if last else None
        if active and order.version == active.version and spec.source != active.source:
            fix = f"version {active.version} serves other files or another runtime; give another version, or none"
            raise errors.InvalidInputError("version", order.version, fix)
        return replace(spec, version=order.version or _next_version(last, spec))

    def _needed(self) -> set[str]:
        """Checksums of what any version may still have to be loaded from."""
        desired = [one.desired for one in self]
        specs = [spec for one in desired for spec in (one.active, one.candidate, one.previous) if spec]
        return {spec.fingerprint for spec in specs}

    async def promote(self, name: str, version: str | None = None) -> deployment.Deployment:
        """Let a model's candidate serve everything; see `deployment.Deployment.promote`."""
        async with self._change():
            one = self[name]
            one.promote(version)
            return one

    async def roll_back(self, name: str, why: str, version: str | None = None) -> deployment.Deployment:
        """Leave a model's latest version; see `deployment.Deployment.roll_back`."""
        async with self._change():
            one = self[name]
            if one.candidate is None and one.desired.previous:
                self._admit(one.desired.previous)
            one.roll_back(why, version)
            return one

    async def loadable(self) -> dict[str, str]:
        """Names and versions of what lies under the model root and was never loaded."""
        found = await asyncio.to_thread(self._artefacts.listed)
        return {name: version for name, version in found.items() if name not in self._models}

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
        async with self._change():
            one = self[name]
            if not one.active and one.settled:
                self._admit(one.spec)
                one.bring_up(one.spec)
            return one

    async def unload(self, name: str) -> None:
        """Stop serving a model but remember it."""
        async with self._change():
            self[name].unload()
            log.info("%s: unloaded; what it has accepted is still answered", name)

    async def remove(self, name: str) -> None:
        """Forget a model; what it has accepted is still answered."""
        async with self._change():
            one = self[name]
            self._store.remove(name)
            self.quality.forget(name)
            self.recent.forget(name)
            del self._models[name]
        log.info("%s: undeployed; what it has accepted is still answered", name)
        await one.end()

    async def end(self) -> None:
        """End all workers; who waits for an answer is told to come back."""
        await asyncio.gather(*(one.end(drain_s=0) for one in self))

    def _unknown(self, name: str) -> UnknownModelError:
        known = ", ".join(sorted(self._models)) or "none"
        return UnknownModelError("model", name, f"unknown model; deployed are: {known}")

    def _admit(self, spec: model.ModelSpec) -> None:
        others = sum(one.min_cores for one in self if one.name != spec.name)
        host, gateway = self._groups.host_cores, self._config.control.gateway_cores
        if others + spec.min_cores > host - gateway + 1e-9:
            raise errors.AdmissionRefusedError(
                f"min_cores={spec.min_cores:g} of model {spec.name!r} does not fit: the other models are guaranteed "
                f"{others:g} of this host's {host:g} cores, the gateway {gateway:g}; lower min_cores or remove a model"
            )

    def _deployment(self, desired: model.Desired) -> deployment.Deployment:
        return deployment.Deployment(
            desired,
            store=self._store,
            launcher=self._launcher,
            groups=self._groups,
            config=self._config,
            group_name=self.group_name,
            dispatcher=self.dispatcher,
        )

    def group_name(self, name: str) -> str:
        """A CPU group for one more process."""
        return f"roma.{self._instance}.{re.sub('[^a-z0-9._-]', '_', name.lower())}.{next(self._generation)}"


def _next_version(last: deployment.Deployment | None, spec: model.ModelSpec) -> str:
    """The version that such files have, or else the next number."""
    if last is None:
        return "1"
    if last.spec.source == spec.source:
        return last.spec.version
    candidate = last.desired.candidate
    if candidate and candidate.source == spec.source and not last.desired.failure:
        return candidate.version
    return str(last.desired.counted(0).highest + 1)

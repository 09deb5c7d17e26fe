"""Runs on a file system that the federation's server writes and Airflow reads.

One directory per run::

    settings.json     what the run is asked to do, written once at the first submission
    segments/0001     the engine's job id of each segment
    fence             the segment that owns the run
    state.json        `RunState` after the last complete round
    rounds/0007.npz   weights after a round, and the server optimiser's memory (the last and the best are kept)
    metrics.jsonl     the decision journal, one record per round
    heartbeat         when the controller last showed that it lives
    stop              exists when somebody asked the run to stop
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import model, ports
from airflow_mlscale.federated.adapters import model_card
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.runtime import journal


@dataclass(frozen=True)
class RunDirectory:
    """What is known of one run, from outside: read by the operator, the sensor and their triggers."""

    path: Path

    @property
    def metrics_path(self) -> Path:
        """The journal file."""
        return self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether the run was ever submitted."""
        return (self.path / "settings.json").exists()

    def create(self, run: RunSettings) -> RunSettings:
        """Record the settings of a new run; returns those already recorded if the run exists."""
        self.path.mkdir(parents=True, exist_ok=True)
        if (found := _read(self.path / "settings.json")) is not None:
            return RunSettings.from_json(found)
        _write(self.path / "settings.json", run.to_json())
        return run

    def settings(self) -> RunSettings | None:
        """The recorded settings."""
        found = _read(self.path / "settings.json")
        return None if found is None else RunSettings.from_json(found)

    def state(self) -> model.RunState | None:
        """The last durable state; None before the first segment started."""
        found = _read(self.path / "state.json")
        return None if found is None else model.RunState.from_json(found)

    def heartbeat(self) -> str | None:
        """The last sign of life; it changes with every beat. None before the first."""
        try:
            return (self.path / "heartbeat").read_text()
        except FileNotFoundError:
            return None

    def submitted(self, segment: int, job_id: str) -> None:
        """Record the job of a segment."""
        _write(self.path / "segments" / f"{segment:04d}", {"job_id": job_id, "at": time.time()})

    def last_segment(self) -> tuple[int, str | None]:
        """Number and job id of the last submitted segment; (0, None) before the first."""
        found = sorted((self.path / "segments").glob("[0-9]*")) if self.path.exists() else []
        found = [each for each in found if each.name.isdigit()]
        if not found:
            return 0, None
        record = _read(found[-1]) or {}
        return int(found[-1].name), record.get("job_id")

    def ask_to_stop(self) -> None:
        """Ask the controller to end the run after at most a few seconds."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "stop").touch()

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return (self.path / "stop").exists()

    def withdraw_stop(self) -> None:
        """Let the run go on again."""
        (self.path / "stop").unlink(missing_ok=True)

    def records(self) -> list[journal.Record]:
        """The decision journal."""
        return journal.read(self.metrics_path)


@dataclass
class RunWriter:
    """One run from inside: the controller's durable side (`ports.RunStore`) and its heartbeat."""

    directory: RunDirectory
    target: model.Quality
    segment: int = 0
    _journal: journal.Journal | None = field(default=None, init=False)

    def begin(self, segment: int) -> tuple[model.RunState | None, ports.Weights | None]:
        self.segment = segment
        self._check_fence()
        _write(self.directory.path / "fence", {"segment": segment})
        state = self.directory.state()
        self._journal = journal.Journal(self.directory.metrics_path)
        if state is None or not state.rounds:
            return state, None
        recorded = {record.seen.get("round") for record in self._journal.records()}
        for done in state.rounds:  # a crash between state and journal loses the line, not the round
            if done.number not in recorded:
                self._journal.append(_record(state, done, self.target))
        return state, _load(self._weights_path(state.rounds[-1].number))

    def memory(self) -> ports.Weights:
        state = self.directory.state()
        return _load(self._weights_path(state.rounds[-1].number), "memory") if state and state.rounds else []

    def checkpoint(
        self, state: model.RunState, weights: ports.Weights | None = None, memory: ports.Weights = ()
    ) -> None:
        self._check_fence()
        if weights is not None:
            _save(self._weights_path(state.rounds[-1].number), weights, memory)
        if state.saved_model and (run := self.directory.settings()) is not None:
            model_card.write(run, state)  # first: who reads that the run has ended finds it beside the model
        _write(self.directory.path / "state.json", state.to_json())
        if weights is not None:
            if self._journal:
                self._journal.append(_record(state, state.rounds[-1], self.target))
            self._forget_weights(keep={state.best_round, state.rounds[-1].number})

    def best_weights(self, state: model.RunState) -> ports.Weights:
        return _load(self._weights_path(state.best_round))

    def stop_asked(self) -> bool:
        return self.directory.stop_asked()

    def interrupted(self) -> bool:
        return False  # a directory does not know of the engine

    def beat(self) -> None:
        """Show that the controller lives."""
        _write(self.directory.path / "heartbeat", {"segment": self.segment, "pid": os.getpid(), "at": time.time()})

    def _check_fence(self) -> None:
        owner = (_read(self.directory.path / "fence") or {}).get("segment", 0)
        if owner > self.segment:
            raise errors.FederatedRunFailedError(f"segment {owner} has taken this run over from segment {self.segment}")

    def _weights_path(self, number: int) -> Path:
        return self.directory.path / "rounds" / f"{number:04d}.npz"

    def _forget_weights(self, keep: set[int]) -> None:
        for path in (self.directory.path / "rounds").glob("*.npz"):
            if int(path.stem) not in keep:
                path.unlink(missing_ok=True)


def _record(state: model.RunState, done: model.Round, target: model.Quality) -> journal.Record:
    met = "target met" if target.met(done.value) else "below target" if target.higher_is_better else "above target"
    return journal.Record(
        at=state.updated_at,
        subject=state.run_id,
        seen={
            "round": done.number, state.metric: done.value, "target": state.target, "loss": done.loss,
            "seconds": done.seconds, "samples": done.samples, "segment": done.segment,
            "node_s": done.node_s, "gigabytes": done.gigabytes, **_expected(state),
            **({} if state.epsilon is None else {"epsilon": state.epsilon}),
        },
        decided={
            "asked": len(done.asked), "answered": len(done.answered), "late": len(done.late),
            "epochs": max(done.epochs.values(), default=0), "sites": ",".join(done.answered),
        },
        reason=f"round {done.number}: {state.metric} {done.value:.4f}, {met}",
    )  # fmt: skip


def _expected(state: model.RunState) -> dict[str, Any]:
    """What was predicted after the last round, as plain numbers; null where there may be no end."""
    if state.forecast is None:
        return {}
    told = {name: state.forecast[name][1] for name in ("rounds", "seconds", "node_seconds", "at_limit")}
    return {"chance": state.forecast["chance"], **{f"expected_{name}": number for name, number in told.items()}}


def _save(path: Path, weights: ports.Weights, memory: ports.Weights) -> None:
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, *weights, **{f"memory_{i}": array for i, array in enumerate(memory)})
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _load(path: Path, kind: str = "arr") -> ports.Weights:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        found = sum(name.startswith(f"{kind}_") for name in arrays.files)
        return [arrays[f"{kind}_{i}"] for i in range(found)]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(path)

"""Runs on a file system that the federation's server writes and Airflow reads.

One directory per run::

    settings.json     what the run is asked to do, written once at the first submission
    limits/0001       changes of its limits and target since then
    segments/0001     the engine's job id of each segment
    fence             the segment that owns the run
    state.json        `RunState` after the last complete round
    rounds/0007.npz   weights after a round, the server optimiser's memory and, where the sites measure, the weights
                      that they measured in the round (those of the last and the best round are kept)
    metrics.jsonl     the decision journal, one record per round
    heartbeat         when the controller last showed that it lives
    returned          sites that were connected and no part of a segment, when somebody who follows the run last looked
    stop              exists when somebody asked the run to stop and to leave no model
    end               who asked the run to end with its best model, and why
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import limits, model, ports
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
        if (found := self.first_settings()) is not None:
            return found
        _write(self.path / "settings.json", run.to_json())
        return run

    def first_settings(self) -> RunSettings | None:
        """The settings that the run began with."""
        found = _read(self.path / "settings.json")
        return None if found is None else RunSettings.from_json(found)

    def settings(self) -> RunSettings | None:
        """The settings that hold: those of the beginning, with the changes since."""
        found = self.first_settings()
        return None if found is None else limits.held(found, self.changes())

    def changes(self) -> list[limits.Change]:
        """All changes of limits and target, in order."""
        found = sorted(path for path in (self.path / "limits").glob("[0-9]*") if path.name.isdigit())
        return [limits.Change.from_json(values) for path in found if (values := _read(path)) is not None]

    def change(self, change: limits.Change) -> int:
        """Record a change, atomically and never in the place of another's; returns its number, from 1."""
        folder = self.path / "limits"
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.{threading.get_ident()}.partial"
        partial.write_text(json.dumps(change.to_json()), encoding="utf-8")
        number = len(self.changes())
        try:
            while True:
                number += 1
                with contextlib.suppress(FileExistsError):  # two people at once: the later one's is the next
                    os.link(partial, folder / f"{number:04d}")
                    return number
        finally:
            partial.unlink()

    def state(self) -> model.RunState | None:
        """The last durable state; None before the first segment started."""
        found = _read(self.path / "state.json")
        return None if found is None else model.RunState.from_json(found)

    def weights_path(self, number: int) -> Path:
        """Where the weights after a round are, if they are kept."""
        return self.path / "rounds" / f"{number:04d}.npz"

    def heartbeat(self) -> str | None:
        """The last sign of life; it changes with every beat. None before the first."""
        try:
            return (self.path / "heartbeat").read_text()
        except FileNotFoundError:
            return None

    def tell_returned(self, segment: int, sites: Sequence[str]) -> None:
        """Tell the controller of a segment which sites could take part in the next one."""
        _write(self.path / "returned", {"segment": segment, "sites": list(sites), "at": time.time()})

    def returned(self, segment: int) -> Sequence[str]:
        """Sites that are connected and no part of this segment."""
        found = _read(self.path / "returned") or {}
        return list(found.get("sites", ())) if found.get("segment") == segment else []

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

    def ask_to_end(self, by: str, why: str) -> None:
        """Ask the controller to end the run with its best model; the first who asks is recorded."""
        if self.end_asked() is None:
            _write(self.path / "end", {"by": by, "why": why, "at": time.time()})

    def end_asked(self) -> str | None:
        """Who asked the run to end with its best model, and why; None if nobody did."""
        found = _read(self.path / "end")
        return None if found is None else f"stopped by {found.get('by')}: {found.get('why')}"

    def withdraw_end(self) -> None:
        """Forget who asked the run to end."""
        (self.path / "end").unlink(missing_ok=True)

    def needed(self) -> None:
        """Show that somebody follows the run: a simulated one ends when nobody does."""
        with contextlib.suppress(FileNotFoundError):  # a directory that was removed: its reader will say so
            (self.path / "needed").touch()

    def needed_at(self) -> float | None:
        """When somebody last followed the run, seconds since the epoch."""
        try:
            return (self.path / "needed").stat().st_mtime
        except FileNotFoundError:
            return None

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
        return state, _load(self.directory.weights_path(state.rounds[-1].number))

    def memory(self) -> ports.Weights:
        state = self.directory.state()
        return _load(self.directory.weights_path(state.rounds[-1].number), "memory") if state and state.rounds else []

    def checkpoint(
        self,
        state: model.RunState,
        weights: ports.Weights | None = None,
        memory: ports.Weights = (),
        measured: ports.Weights = (),
    ) -> None:
        self._check_fence()
        if weights is not None:
            _save(self.directory.weights_path(state.rounds[-1].number), arr=weights, memory=memory, measured=measured)
        if state.exported and (run := self.directory.settings()) is not None:
            model_card.write(run, state)  # first: who reads that the run has ended finds it beside the model
        _write(self.directory.path / "state.json", state.to_json())
        if weights is not None:
            if self._journal:
                self._journal.append(_record(state, state.rounds[-1], self.target))
            self._forget_weights(keep={state.best_round, state.rounds[-1].number})

    def best_weights(self, state: model.RunState) -> ports.Weights:
        path = self.directory.weights_path(state.best_round)
        return _load(path, "measured") or _load(path)

    def changes(self) -> Sequence[limits.Change]:
        return self.directory.changes()

    def note(self, state: model.RunState, number: int, change: limits.Change, told: str) -> None:
        if self._journal is None or any(each.seen.get("change") == number for each in self._journal.records()):
            return  # a crash between journal and state: it was heard already
        seen: dict[str, journal.Value] = {"change": number, "by": change.by, "rounds": len(state.rounds)}
        self._journal.append(
            journal.Record(at=change.at, subject=state.run_id, seen=seen, decided=dict(change.what), reason=told)
        )

    def stop_asked(self) -> bool:
        return self.directory.stop_asked() or self.directory.end_asked() is not None

    def end_asked(self) -> str | None:
        return None if self.directory.stop_asked() else self.directory.end_asked()

    def interrupted(self) -> bool:
        return False  # a directory does not know of the engine

    def beat(self) -> None:
        """Show that the controller lives."""
        _write(self.directory.path / "heartbeat", {"segment": self.segment, "pid": os.getpid(), "at": time.time()})

    def _check_fence(self) -> None:
        owner = (_read(self.directory.path / "fence") or {}).get("segment", 0)
        if owner > self.segment:
            raise errors.FederatedRunFailedError(f"segment {owner} has taken this run over from segment {self.segment}")

    def _forget_weights(self, keep: set[int]) -> None:
        for path in (self.directory.path / "rounds").glob("*.npz"):
            if int(path.stem) not in keep:
                path.unlink(missing_ok=True)


def _record(state: model.RunState, done: model.Round, target: model.Quality) -> journal.Record:
    target = replace(target, value=state.target)  # it may have been changed
    met = "target met" if target.met(done.value) else "below target" if target.higher_is_better else "above target"
    return journal.Record(
        at=state.updated_at,
        subject=state.run_id,
        seen={
            "round": done.number, "value": done.value, state.metric: done.value, "target": state.target,
            "loss": done.loss, "seconds": done.seconds, "samples": done.samples, "segment": done.segment,
            "node_s": done.node_s, "gigabytes": done.gigabytes, **_spent(state, done), **_expected(state),
            **({} if state.epsilon is None else {"epsilon": state.epsilon}),
        },
        decided={
            "asked": len(done.asked), "answered": len(done.answered), "late": len(done.late), "failed": done.failed,
            "epochs": max(done.epochs.values(), default=0), "least_epochs": min(done.epochs.values(), default=0),
            "sites": _names(done.answered),
        },
        reason=f"round {done.number}: {state.metric} {done.value:.4f}, {met}",
    )  # fmt: skip


MOST_NAMES = 20
"""Sites that a record names: with hundreds, the journal of a run would be made of names."""


def _names(sites: Sequence[str]) -> str:
    more = len(sites) - MOST_NAMES
    return ",".join(sites[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _spent(state: model.RunState, done: model.Round) -> dict[str, float]:
    """What the run has cost up to a round."""
    until = [each for each in state.rounds if each.number <= done.number]
    return {
        "spent_node_seconds": round(sum(each.node_s for each in until), 3),
        "spent_gigabytes": sum(each.gigabytes for each in until),
    }


def _expected(state: model.RunState) -> dict[str, Any]:
    """What was predicted after the last round, as plain numbers; null where there may be no end."""
    if state.forecast is None:
        return {}
    told = {name: state.forecast[name][1] for name in ("rounds", "seconds", "node_seconds", "gigabytes", "at_limit")}
    return {"chance": state.forecast["chance"], **{f"expected_{name}": number for name, number in told.items()}}


def _save(path: Path, **kinds: ports.Weights) -> None:
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **{f"{kind}_{i}": array for kind, arrays in kinds.items() for i, array in enumerate(arrays)})
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

"""Our round loop as an NVFlare workflow: the component that the server job instantiates from the job's configuration.

Loaded only inside the NVFlare server job.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

# Executed only by NVFlare, which has to see the base class when it loads this module.
from nvflare.apis.client import Client  # noqa: TID253
from nvflare.apis.controller_spec import ClientTask, Task  # noqa: TID253
from nvflare.apis.fl_context import FLContext  # noqa: TID253
from nvflare.apis.impl.controller import Controller  # noqa: TID253
from nvflare.apis.shareable import Shareable  # noqa: TID253
from nvflare.apis.signal import Signal  # noqa: TID253

from airflow_mlscale.federated import aggregation, controller, labels, limits, model, policy, ports, site_quality
from airflow_mlscale.federated.adapters import exchange, run_directory, server_model, site_labels, wire
from airflow_mlscale.federated.settings import RunSettings

Heard = TypeVar("Heard")
CHECK_S = 0.5
"""How often an open round looks for a stop; NVFlare's abort signal has no event to wait for."""
LATE_TASKS, LATE_BYTES = 24, 1e9
"""Closed rounds whose stragglers are still listened to: a slow site is told from a dead one by what it sends at last.
Fewer where the models that NVFlare keeps for them would take more memory, …"""
LEAST_LATE_TASKS = 3
"""… but so many in any case."""


class SegmentWorkflow(Controller):
    """Plays one segment of a run; its arguments are JSON from the job's configuration."""

    def __init__(self, run: dict[str, Any], segment: int, run_dir: str) -> None:
        super().__init__(task_check_period=0.1)
        self._run = RunSettings.from_json(run)
        self._segment = segment
        self._directory = run_directory.RunDirectory(Path(run_dir))
        self._writer = run_directory.RunWriter(self._directory, self._run.target, segment)
        if self._run.encrypted:
            from airflow_mlscale.federated.adapters import encryption  # its library is an extra

            encryption.register()

    def start_controller(self, fl_ctx: FLContext) -> None: ...

    def stop_controller(self, fl_ctx: FLContext) -> None: ...

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        self.log_info(fl_ctx, f"{client.name} answered after its round was closed")

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        ended = threading.Event()
        threading.Thread(target=self._show_life, args=(ended,), name="mlscale-heartbeat", daemon=True).start()
        try:
            state = self._segment_controller(abort_signal, fl_ctx).play()
        except Exception as exc:  # the cause must reach the run's state, whatever it is
            self.log_exception(fl_ctx, f"segment {self._segment} failed")
            state = controller.failed(self._directory.state(), self._run, self._segment, exc, time.time())
            if not abort_signal.triggered:
                self._writer.checkpoint(state)
        finally:
            ended.set()
        if state.status in (model.Status.FAILED, model.Status.INTERRUPTED):
            self.system_panic(f"run {self._run.run_id}: {state.reason}", fl_ctx)

    def _segment_controller(self, abort_signal: Signal, fl_ctx: FLContext) -> controller.SegmentController:
        evaluator = server_model.of(self._run)
        spoken = exchange.Exchange(self._run, evaluator.names() if self._run.client_script else None)
        return controller.SegmentController(
            run=self._run,
            segment=self._segment,
            sites=self._sites(abort_signal, fl_ctx, spoken),
            evaluator=evaluator,
            store=StoppableWriter(self._writer, abort_signal),
            output_dir=Path(self._run.output_dir or self._directory.path / "model"),
            now=time.time,
        )

    def _sites(self, abort_signal: Signal, fl_ctx: FLContext, spoken: exchange.Exchange) -> ports.Sites:
        if not self._run.encrypted:
            return NvflareSites(self, abort_signal, fl_ctx, self._writer, spoken, entries=self._run.sites)
        from airflow_mlscale.federated.adapters import encryption  # its library is an extra

        sites = NvflareSites(
            self, abort_signal, fl_ctx, self._writer, spoken, encryption.fault, entries=self._run.sites
        )
        return encryption.RevealedSites(sites, equal=self._run.privacy is not None)

    def _show_life(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self._writer.beat()
            ended.wait(self._run.heartbeat_s)


class StoppableWriter:
    """The run's store, which also hears the engine's abort."""

    def __init__(self, writer: run_directory.RunWriter, abort_signal: Signal) -> None:
        self._writer = writer
        self._abort_signal = abort_signal

    def begin(self, segment: int) -> tuple[model.RunState | None, ports.Weights | None]:
        return self._writer.begin(segment)

    def memory(self) -> ports.Weights:
        return self._writer.memory()

    def checkpoint(
        self,
        state: model.RunState,
        weights: ports.Weights | None = None,
        memory: ports.Weights = (),
        measured: ports.Weights = (),
    ) -> None:
        self._writer.checkpoint(state, weights, memory, measured)

    def best_weights(self, state: model.RunState) -> ports.Weights:
        return self._writer.best_weights(state)

    def changes(self) -> Sequence[limits.Change]:
        return self._writer.changes()

    def note(self, state: model.RunState, number: int, change: limits.Change, told: str) -> None:
        self._writer.note(state, number, change, told)

    def stop_asked(self) -> bool:
        return bool(self._abort_signal.triggered) or self._writer.stop_asked()

    def end_asked(self) -> str | None:
        return self._writer.end_asked()

    def interrupted(self) -> bool:
        """NVFlare fails a whole job when one site's process of it dies, whatever the quorum."""
        return bool(self._abort_signal.triggered) and not self._writer.directory.stop_asked()


class NvflareSites:
    """`ports.Sites` on NVFlare tasks: one broadcast task per round, closed by our policy."""

    def __init__(
        self,
        workflow: Controller,
        abort_signal: Signal,
        fl_ctx: FLContext,
        writer: run_directory.RunWriter,
        spoken: exchange.Exchange,
        fault: Callable[[model.SiteAnswer, ports.Weights], str | None] = aggregation.fault,
        entries: Sequence[str] | None = None,
    ) -> None:
        """`entries` choose the sites, by name or by label; None chooses all that are connected."""
        self._workflow = workflow
        self._abort_signal = abort_signal
        self._fl_ctx = fl_ctx
        self._writer = writer
        self._spoken = spoken
        self._fault = fault
        self._entries = entries
        self._late: collections.deque[model.SiteAnswer] = collections.deque()
        self._late_tasks = LATE_TASKS
        self._open: collections.deque[Task] = collections.deque()
        """Tasks whose rounds are closed, while late answers to them are welcome."""

    def names(self) -> Sequence[str]:
        engine = self._fl_ctx.get_engine()
        kit = Path(engine.get_workspace().get_root_dir())
        return labels.must_choose(self._entries, site_labels.known(engine.get_clients(), kit))

    def train(self, plan: policy.RoundPlan, weights: ports.Weights) -> list[model.SiteAnswer]:
        def labelled(elapsed_s: float, answer: model.SiteAnswer) -> model.SiteAnswer:
            epochs = plan.local_epochs.get(answer.site, 0)
            train_s = answer.train_s or elapsed_s  # of a script that does not tell, all of its time is training
            return replace(answer, train_s=train_s, elapsed_s=elapsed_s, number=plan.number, epochs=epochs)

        model_bytes = sum(float(array.nbytes) for array in weights)
        self._late_tasks = max(LEAST_LATE_TASKS, min(LATE_TASKS, int(LATE_BYTES / max(1.0, model_bytes))))
        answers = self.ask(
            wire.TASK,
            self._spoken.question(plan, weights),
            plan.asked,
            read=lambda site, result: self._judged(self._spoken.answer(site, result, weights), weights),
            left_s=lambda heard, elapsed_s: min(_left_s(plan, heard, elapsed_s), self._to_new_deadline_s()),
            came_late=lambda elapsed_s, answer: self._late.append(labelled(elapsed_s, answer)),
        )
        return [labelled(elapsed_s, answer) for elapsed_s, answer in answers]

    def late(self) -> list[model.SiteAnswer]:
        late = [self._late.popleft() for _ in range(len(self._late))]  # answers keep coming from NVFlare's threads
        return [answer for answer in late if answer.error is None]

    def returned(self) -> Sequence[str]:
        return self._writer.directory.returned(self._writer.segment)

    def ask(
        self,
        task_name: str,
        question: Shareable,
        targets: Sequence[str],
        *,
        read: Callable[[str, Shareable], Heard],
        left_s: Callable[[Sequence[tuple[float, Heard]], float], float],
        came_late: Callable[[float, Heard], None] | None = None,
    ) -> list[tuple[float, Heard]]:
        """Send a task to sites and hear them, until no seconds are left or the run is told to stop.

        Args:
            task_name: of the task.
            question: its data.
            targets: sites that get it.
            read: makes something of a site's result.
            left_s: seconds to wait on, of what was heard until now (with its time) and the seconds since the start.
            came_late: is told what is heard after that; the task then stays open for `LATE_TASKS` more tasks, for those
                who have it. Without it the task is over, and NVFlare's clients drop what they still make of it.
        """
        heard = threading.Condition()
        answers: list[tuple[float, Heard]] = []
        closed = threading.Event()
        started = time.monotonic()

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            result, client_task.result = client_task.result, None
            answer = read(client_task.client.name, result)
            with heard:
                at = time.monotonic() - started
                if closed.is_set() and came_late:
                    came_late(at, answer)
                else:
                    answers.append((at, answer))
                    heard.notify()

        task = Task(name=task_name, data=question, result_received_cb=received)
        self._workflow.broadcast(task=task, fl_ctx=self._fl_ctx, targets=list(targets), min_responses=0)
        try:
            with heard:
                while (left := left_s(answers, time.monotonic() - started)) > 0 and not self.stopped():
                    heard.wait(min(left, CHECK_S))
                closed.set()
                return list(answers)
        finally:
            self._leave(task, open_for_late=came_late is not None and len(answers) < len(targets))

    def _leave(self, task: Task, *, open_for_late: bool) -> None:
        """Cancel a task, at once or a few tasks later; nobody fetches it any more, to train for an older round."""
        fetched = [sent.client.name for sent in list(task.client_tasks)]
        if open_for_late and fetched and not self.stopped():
            task.targets = fetched
            self._open.append(task)
        else:
            self._workflow.cancel_task(task, fl_ctx=self._fl_ctx)
        self._open = collections.deque(each for each in self._open if each.completion_status is None)
        while self._open and (len(self._open) > self._late_tasks or self.stopped()):
            self._workflow.cancel_task(self._open.popleft(), fl_ctx=self._fl_ctx)

    def _judged(self, answer: model.SiteAnswer, sent: ports.Weights) -> model.SiteAnswer:
        """At once and not after the round: a bad answer must not count as one of the quorum."""
        fault = self._fault(answer, sent) or site_quality.fault(self._spoken.run, answer)
        return aggregation.refused(answer, fault)

    def _to_new_deadline_s(self) -> float:
        """Seconds to a deadline that was changed, perhaps since the round was planned; infinite if none was."""
        changed = [each.what["deadline_at"] for each in self._writer.changes() if "deadline_at" in each.what]
        return inf if not changed or changed[-1] is None else max(0.0, changed[-1] - time.time())

    def stopped(self) -> bool:
        """Whether the run is told to stop."""
        return bool(self._abort_signal.triggered) or self._writer.stop_asked()


def _left_s(plan: policy.RoundPlan, answers: Sequence[tuple[float, model.SiteAnswer]], elapsed_s: float) -> float:
    good = [at for at, answer in answers if answer.error is None]
    return policy.seconds_to_close(plan, answered_after_s=good, failed=len(answers) - len(good), elapsed_s=elapsed_s)

"""Our round loop as an NVFlare workflow: the component that the server job instantiates from the job's configuration.

Loaded only inside the NVFlare server job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Executed only by NVFlare, which has to see the base class when it loads this module.
from nvflare.apis.client import Client  # noqa: TID253
from nvflare.apis.controller_spec import ClientTask, Task  # noqa: TID253
from nvflare.apis.fl_constant import ReturnCode  # noqa: TID253
from nvflare.apis.fl_context import FLContext  # noqa: TID253
from nvflare.apis.impl.controller import Controller  # noqa: TID253
from nvflare.apis.shareable import Shareable  # noqa: TID253
from nvflare.apis.signal import Signal  # noqa: TID253
from nvflare.app_common.abstract.fl_model import FLModel  # noqa: TID253
from nvflare.app_common.utils.fl_model_utils import FLModelUtils  # noqa: TID253

from airflow_mlscale.federated import aggregation, controller, model, policy, ports
from airflow_mlscale.federated.adapters import keras_model, run_directory, wire
from airflow_mlscale.federated.settings import RunSettings

CHECK_S = 0.5
"""How often an open round looks for a stop; NVFlare's abort signal has no event to wait for."""


class SegmentWorkflow(Controller):
    """Plays one segment of a run; its arguments are JSON from the job's configuration."""

    def __init__(self, run: dict[str, Any], segment: int, run_dir: str) -> None:
        super().__init__(task_check_period=0.1)
        self._run = RunSettings.from_json(run)
        self._segment = segment
        self._directory = run_directory.RunDirectory(Path(run_dir))
        self._writer = run_directory.RunWriter(self._directory, self._run.target, segment)

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
        return controller.SegmentController(
            run=self._run,
            segment=self._segment,
            sites=NvflareSites(self, abort_signal, fl_ctx, self._writer),
            evaluator=keras_model.KerasEvaluator(self._run),
            store=StoppableWriter(self._writer, abort_signal),
            output_dir=Path(self._run.output_dir or self._directory.path / "model"),
            now=time.time,
        )

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
        self, state: model.RunState, weights: ports.Weights | None = None, memory: ports.Weights = ()
    ) -> None:
        self._writer.checkpoint(state, weights, memory)

    def best_weights(self, state: model.RunState) -> ports.Weights:
        return self._writer.best_weights(state)

    def stop_asked(self) -> bool:
        return bool(self._abort_signal.triggered) or self._writer.stop_asked()

    def interrupted(self) -> bool:
        """NVFlare fails a whole job when one site's process of it dies, whatever the quorum."""
        return bool(self._abort_signal.triggered) and not self._writer.stop_asked()


class NvflareSites:
    """`ports.Sites` on NVFlare tasks: one broadcast task per round, closed by our policy."""

    def __init__(
        self, workflow: Controller, abort_signal: Signal, fl_ctx: FLContext, writer: run_directory.RunWriter
    ) -> None:
        self._workflow = workflow
        self._abort_signal = abort_signal
        self._fl_ctx = fl_ctx
        self._writer = writer

    def names(self) -> Sequence[str]:
        return sorted(client.name for client in self._fl_ctx.get_engine().get_clients())

    def train(self, plan: policy.RoundPlan, weights: ports.Weights) -> list[model.SiteAnswer]:
        heard = threading.Condition()
        answers: list[tuple[float, model.SiteAnswer]] = []
        started = time.monotonic()

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answer = _answer(client_task, weights)
            with heard:
                answers.append((time.monotonic() - started, answer))
                heard.notify()

        task = Task(name=wire.TASK, data=_question(plan, weights), result_received_cb=received)
        self._workflow.broadcast(task=task, fl_ctx=self._fl_ctx, targets=list(plan.asked), min_responses=0)
        try:
            with heard:
                while (left_s := _left_s(plan, answers, time.monotonic() - started)) > 0 and not self._stopped():
                    heard.wait(min(left_s, CHECK_S))
                return [answer for _, answer in answers]
        finally:
            self._workflow.cancel_task(task, fl_ctx=self._fl_ctx)

    def _stopped(self) -> bool:
        return bool(self._abort_signal.triggered) or self._writer.stop_asked()


def _left_s(plan: policy.RoundPlan, answers: Sequence[tuple[float, model.SiteAnswer]], elapsed_s: float) -> float:
    good = [at for at, answer in answers if answer.error is None]
    return policy.seconds_to_close(plan, answered_after_s=good, failed=len(answers) - len(good), elapsed_s=elapsed_s)


def _question(plan: policy.RoundPlan, weights: ports.Weights) -> Shareable:
    meta = {wire.EPOCHS: plan.local_epochs, wire.BATCH: plan.batch_size}
    return FLModelUtils.to_shareable(FLModel(params=wire.pack(weights), current_round=plan.number, meta=meta))


def _answer(client_task: ClientTask, sent: ports.Weights) -> model.SiteAnswer:
    site = client_task.client.name
    result, client_task.result = client_task.result, None
    if (code := result.get_return_code()) and code != ReturnCode.OK:
        return model.SiteAnswer(
            site=site, error=controller.LOST if code == ReturnCode.EXECUTION_EXCEPTION else str(code)
        )
    found = FLModelUtils.from_shareable(result)
    if error := found.meta.get(wire.ERROR):
        return model.SiteAnswer(site=site, error=str(error)[:1000])
    answer = model.SiteAnswer(
        site=site, samples=found.meta.get(wire.SAMPLES, 0), loss=found.meta.get(wire.LOSS),
        train_s=float(found.meta.get(wire.SECONDS, 0.0)), weights=wire.unpack(found.params),
    )  # fmt: skip
    return aggregation.refused(answer, aggregation.fault(answer, sent))  # now: a bad answer is none of a quorum's

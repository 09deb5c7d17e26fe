"""The last step of a request: its answer, or why there is none; each is given once, and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from airflow_mlscale.roma import line, measurement, model, request

Outcome = measurement.Outcome


class Answering:
    """Answers the requests of one line."""

    def __init__(self, own: line.Line[request.Request], retry_after_s: Callable[[], float]) -> None:
        self.recent: deque[float] = deque(maxlen=50)
        """Latest response times, for the paper's H1."""
        self._line = own
        self._retry_after_s = retry_after_s

    def answer(self, one: request.Request, answer: model.Answer, now: float) -> None:
        """The model has answered."""
        if one.gone:
            return
        latency_s = now - one.arrived
        self.recent.append(latency_s)
        meter = self._line.meter
        if answer.status < 400:
            meter.record(now, Outcome.SERVED, latency_s, nan=answer.nan)
        elif answer.status < 500:
            meter.record(now, Outcome.INVALID, latency_s)
        else:
            meter.record(now, Outcome.FAILED, max(latency_s, one.give_up - one.arrived), "model")
        one.answer.set_result(answer)

    def give_up(
        self,
        one: request.Request,
        now: float,
        why: str = "",
        *,
        outcome: Outcome = Outcome.SHED,
        status: int = 503,
        reason: str = "late",
    ) -> None:
        """It will not be answered.

        Args:
            one: the request.
            now: on the monotonic clock.
            why: for the client; by default that it is too late.
            outcome: shed, or failed.
            status: of HTTP.
            reason: in one word, for counting.
        """
        if one.gone:
            return
        budget_s = one.give_up - one.arrived
        why = why or f"it cannot be answered within {1000 * budget_s:.0f} ms"
        self._line.meter.record(now, outcome, budget_s, reason)
        waited_ms = 1000 * (now - one.arrived)
        told = f"model {self._line.spec.name!r} gave the request up after {waited_ms:.0f} ms: {why}"
        one.answer.set_exception(request.RefusedError(told, status=status, retry_after_s=self._retry_after_s()))

    def fail(self, one: request.Request, now: float, why: str) -> None:
        """Its worker ended, and no other one can answer in time."""
        self.give_up(one, now, why, outcome=Outcome.FAILED, reason="worker_ended")

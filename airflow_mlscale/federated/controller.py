"""The round loop of one segment: observe → decide → act, on ports.

Runs inside the federation's server job. It starts at the last complete round, makes every round durable before
the next begins, and ends when `stopping.verdict` says so or somebody asks it to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import (
    account,
    curve,
    faults,
    forecast,
    limits,
    model,
    policies,
    policy,
    ports,
    renewal,
    server_step,
    site_quality,
    sites,
    stopping,
)
from airflow_mlscale.federated.settings import RunSettings

log = logging.getLogger(__name__)

LATEST_ROUNDS = 8
"""An answer to an older round teaches nothing any more."""


@dataclass
class SegmentController:
    """One segment of one run."""

    run: RunSettings
    segment: int
    sites: ports.Sites
    evaluator: ports.Evaluator
    store: ports.RunStore
    output_dir: Path
    now: Callable[[], float]
    """Wall time in seconds since the epoch."""
    simulated: bool = False
    """Whether this federation is one in name only; its results say so."""
    _names: frozenset[str] = field(init=False, default=frozenset())
    _forecast: forecast.Forecast | None = field(init=False, default=None)
    _last_round_s: float | None = field(init=False, default=None)
    _trained: Sequence[bool] = field(init=False, default=())
    _memory: ports.Weights = field(init=False, default=())
    _began_at: float = field(init=False, default=0.0)
    _back_at: int = field(init=False, default=0)
    """Rounds that were done when the run last went back to its best model."""
    _blamed: int = field(init=False, default=0)
    """Rounds in a row in which nobody answered but with an error of the user's code."""
    _sent: dict[int, ports.Weights] = field(init=False, default_factory=dict)
    """What the sites were given in the last rounds."""

    def play(self) -> model.RunState:
        """Play rounds to the end of the run; returns its last durable state."""
        state, weights = self._resume()
        while not (decided := self._verdict(state := self._heard(state))).ends:
            if self.store.stop_asked():
                decided = self._stopped(state)
                break
            if why := renewal.wanted(self.run, state, self.sites.returned(), now=self.now(), began_at=self._began_at):
                state = replace(state, renewals=state.renewals + (not why.counts_as_loss), reason="")
                decided = stopping.Verdict(model.Status.INTERRUPTED, why.reason)
                break
            state, weights, failure = self._round(state, weights)
            if failure:
                decided = stopping.Verdict(model.Status.FAILED, failure)
                break
        return self._end(state, decided)

    def _heard(self, state: model.RunState) -> model.RunState:
        """Take over limits and target that were changed, and judge the run by them anew: old doubts say nothing."""
        changes = self.store.changes()[state.changes :]
        if not changes:
            return state
        for number, change in enumerate(changes, state.changes + 1):
            told = limits.told(change, self.run)
            log.info("run %s: %s", self.run.run_id, told)
            self.store.note(state, number, change, told)
            self.run = limits.held(self.run, [change])
        self._forecast = forecast.predict(self.run, state, now=self.now())
        state = replace(self._with_limits(state), changes=state.changes + len(changes), doubts=0)
        state = stopping.with_forecast(state, self._forecast)
        self._save(state)
        return state

    def _with_limits(self, state: model.RunState) -> model.RunState:
        return replace(
            state, target=self.run.target.value, deadline_at=self.run.deadline_at, max_rounds=self.run.max_rounds
        )

    def _verdict(self, state: model.RunState) -> stopping.Verdict:
        decided, secret = stopping.verdict(self.run, state, now=self.now(), seen=self._forecast), self.run.privacy
        if decided.ends or secret is None or not account.exhausted(secret, state.rounds):
            return decided
        ended = model.Status.LIMIT if state.rounds else model.Status.FAILED
        return stopping.Verdict(ended, f"one more round could exceed max_epsilon={secret.max_epsilon:g}")

    def _stopped(self, state: model.RunState) -> stopping.Verdict:
        if self.store.interrupted():
            return stopping.Verdict(model.Status.INTERRUPTED, "the engine ended the job: one of its processes died")
        if (why := self.store.end_asked()) is not None:
            return stopping.ended_on_request(state, why)
        return stopping.Verdict(model.Status.ABORTED, "asked to stop")

    def _resume(self) -> tuple[model.RunState, ports.Weights]:
        self._began_at = self.now()
        state, weights = self.store.begin(self.segment)
        if state is None:
            state = model.RunState(
                run_id=self.run.run_id, metric=self.run.target.metric, started_at=self.now(), simulated=self.simulated
            )
            state = self._with_limits(state)
        self.run = limits.held(self.run, self.store.changes()[: state.changes])
        state = replace(state, status=model.Status.RUNNING, reason="", segment=self.segment, failed_rounds=0)
        self._names = frozenset(self.sites.names())
        state = replace(state, sites=sites.merged(state.sites, sites.present(state.sites, self._names)))
        self._forecast = forecast.predict(self.run, state, now=self.now())
        self._save(state)
        self._trained = self.evaluator.trained() if server_step.needs_trained(self.run) else ()
        self._memory = () if self.run.server_optimiser.plain else self.store.memory()
        log.info(
            "run %s segment %d: %d sites, %d rounds done",
            self.run.run_id,
            self.segment,
            len(self._names),
            len(state.rounds),
        )
        return state, self.evaluator.initial_weights() if weights is None else weights

    def _round(self, state: model.RunState, weights: ports.Weights) -> tuple[model.RunState, ports.Weights, str | None]:
        started = self.now()
        plan = policies.plan_round(self.run, self._seen(state))
        sent = server_step.to_send(self.run, weights, self._memory)
        answers = server_step.believed(self.run, self.sites.train(plan, sent), sent, trained=self._trained)
        for answer in answers:
            if answer.error:
                log.warning("round %d: %s: %s", plan.number, answer.site, answer.error)
        closed_s = self.now() - started
        state = self._observed(state, plan, answers, sent, closed_s)
        state, late = self._late(state, plan, answers, sent)
        self._blamed = self._blamed + 1 if faults.blames_code(answers) else 0
        if not policy.counts(plan, answers):
            if self.store.stop_asked():  # the round was cut short on purpose
                return state, weights, None
            failure = faults.lasting(self.run, state, plan, answers, in_a_row=self._blamed)
            return self._uncounted(state, plan, answers), weights, failure
        self._last_round_s = closed_s
        weights, self._memory = server_step.step(
            self.run, [*answers, *late], weights, self._memory, trained=self._trained
        )
        by_sites = self.run.measured_by_sites
        seen = site_quality.combined(self.run, answers) if by_sites else self.evaluator.evaluate(weights)
        state = policy.with_round(state, self.run.target, self._done(state, plan, answers, late, seen, started))
        self._forecast = forecast.predict(self.run, state, now=self.now())
        state = stopping.with_forecast(state, self._forecast)
        if self.run.privacy is not None:
            state = replace(state, epsilon=account.spent(self.run.privacy, state.rounds).epsilon)
        weights = self._brought_back(state, weights)
        self._save(state, weights, sent if by_sites else ())
        done = state.rounds[-1]
        counts = f"{len(done.answered)} of {len(done.asked)} sites, {done.seconds:.1f} s"
        log.info("round %d: %s %.4f, %s; %s", done.number, state.metric, done.value, counts, plan.reason)
        return replace(state, updated_at=self.now()), weights, None

    def _brought_back(self, state: model.RunState, weights: ports.Weights) -> ports.Weights:
        """The weights to go on from: those of the best round, without momentum, if the run has gone astray."""
        if self.run.server_optimiser.plain or state.best_round == state.rounds[-1].number:
            return weights
        if not stopping.astray(self.run.target, state.values[self._back_at :]):
            return weights
        log.warning(
            "run %s went astray at %s %s; back to round %d", state.run_id, state.metric, state.value, state.best_round
        )
        self._memory, self._back_at = (), len(state.rounds)
        return self.store.best_weights(state)

    def _seen(self, state: model.RunState) -> policy.Seen:
        return policy.Seen(
            state=state,
            sites=tuple(site for site in state.sites if site.name in self._names),
            now=self.now(),
            last_round_s=self._last_round_s,
            forecast=self._forecast,
        )

    def _observed(
        self,
        state: model.RunState,
        plan: policy.RoundPlan,
        answers: Sequence[model.SiteAnswer],
        sent: ports.Weights,
        closed_s: float,
    ) -> model.RunState:
        after = sites.remember(
            state.sites,
            number=plan.number,
            epochs=plan.local_epochs,
            answers=answers,
            open_s=closed_s,
            starting=self._last_round_s is None,
            model_gigabytes=_gigabytes(sent),
        )
        return replace(state, sites=after)

    def _late(
        self,
        state: model.RunState,
        plan: policy.RoundPlan,
        answers: Sequence[model.SiteAnswer],
        sent: ports.Weights,
    ) -> tuple[model.RunState, list[model.SiteAnswer]]:
        """Learn from answers to closed rounds, and make those that may count answers to this one."""
        heard = self.sites.late()
        known = {answer.site for answer in answers if answer.error is None}
        usable = [
            server_step.caught_up(answer, self._sent[answer.number], sent, rounds_late=plan.number - answer.number)
            for answer in heard
            if self.run.uses_late_answers and answer.site not in known and self._believed_late(answer)
        ]
        self._sent = {number: was for number, was in self._sent.items() if number > plan.number - LATEST_ROUNDS}
        self._sent[plan.number] = sent
        after = sites.remember_late(
            state.sites, heard, used=self.run.uses_late_answers, model_gigabytes=_gigabytes(sent)
        )
        return replace(state, sites=after), usable

    def _believed_late(self, answer: model.SiteAnswer) -> bool:
        was = self._sent.get(answer.number)
        if was is None or answer.error is not None:
            return False
        return server_step.believed(self.run, [answer], was, trained=self._trained)[0].error is None

    def _done(
        self,
        state: model.RunState,
        plan: policy.RoundPlan,
        answers: Sequence[model.SiteAnswer],
        late: Sequence[model.SiteAnswer],
        seen: Mapping[str, Any],
        started: float,
    ) -> model.Round:
        """The record of a complete round; what it cost is what the sites' records grew by since the last one."""
        good = sorted((answer for answer in answers if answer.error is None), key=lambda answer: answer.site)
        epochs = [*(plan.local_epochs.get(answer.site, 1) for answer in good), *(each.epochs for each in late)]
        work = curve.effort(epochs=sum(epochs) / max(1, len(epochs)), answers=len(epochs), sites=len(self._names))
        return model.Round(
            number=plan.number, value=seen[self.run.target.metric], loss=seen["loss"], asked=plan.asked,
            answered=tuple(answer.site for answer in good), samples=sum(answer.samples for answer in good),
            seconds=round(self.now() - started, 3), segment=self.segment, epochs=plan.local_epochs,
            late=tuple(sorted(answer.site for answer in late)), effort=work,
            failed=sum(answer.error is not None for answer in answers),
            node_s=round(state.node_seconds - sum(done.node_s for done in state.rounds), 3),
            compute_s=round(sum(answer.train_s for answer in good), 3),
            gigabytes=state.gigabytes - sum(done.gigabytes for done in state.rounds),
        )  # fmt: skip

    def _uncounted(
        self, state: model.RunState, plan: policy.RoundPlan, answers: Sequence[model.SiteAnswer]
    ) -> model.RunState:
        told = "; ".join(f"{answer.site}: {answer.error}" for answer in answers if answer.error)
        good = sum(answer.error is None for answer in answers)
        reason = f"round {plan.number} got {good} of {plan.quorum} answers" + (f" ({told})" if told else "")
        log.warning("%s", reason)
        state = replace(state, failed_rounds=state.failed_rounds + 1, reason=reason[:2000])
        self._save(state)
        return state

    def _end(self, state: model.RunState, decided: stopping.Verdict) -> model.RunState:
        reason = decided.reason
        if decided.status == model.Status.INTERRUPTED and state.reason:
            reason = f"{reason}; {state.reason}"
        if decided.status.usable and state.rounds:
            self._save(replace(state, status=model.Status.EXPORTING, reason=reason))
            exported = self.evaluator.export(self.store.best_weights(state), self.output_dir)
            state = replace(
                state, saved_model=exported.saved_model, keras_model=exported.keras_model,
                weights_file=exported.weights_file,
            )  # fmt: skip
        state = replace(state, status=decided.status, reason=reason)
        self._save(state)
        log.info("run %s: %s, %s", self.run.run_id, state.status, reason)
        return state

    def _save(self, state: model.RunState, weights: ports.Weights | None = None, measured: ports.Weights = ()) -> None:
        self.store.checkpoint(replace(state, updated_at=self.now()), weights, self._memory, measured)


def _gigabytes(weights: ports.Weights) -> float:
    return sum(float(array.nbytes) for array in weights) / 1e9


def failed(
    state: model.RunState | None, run: RunSettings, segment: int, exc: BaseException, now: float
) -> model.RunState:
    """The state of a run whose segment raised: bad input fails the run, after anything else it may be resumed."""
    lasting = isinstance(exc, errors.MlscaleError) and not exc.retryable
    base = state or model.RunState(run_id=run.run_id, metric=run.target.metric, target=run.target.value, started_at=now)
    status = model.Status.FAILED if lasting else model.Status.INTERRUPTED
    return replace(base, status=status, reason=faults.raised(exc), segment=segment, updated_at=now)

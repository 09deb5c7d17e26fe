"""A task whose driver runs in the cluster: submitted once, taken up again by retries, concluded when it has ended."""

from __future__ import annotations

import logging
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
from airflow_mlscale.operators import promises
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark import ticket as tickets
from airflow_mlscale.spark.adapters import profile_store
from airflow_mlscale.spark.ports import RemoteState
from airflow_mlscale.spark.ticket import Ticket

log = logging.getLogger(__name__)

SUBMISSION_KEY = "mlscale_spark_submission"


def taken_up(context: Any, hook: DeadlineSparkSubmitHook) -> Ticket | None:
    """What an earlier try of this task has submitted, if it runs or has succeeded.

    Raises:
        UnreachableError: the cluster does not answer; submitting now could make two of one.
    """
    store = context.get("task_state_store")
    kept = store.get(SUBMISSION_KEY) if store is not None else None
    if not kept:
        return None
    try:
        ticket = tickets.from_json(kept["ticket"])
    except errors.InvalidInputError as exc:
        log.warning("%s", exc)
        return None
    return hook.take_up(ticket, resume=kept["life"] == promises.life(context))


def submitted(context: Any) -> bool:
    """Whether an application that was submitted has not been concluded."""
    store = context.get("task_state_store")
    return store is not None and bool(store.get(SUBMISSION_KEY))


def keep(context: Any, ticket: Ticket) -> None:
    """Let a retry find the submission."""
    store = context.get("task_state_store")
    if store is not None:
        store.set(SUBMISSION_KEY, {"life": promises.life(context), "ticket": ticket.to_json()})


def concluded(context: Any, event: dict[str, Any]) -> None:
    """Learn from a run that succeeded, and let a retry submit anew after one that did not.

    Raises:
        SparkJobFailedError: the application failed, was ended, or is lost.
        TransientError: control had to give up, and the application may still run: a retry takes it up.
        MlscaleError: control had to give up for good.
    """
    state, reason = event["state"], event["reason"]
    if state == "error" and event["retryable"]:
        raise errors.TransientError(reason)
    if state == "error":  # nobody knows that the application is over: who runs this task again finds it, and ends it
        raise errors.MlscaleError(reason)
    store = context.get("task_state_store")
    if store is not None:
        store.delete(SUBMISSION_KEY)
    if state != RemoteState.SUCCEEDED:
        raise errors.SparkJobFailedError(f"the application did not succeed: {reason}")
    _learn(tickets.from_json(event["submission"]), event["learned"])


def _learn(ticket: Ticket, learned: dict[str, Any] | None) -> None:
    plan = profiles.from_json(learned).plans[0] if learned else None
    try:
        store = profile_store.ProfileFiles(ticket.profile_folder)
    except errors.MlscaleError as exc:  # the work is done, as in `runs.learn`
        log.warning("%s; nothing was learned from this run of %s", exc, ticket.profile_key)
        return
    runs.learn(store, ticket.profile_key, plan, rate=ticket.settings.learning_rate)

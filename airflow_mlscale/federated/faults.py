"""What sites say when they cannot train, and when that shows that no further try helps. Pure.

Belongs here: the words of an error, and whether the user's code is at fault. Does not belong here: answers that are
not believed (`aggregation`), and what is known of a site (`sites`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_mlscale.federated import model, policy
from airflow_mlscale.federated.settings import RunSettings

LOST = "its trainer is gone"
"""The error of a site whose trainer process died: not the fault of the user's code, a new segment may help."""
LONGEST = 1000
"""Letters of one error."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_KERAS_TRAILER = re.compile(r"\s*Arguments received by [^\n]*\n.*", re.DOTALL)
"""Keras ends its errors with the arguments of the layer's call, several lines of tensors."""


def worded(text: object) -> str:
    """An error as one line: without colours of a terminal, without what Keras adds about a call's arguments."""
    plain = _KERAS_TRAILER.sub("", _ESCAPES.sub("", str(text)))
    return " ".join(plain.split())[:LONGEST]


def raised(exc: BaseException) -> str:
    """An exception as one line, its kind first."""
    return worded(f"{type(exc).__name__}: {exc}")


def blames_code(answers: Sequence[model.SiteAnswer]) -> bool:
    """Whether sites answered, and all of them with an error that is no loss of their trainer."""
    return bool(answers) and all(answer.error is not None and answer.error != LOST for answer in answers)


def lasting(
    run: RunSettings,
    state: model.RunState,
    plan: policy.RoundPlan,
    answers: Sequence[model.SiteAnswer],
    *,
    in_a_row: int,
) -> str | None:
    """What the sites said, if no new try helps; None if one may.

    Errors of everybody who was asked show it at once. While no site has ever trained for the run, as many as the quorum
    do too, for who was silent would have said the same, and fewer after `max_failed_rounds` such rounds.

    Args:
        run: settings.
        state: with what is known of the sites after this round.
        plan: of the round.
        answers: to it.
        in_a_row: rounds up to this one, of the same segment, of which `blames_code` held.
    """
    if not blames_code(answers):
        return None
    never_trained = not any(site.answered for site in state.sites)
    enough = never_trained and (len(answers) >= plan.quorum or in_a_row >= run.max_failed_rounds)
    if len(answers) < len(plan.asked) and not enough:
        return None
    told = "; ".join(f"{answer.site}: {answer.error}" for answer in answers)
    return f"no site could train: {told}"[:4000]

"""Fixed cohorts and fixed epochs: what a federation does without a controller. Rivals, and simple choices.

`fedavg` is McMahan et al., AISTATS 2017, as most engines run it: a random cohort, everybody in it is waited for until
the round's timeout. `over_selection` is Bonawitz et al., MLSys 2019, §4.2: more sites are asked than are waited for.
"""

from __future__ import annotations

import random
from math import ceil, inf

from airflow_mlscale.federated import policy
from airflow_mlscale.federated.settings import RunSettings

SILENT_AFTER = 1
"""Unanswered rounds in a row after which a site no longer counts for what is `enough`; it is still asked."""


def draw(run: RunSettings, seen: policy.Seen) -> random.Random:
    """The random choices of one round: the same for the same seed and round."""
    return random.Random(f"{run.seed}/{seen.number}")  # noqa: S311 - a reproducible choice, not a secret


def fedavg(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
    """Ask a random cohort and wait for all of it."""
    names = [site.name for site in seen.sites]
    draw(run, seen).shuffle(names)
    asked = names[: run.cohort or len(names)]
    epochs = dict.fromkeys(asked, run.local_epochs or 1)
    return policy.plan(run, seen, epochs, enough=len(asked), patience_s=inf)


def over_selection(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
    """Ask more sites than are waited for.

    Without a cohort everybody is asked and ``n / over_selection`` answers are enough; with a cohort K,
    ``K · over_selection`` sites are asked and K answers are enough. Silent sites are asked last and not counted on.
    """
    lively = [site.name for site in seen.sites if site.unanswered < SILENT_AFTER]
    silent = [site.name for site in seen.sites if site.unanswered >= SILENT_AFTER]
    chance = draw(run, seen)
    chance.shuffle(lively)
    chance.shuffle(silent)
    if run.cohort is None:
        asked = lively + silent
        enough = ceil(len(lively) / run.over_selection)
    else:
        asked = (lively + silent)[: ceil(run.cohort * run.over_selection)]
        enough = min(run.cohort, sum(name in lively for name in asked))
    return policy.plan(run, seen, dict.fromkeys(asked, run.local_epochs or 1), enough=enough)

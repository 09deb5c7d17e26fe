"""An Oort-style selector: sites that are statistically useful and fast, and some that are not known yet.

Lai et al., *Oort: Efficient Federated Learning via Guided Participant Selection*, OSDI 2021, §4: utility of a site is
U_i·√n_i plus a term for how long ago it was seen, times (T/T_i)^α where it is slower than the preferred duration T;
utilities are clipped at their 95th percentile; a share ε of the cohort explores. Over-selection of 1.3 as there. Its
pacer, which lets T grow when the cohort teaches less, is kept in one rule: T is a quantile of the known durations
that rises with each round without a new best value.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log, sqrt

from airflow_mlscale.federated import policy, static
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site

PENALTY = 2.0
"""The paper's α."""
EXPLORATION, EXPLORATION_DECAY, LEAST_EXPLORATION = 0.9, 0.98, 0.2
OVER_SELECTION = 1.3
PREFERRED_QUANTILE, PACE = 0.5, 0.05
CLIP_QUANTILE = 0.95


def plan(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
    """Ask 1.3·K sites, explored ones among them; K answers are enough."""
    wanted = run.cohort or len(seen.sites)
    epochs = run.local_epochs or 1
    asked = min(len(seen.sites), ceil(OVER_SELECTION * wanted))
    chance = static.draw(run, seen)
    fresh = [site for site in seen.sites if not site.known]
    known = [site for site in seen.sites if site.known]
    chance.shuffle(fresh)
    share = max(LEAST_EXPLORATION, EXPLORATION * EXPLORATION_DECAY ** (seen.number - 1))
    explored = fresh[: max(asked - len(known), min(len(fresh), round(share * asked)))]
    ranked = sorted(known, key=_utilities(known, epochs, seen), reverse=True)
    chosen = explored + ranked[: asked - len(explored)]
    return policy.plan(run, seen, {site.name: epochs for site in chosen}, enough=min(wanted, len(chosen)))


def _utilities(known: list[Site], epochs: int, seen: policy.Seen) -> Callable[[Site], float]:
    times = sorted(site.expected_s(epochs) or 0.0 for site in known)
    idle = seen.state.rounds[-1].number - seen.state.best_round if seen.state.rounds else 0
    preferred_s = _at(times, PREFERRED_QUANTILE + PACE * idle)
    most = _at(sorted(site.utility for site in known), CLIP_QUANTILE)

    def utility(site: Site) -> float:
        useful = min(site.utility, most) / (most or 1.0)
        useful += sqrt(0.1 * log(max(2, seen.number)) / max(1, site.last_answered))
        seconds = site.expected_s(epochs) or 0.0
        return useful * (preferred_s / seconds) ** PENALTY if seconds > preferred_s else useful

    return utility


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0

"""Our policy: small rounds that visit every site in turn, as long as they must be and no longer.

What it rests on was measured, on non-iid federations with a server momentum β (`ADVICE`): the momentum remembers
1/(1 − β) rounds, so a cohort of a quarter of the sites steers the model by the data of nearly all of them *if it
visits them in turn*; the rounds to a quality then hardly depend on the cohort's size, while their cost does. From
there:

* **Epochs.** Rounds fall with the epochs as E^{−γ}, a round lasts c + b·E; their product is least at
  E = γ/(1 − γ) · c/b. It is the same for time and cost, and it needs only the medians of c and b.
* **Cohort.** Of the sites, those whose model is oldest, per second that they cost: of all durations T that some site
  needs, take the T for which the K best sites that need no longer give the most freshness, Σ age·p, per second. A slow
  site is old before it is worth its wait, and then other slow sites come along, as their wait is already paid.
* **Epochs of a site.** As many as E, fewer for the slow; in a hurry more for those that would wait for others.
* **Over-selection** by reliability: enough sites are asked for K answers on average, more in a hurry.
* **Waiting.** For all until the slowest is overdue; once `SUFFICIENT` of them have answered, for the rest only a part
  of the time so far: one answer of K is worth about 1/K of a round.
* **Struggle.** A run that found no better model for a while gets up to twice the cohort and the epochs: what keeps it
  from its target then is the noise of small rounds.
* **Hurry** is the objective ``time``, or a limit that the forecast does not clear with `MARGIN`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, inf
from statistics import median

from airflow_mlscale.federated import policy, static
from airflow_mlscale.federated.combination import FEDAVG, ServerOptimiser
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import OVERDUE, Site

ADVICE = ServerOptimiser(name="fedavgm", momentum=0.8, averaging=0.5)
"""The server optimiser that the law counts on."""
COHORT_SHARE = 0.25
"""K ÷ sites."""
LEAST_COHORT = 3
GAMMA = 0.35
"""Rounds to a quality fall with the local epochs to this power."""
FIRST_EPOCHS = 2
"""While no speed is known."""
SUFFICIENT = 0.6
"""Part of the expected answers after which stragglers only get a grace time."""
MARGIN = 1.3
"""Predicted ÷ allowed, above which a run hurries."""
PATIENT_ROUNDS, STRUGGLING_ROUNDS = 8, 16
"""After so many rounds without a better model the effort of a round grows, to twice itself after so many more."""
SLOW = 2.0
"""Sites whose round lasts longer than so many typical ones train fewer epochs, if they can."""
HURRIED_EPOCHS = 2
"""Most epochs of a site in a hurry ÷ the round's."""
HURRIED_SELECTION = 1.2
LONGEST_BACKOFF = 8
"""Rounds for which a silent site is left alone at most."""
DATA_POWER = 0.5
"""Freshness grows with a site's samples to this power."""
COST_POWER = 0.3
"""Freshness is ranked per site time to this power: whole costs would leave the slow sites' data out for good."""
TIME_POWER, HURRIED_TIME_POWER = 0.4, 0.7
"""A cohort's freshness is compared per length of its round to this power."""


def advised(policy_name: str, *, private: bool, averaged: bool = True) -> ServerOptimiser:
    """The server optimiser for who says nothing about it: a momentum would also carry privacy's noise on.

    Where sites measure the models that they are sent, there is no average of them that anybody has measured.
    """
    if policy_name != "adaptive" or private:
        return FEDAVG
    return ADVICE if averaged else replace(ADVICE, averaging=0.0)


def plan(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
    """The next round."""
    hurry = run.objective == "time" or pressure(seen) > 1
    epochs = round_epochs(run, seen)
    lively = _rested(run, seen)
    wanted = cohort_size(run, len(seen.sites), struggle(seen))
    times = durations(lively, epochs)
    chosen = choose(lively, times, wanted=wanted, hurry=hurry, seen=seen, run=run)
    chosen = _filled(run, chosen, lively, seen)
    each = site_epochs(run, chosen, epochs, times, hurry=hurry)
    expected = sum(site.reliability for site in chosen)
    longest_s = max((site.expected_s(each[site.name]) or times[site.name] for site in chosen), default=inf)
    known = all(site.known for site in chosen)
    return policy.plan(
        run,
        seen,
        each,
        enough=max(1, ceil(SUFFICIENT * min(expected, wanted))),
        patience_s=max(policy.LEAST_PATIENCE_S, OVERDUE * longest_s * (1 if known else 2)) if longest_s < inf else None,
        grace_fraction=0.25 if hurry else run.grace_fraction,
        reason=_told(seen, len(chosen), epochs, longest_s, hurry=hurry),
    )


def pressure(seen: policy.Seen) -> float:
    """Rounds that are needed, with a margin, ÷ rounds that the limits allow; 0 while nothing is predicted.

    A young run that does not show yet whether it will arrive at all is judged by the best that it may do.
    """
    told = seen.forecast
    if told is None or not told.limit:
        return 0.0
    young = not told.mature
    needed = told.rounds.low if young and told.rounds.middle == inf else told.rounds.middle
    if young and needed == inf:
        return 0.0
    return min(10.0, MARGIN * needed / max(1.0, told.rounds_to_limit))


def struggle(seen: policy.Seen) -> float:
    """From 1 to 2: how much more a round has to do than usual."""
    idle = len(seen.state.rounds) - seen.state.best_round
    return 1 + min(1.0, max(0, idle - PATIENT_ROUNDS) / STRUGGLING_ROUNDS)


def cohort_size(run: RunSettings, sites: int, effort: float = 1.0) -> int:
    """Answers that a round wants."""
    if run.cohort is not None:
        return min(run.cohort, sites)
    return min(sites, max(run.min_nodes, LEAST_COHORT, ceil(COHORT_SHARE * sites * effort)))


def round_epochs(run: RunSettings, seen: policy.Seen) -> int:
    """E = γ/(1 − γ) · c/b; more where the number of rounds is the limit that presses."""
    if run.local_epochs is not None:
        return run.local_epochs
    known = [site for site in seen.sites if site.overhead_s is not None and site.epoch_s is not None]
    if not known:
        return min(FIRST_EPOCHS, run.max_local_epochs)
    ratio = median((site.overhead_s or 0.0) / max(site.epoch_s or 0.0, 1e-3) for site in known)
    best = GAMMA / (1 - GAMMA) * ratio
    if seen.forecast is not None and seen.forecast.limit == "max_rounds":
        best = max(1.0, best) * min(4.0, max(1.0, pressure(seen)) ** (1 / GAMMA))
    return max(1, min(run.max_local_epochs, round(max(1.0, best) * struggle(seen))))


def durations(sites: Sequence[Site], epochs: int) -> dict[str, float]:
    """Expected seconds of each site; of unknown ones the median, or 1 where all are unknown."""
    known = {site.name: seconds for site in sites if (seconds := site.expected_s(epochs)) is not None}
    usual = median(known.values()) if known else 1.0
    return {site.name: max(known.get(site.name, usual), 1e-3) for site in sites}


def choose(
    sites: Sequence[Site],
    times: Mapping[str, float],
    *,
    wanted: int,
    hurry: bool,
    run: RunSettings,
    seen: policy.Seen,
) -> list[Site]:
    """The sites that give most freshness per cost, enough of them for ``wanted`` answers."""
    time_power = HURRIED_TIME_POWER if hurry else TIME_POWER
    answers = wanted * (HURRIED_SELECTION if hurry else 1.0)
    order = list(sites)
    static.draw(run, seen).shuffle(order)  # ties, and the first rounds
    fresh = freshness(sites, seen.number)
    ranked = sorted(order, key=lambda site: fresh[site.name] / times[site.name] ** COST_POWER, reverse=True)
    best: list[Site] = []
    most = -inf
    for cap in sorted(set(times.values())):
        taken = _take([site for site in ranked if times[site.name] <= cap], answers)
        if len(taken) < min(wanted, len(ranked)):
            continue
        cost = sum(times[site.name] ** COST_POWER for site in taken) / len(taken)
        longest = max(times[site.name] for site in taken)
        value = sum(fresh[site.name] for site in taken) / (cost * longest**time_power)
        if value > most:
            best, most = taken, value
    return best


def freshness(sites: Sequence[Site], number: int) -> dict[str, float]:
    """What a site's answer is worth: age · p · n^a; sites that never answered count as the median one."""
    usual = median([site.samples for site in sites if site.samples] or [1])
    return {
        site.name: age(site, number) * site.reliability * ((site.samples or usual) / usual) ** DATA_POWER
        for site in sites
    }


def _take(ranked: Sequence[Site], answers: float) -> list[Site]:
    taken: list[Site] = []
    expected = 0.0
    for site in ranked:
        if expected >= answers - 0.5:
            break
        taken.append(site)
        expected += site.reliability
    return taken


def age(site: Site, number: int) -> int:
    """Rounds since the site last taught the model something; of one that never did, since the beginning."""
    return number - site.last_answered


def site_epochs(
    run: RunSettings, chosen: Sequence[Site], epochs: int, times: Mapping[str, float], *, hurry: bool
) -> dict[str, int]:
    """Local epochs of each site, so that none waits long for another."""
    if run.local_epochs is not None:
        return dict.fromkeys((site.name for site in chosen), epochs)
    bound_s = SLOW * median(times.values())
    fewer = {site.name: site.epochs_within(bound_s, epochs) if site.known else epochs for site in chosen}
    if not hurry:
        return fewer
    longest_s = max((site.expected_s(fewer[site.name]) or 0.0 for site in chosen), default=0.0)
    most = min(run.max_local_epochs, HURRIED_EPOCHS * epochs)
    return {
        site.name: max(fewer[site.name], site.epochs_within(longest_s, most)) if site.known else fewer[site.name]
        for site in chosen
    }


def _rested(run: RunSettings, seen: policy.Seen) -> list[Site]:
    """The sites that may be asked: a silent one may still be at work, or gone: it is left alone for 4 or 8 rounds,
    unless it is needed."""
    rested = [site for site in seen.sites if _backoff(site) <= seen.number - site.last_asked]
    least = max(run.min_nodes, cohort_size(run, len(seen.sites)))
    if len(rested) >= least:
        return rested
    waiting = sorted((site for site in seen.sites if site not in rested), key=lambda site: site.unanswered)
    return rested + waiting[: least - len(rested)]


def _backoff(site: Site) -> int:
    return min(LONGEST_BACKOFF, 2 ** (1 + site.unanswered)) if site.unanswered else 0


def _filled(run: RunSettings, chosen: Sequence[Site], lively: Sequence[Site], seen: policy.Seen) -> list[Site]:
    """Never fewer than the quorum."""
    missing = run.min_nodes - len(chosen)
    if missing <= 0:
        return list(chosen)
    others = [site for site in (*lively, *seen.sites) if site not in chosen]
    return [*chosen, *dict.fromkeys(others)][: run.min_nodes]


def _told(seen: policy.Seen, asked: int, epochs: int, longest_s: float, *, hurry: bool) -> str:
    told = f"{asked} of {len(seen.sites)} sites, about {epochs} epochs, {longest_s:.0f} s" + (
        ", hurrying" if hurry else ""
    )
    if seen.forecast is None:
        return told
    left, allowed = seen.forecast.rounds.middle, seen.forecast.rounds_to_limit
    return f"{told}; {left:.0f} rounds to go, {allowed:.0f} allowed"

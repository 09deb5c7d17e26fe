"""The simulated federation, and the real controller on it."""

from __future__ import annotations

import random
from math import inf

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import adaptive, model, policies, ports, simulation
from airflow_mlscale.federated.simulation import SimulatedSite
from tests.fakes import federated

FEATURES = 6


class Regressions:
    """Linear regression by gradient steps; each site sees other inputs, all the same truth."""

    def __init__(self, names, *, seed: int = 0, broken: str = ""):
        draw = np.random.default_rng(seed)
        self.truth = draw.normal(size=FEATURES)
        self.data = {name: draw.normal(size=(30, FEATURES)) * draw.uniform(0.2, 1.5, FEATURES) for name in names}
        self.held_out = draw.normal(size=(200, FEATURES))
        self.broken = broken
        self.trained_in: list[tuple[int, str, int]] = []

    def train(self, site, weights, *, epochs, batch_size, number) -> simulation.Trained:
        if site == self.broken:
            raise ValueError("no data")
        self.trained_in.append((number, site, epochs))
        x, (w,) = self.data[site], weights
        losses = []
        for _ in range(epochs):
            off = x @ (w - self.truth)
            losses.append(float((off**2).mean()))
            w = w - 0.1 * x.T @ off / len(x)
        return simulation.Trained([w], samples=len(x), loss=losses[-1], first_loss=losses[0])

    def initial_weights(self):
        return [np.zeros(FEATURES)]

    def evaluate(self, weights):
        loss = float(((self.held_out @ (weights[0] - self.truth)) ** 2).mean())
        return {"loss": loss, "mean_squared_error": loss}

    def trained(self):
        return [True]

    def export(self, weights, directory):
        return ports.Exported(keras_model="", saved_model="")


def run(sites, trainer=None, *, target: float = 0.05, **changes) -> simulation.Simulated:
    settings = federated.settings(
        **{
            "target": model.Quality("mean_squared_error", target),
            "max_rounds": 200,
            "round_timeout_s": 100.0,
            **changes,
        }
    )
    trainer = trainer or Regressions([site.name for site in sites])
    return simulation.simulate(settings, sites, trainer, trainer)


def equal(count: int, **changes) -> list[SimulatedSite]:
    return [SimulatedSite(**{"name": f"s{i}", "jitter": 0.0, **changes}) for i in range(count)]


def test_time_is_what_the_slowest_of_the_awaited_took():
    seen = run(equal(3, overhead_s=2.0, epoch_s=3.0), policy="fedavg", local_epochs=2, max_rounds=4, target=1e-9)
    # each round 2 + 2·3 = 8 s and 1 s on the server; three sites
    assert seen.wall_s == pytest.approx(4 * 9)
    assert seen.node_s == pytest.approx(4 * 3 * 8)
    assert seen.compute_s == pytest.approx(4 * 3 * 6)
    assert [done.node_s for done in seen.state.rounds] == [24.0] * 4
    assert [time_s for time_s, _, _ in seen.history] == pytest.approx([9, 18, 27, 36])


def test_results_say_that_they_are_simulated():
    assert run(equal(3)).state.simulated


@pytest.mark.parametrize("name", list(policies.POLICIES))
def test_every_policy_reaches_a_target_among_slow_flaky_and_dying_sites(name):
    sites = [
        *equal(6),
        SimulatedSite(name="slow", epoch_s=20.0),
        SimulatedSite(name="flaky", answers=0.5, straggles=0.2),
        SimulatedSite(name="dies", gone=((30.0, inf),)),
        SimulatedSite(name="away", gone=((20.0, 60.0),)),
    ]
    seen = run(sites, policy=name)
    assert seen.state.status == model.Status.REACHED
    assert seen.state.best_value <= 0.05


def test_the_same_seed_gives_the_same_run():
    sites = simulation.drawn([f"s{i}" for i in range(10)], 3)
    one, two = run(sites, seed=3), run(sites, seed=3)
    assert one.state == two.state
    assert one.wall_s == two.wall_s
    assert sites == simulation.drawn([f"s{i}" for i in range(10)], 3)


def test_what_a_site_does_in_a_round_does_not_depend_on_who_else_is_asked():
    sites = equal(6, jitter=0.3, straggles=0.3, answers=0.9)
    trained = []
    for cohort in (6, 3):
        seen = run(sites, policy="fedavg", cohort=cohort, max_rounds=1, target=1e-9)
        trained.append({site.name: site.busy_s for site in seen.state.sites if site.answered})
    assert trained[1].items() <= trained[0].items()


def test_nobody_waits_for_the_dead():
    sites = [*equal(8), SimulatedSite(name="dead", answers=0.0)]
    seen = run(sites, policy="adaptive", target=1e-9, max_rounds=20, stall_rounds=None, on_infeasible="go_on")
    assert max(done.seconds for done in seen.state.rounds[1:]) < 15
    dead = next(site for site in seen.state.sites if site.name == "dead")
    assert dead.asked <= 6  # 20 rounds, left alone for 4 and then 8 of them
    assert dead.reliability < 0.6


def test_late_answers_are_averaged_in_and_show_that_a_site_is_slow():
    sites = [*equal(8), SimulatedSite(name="slow", epoch_s=12.0, jitter=0.0)]
    changes = {"policy": "over_selection", "target": 1e-9, "max_rounds": 60, "grace_fraction": 0.0}
    used = run(sites, stall_rounds=None, on_infeasible="go_on", **changes)
    late = [done for done in used.state.rounds if done.late]
    assert late
    assert all(done.late == ("slow",) for done in late)
    slow = next(site for site in used.state.sites if site.name == "slow")
    assert slow.epoch_s == pytest.approx(12.0)
    unused = run(sites, late_answers=False, stall_rounds=None, on_infeasible="go_on", **changes)
    assert not any(done.late for done in unused.state.rounds)


def test_a_site_that_is_still_at_work_begins_later():
    sites = [*equal(4), SimulatedSite(name="slow", epoch_s=30.0, overhead_s=0.0, jitter=0.0)]
    federation = simulation.SimulatedSites(sites, Regressions([s.name for s in sites]), simulation.Clock())
    seen = federated.seen(*(site.name for site in sites), last_round_s=1.0)
    plan = policies.plan_round(federated.settings(policy="over_selection", grace_fraction=0.0), seen)
    for _ in range(2):
        federation.train(plan, [np.zeros(FEATURES)])
        federation.late()
    federation.clock.now_s = 1000.0
    answers = federation.late()
    assert [answer.site for answer in answers] == ["slow", "slow"]
    assert answers[0].elapsed_s == 30.0
    assert answers[1].elapsed_s > 50.0  # it ended the first round's work before it began the second's


def test_an_error_of_the_users_code_is_an_answer():
    sites = equal(4)
    seen = run(sites, Regressions([site.name for site in sites], broken="s1"))
    assert seen.state.status == model.Status.REACHED
    assert all("s1" not in done.answered for done in seen.state.rounds)


def test_a_federation_without_a_quorum_is_interrupted():
    seen = run(equal(3, answers=0.0), round_timeout_s=10.0, start_allowance_s=5.0)
    assert seen.state.status == model.Status.INTERRUPTED
    assert seen.wall_s == pytest.approx(3 * (10 + 5 + 1))  # the sites may still be starting; 1 s on the server


def test_a_target_out_of_reach_is_called_so_before_half_of_the_rounds():
    class Plateau(Regressions):
        def evaluate(self, weights):
            loss = super().evaluate(weights)["loss"] + 0.5 * (1 + random.Random(str(weights[0])).gauss(0, 0.02))
            return {"loss": loss, "mean_squared_error": loss}

    sites = equal(8)
    seen = run(sites, Plateau([site.name for site in sites]), target=0.1)
    assert seen.state.status == model.Status.INFEASIBLE
    assert len(seen.state.rounds) <= 100
    assert "out of reach" in seen.state.reason


def test_the_adaptive_policy_costs_less_than_waiting_for_everybody():
    sites = simulation.drawn([f"s{i}" for i in range(20)], 1)
    ours = run(sites, policy="adaptive", server_optimiser=adaptive.ADVICE)
    fedavg = run(sites, policy="fedavg", cohort=10, local_epochs=5, late_answers=False)
    assert ours.reached
    assert fedavg.reached
    assert ours.node_s < 0.6 * fedavg.node_s
    assert ours.wall_s < 0.6 * fedavg.wall_s


@pytest.mark.parametrize(("field", "value"), [("answers", 1.5), ("straggles", -0.1), ("epoch_s", -1.0)])
def test_impossible_sites_are_refused(field, value):
    with pytest.raises(errors.InvalidInputError) as refused:
        SimulatedSite(**{"name": "a", field: value})
    assert refused.value.field == field

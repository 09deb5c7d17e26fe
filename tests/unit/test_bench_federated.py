"""The federated benchmark beside its runs: which are made, what is kept of them, and what is said about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.federated import cases, law, overhead, report, results, targets
from benchmarks.federated.systems import SYSTEMS


def row(system: str = "ours_cost", seed: int = 100, **changes) -> cases.Row:
    return cases.Row(
        **{
            "system": system, "data": "digits", "kind": "slack", "seed": seed, "target": 0.95, "deadline_s": 2400.0,
            "reached": True, "met_deadline": True, "rounds": 40, "wall_s": 600.0, "node_s": 2800.0, "compute_s": 1300.0,
            "gigabytes": 0.004, "quality": 0.95, "status": "reached", "static": not system.startswith("ours"),
            "law": law.name(), **changes,
        }
    )  # fmt: skip


def missed(system: str, seed: int = 100, **changes) -> cases.Row:
    return row(system, seed, **{"reached": False, "met_deadline": False, "status": "limit", **changes})


def test_a_system_that_does_not_look_at_its_deadline_runs_once_for_all_of_them():
    wanted = cases.chosen(["fedavg_K5_E1/flights/tight", "fedavg_K5_E1/flights/slack"])

    found = cases.rows(3, wanted)

    assert [each.kind for each in found] == ["slack", "tight", "tightest"]
    slack, tight, tightest = found
    assert slack.wall_s >= tight.wall_s >= tightest.wall_s
    assert slack.node_s >= tight.node_s
    assert all(each.wall_s <= each.deadline_s and each.simulated for each in found)
    assert slack.reached >= slack.met_deadline


def test_what_cannot_be_reached_is_asked_of_ours_alone():
    assert {system for system, case in cases.chosen([]) if case.infeasible} == {
        name for name in SYSTEMS if name.startswith("ours")
    }
    assert cases.chosen(["nobody/*"]) == []


def test_the_best_fixed_setting_meets_most_often_and_of_those_costs_least():
    found = report.summaries(
        [
            row("fedavg_K10_E5", node_s=9000.0), missed("fedavg_K10_E5", 101),
            row("fedavg_K5_E2", node_s=5000.0), row("fedavg_K5_E2", 101, node_s=5000.0),
            row("over1.3_K5_E2", node_s=4000.0), row("over1.3_K5_E2", 101, node_s=4000.0),
            row("ours_cost", node_s=1.0),
        ]
    )  # fmt: skip
    assert report.best_static(found).system == "over1.3_K5_E2"


def test_ratios_are_geometric_means_over_the_seeds_that_both_have():
    found = report.paired({1: 2.0, 2: 8.0, 3: 5.0}, {1: 1.0, 2: 1.0})
    assert found.mean == pytest.approx(4.0)
    assert found.low < 4.0 < found.high


def test_targets_are_judged_on_what_was_possible():
    rows = [
        row("fedavg_K10_E5", node_s=8000.0), row("over1.3_K5_E2_momentum", node_s=3000.0),
        row(node_s=2800.0), missed("ours_cost", 101), missed("fedavg_K10_E5", 101),
        missed("ours_cost", kind="infeasible_target", status="infeasible", wall_s=1300.0),
        missed("ours_cost", 101, kind="infeasible_target", status="infeasible", wall_s=1100.0),
        missed("ours_cost", kind="tight", status="infeasible"), row("fedavg_K10_E5", kind="tight"),
    ]  # fmt: skip
    told = [str(each) for each in targets.all_of(rows)]

    assert "met: 95 % of the slack deadlines that any system met: 1 of 1, 100.0%" in told
    named = "NOT MET: 90 % of the infeasible cases named before half of the deadline: 1 of 2, 50.0%"
    assert named in told
    assert "NOT MET: at most 2 % false alarms, of the cases that any system met: 1 of 2, 50.0%" in told
    slack = [each for each in told if "digits/slack" in each]
    assert sum("over1.3_K5_E2_momentum" in each for each in slack) == 2  # its misses and its cost, apart from FedAvg's
    assert any(each.startswith("met: digits/slack: site time, 0.6 of fedavg_K10_E5's") for each in slack)


def test_rows_survive_a_session_and_those_of_another_law_do_not_pass_for_the_present_one(tmp_path):
    path = tmp_path / "federated.json"
    measured = [{"system": each, "seed": 1, "rounds": 2, "seconds": [1.0, 1.02]} for each in overhead.SYSTEMS]
    real = row("ours_cost", kind="real", simulated=False, law="older")
    found = results.Results().plus([row(), row(seed=101, law="older"), real], measured)

    results.write(path, found)

    assert results.read(path) == found
    assert found.without_simulated(False).rows == (row(), real)
    assert found.without_simulated(True).rows == (real,)
    assert found.plus([replace(row(), node_s=1.0)]).rows.count(row()) == 0


def test_overhead_compares_the_median_rounds():
    rows = [
        {"system": "nvflare_fedavg", "seed": 1, "rounds": 3, "seconds": [1.0, 1.0, 9.0]},
        {"system": "ours", "seed": 1, "rounds": 3, "seconds": [1.03, 1.03, 1.03]},
    ]
    assert overhead.summary(rows)["overhead_pct"] == pytest.approx(3.0)


def test_page_and_picture_show_simulated_and_real_rows_apart(tmp_path):
    found = results.Results().plus([row(), row("fedavg_K10_E5"), row(kind="real", simulated=False, deadline_s=240.0)])
    short = tmp_path / "benchmarks.md"
    short.write_text("before\n<!-- federated: begin -->\nold\n<!-- federated: end -->\nafter\n")

    report.tell(tmp_path / "page.md", found)
    report.tell_in_short(short, found)
    report.draw(tmp_path / "picture.png", found.rows)

    page = (tmp_path / "page.md").read_text()
    assert page.index(report.SIMULATED) < page.index("digits/slack") < page.index("digits/real")
    told = short.read_text()
    assert told.startswith("before\n")
    assert told.endswith("after\n")
    assert "old" not in told
    assert "| fedavg_K10_E5 | 1/1 |" in told
    assert (tmp_path / "picture.png").stat().st_size > 1000

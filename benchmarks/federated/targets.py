"""What is asked of our controller on held-out seeds, and whether it was so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.federated import cases, report
from benchmarks.federated.systems import BASELINE

OURS = "ours_cost"
FIXED_SHARE, BASELINE_SHARE = 0.9, 0.6
"""Most that ours may cost ÷ the best fixed setting, and ÷ FedAvg."""


@dataclass(frozen=True)
class Target:
    """One of them."""

    asked: str
    met: bool
    seen: str

    def __str__(self) -> str:
        return f"{'met' if self.met else 'NOT MET'}: {self.asked}: {self.seen}"


def all_of(rows: Sequence[cases.Row]) -> list[Target]:
    """Those that the rows say something about."""
    found: list[Target] = []
    for case in cases.CASES:
        mine = [row for row in rows if (row.data, row.kind) == (case.data, case.kind)]
        if not case.infeasible and any(row.system == OURS for row in mine):
            found += _of_case(case, mine)
    return found + list(_slack(rows)) + list(_early(rows))


def _of_case(case: cases.Case, rows: Sequence[cases.Row]) -> Iterator[Target]:
    summaries = {each.system: each for each in report.summaries(rows)}
    ours = summaries[OURS]
    for kind, among in (("", _plain(summaries)), (" that has our momentum", _momentum(summaries))):
        if best := report.best_static(among):
            of_it = f"{case.name}: {{}} the best fixed setting{kind} in hindsight ({best.system})"
            yield Target(
                of_it.format("deadlines met, at least as often as"), ours.met >= best.met,
                f"{ours.met} and {best.met} of {ours.runs}",
            )  # fmt: skip
            node = _ratio(rows, best.system, "node_s")
            yield Target(of_it.format(f"site time, {FIXED_SHARE} of"), node.mean <= FIXED_SHARE, str(node))
    if BASELINE in summaries:
        for name, words in (("node_s", "site time"), ("wall_s", "wall time")):
            ratio = _ratio(rows, BASELINE, name)
            asked = f"{case.name}: {words}, {BASELINE_SHARE} of {BASELINE}'s"
            yield Target(asked, ratio.mean <= BASELINE_SHARE, str(ratio))


def _plain(found: dict[str, report.Summary]) -> list[report.Summary]:
    return [each for name, each in found.items() if not name.endswith("_momentum")]


def _momentum(found: dict[str, report.Summary]) -> list[report.Summary]:
    return [each for name, each in found.items() if name.endswith("_momentum")]


def _ratio(rows: Sequence[cases.Row], system: str, name: str) -> report.Ratio:
    mine, theirs = ({row.seed: getattr(row, name) for row in rows if row.system == each} for each in (OURS, system))
    found = report.paired(mine, theirs)
    if found is None:
        raise ValueError(f"{OURS} and {system} share no seed")
    return found


def _slack(rows: Sequence[cases.Row]) -> Iterator[Target]:
    possible = {(row.data, row.seed) for row in rows if row.kind == "slack" and row.met_deadline}
    ours = [row for row in rows if row.system == OURS and row.kind == "slack" and (row.data, row.seed) in possible]
    if ours:
        met = sum(row.met_deadline for row in ours)
        yield Target("95 % of the slack deadlines that any system met", met >= 0.95 * len(ours), _of(met, len(ours)))


def _early(rows: Sequence[cases.Row]) -> Iterator[Target]:
    kinds = {(case.data, case.kind): case.infeasible for case in cases.CASES}
    ours = [row for row in rows if row.system == OURS and (row.data, row.kind) in kinds]
    if hopeless := [row for row in ours if kinds[row.data, row.kind]]:
        early = sum(row.status == "infeasible" and row.wall_s <= row.deadline_s / 2 for row in hopeless)
        asked = "90 % of the infeasible cases named before half of the deadline"
        yield Target(asked, early >= 0.9 * len(hopeless), _of(early, len(hopeless)))
    possible = {(row.data, row.kind, row.seed) for row in rows if row.met_deadline}
    if feasible := [row for row in ours if (row.data, row.kind, row.seed) in possible]:
        alarms = sum(row.status == "infeasible" for row in feasible)
        asked = "at most 2 % false alarms, of the cases that any system met"
        yield Target(asked, alarms <= 0.02 * len(feasible), _of(alarms, len(feasible)))


def _of(some: int, all_of_them: int) -> str:
    return f"{some} of {all_of_them}, {some / all_of_them:.1%}"

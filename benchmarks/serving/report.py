"""Tables and targets from rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from benchmarks.deadline.report import Target
from benchmarks.serving.results import Results, finished
from benchmarks.serving.systems import AGAINST, QUOTAS, SYSTEMS
from benchmarks.serving.workload import NEIGHBOUR, NEIGHBOUR_TIMES

Row = Mapping[str, Any]
Condition = tuple[str, float]
"""Shape and load."""

OURS = ("ours_work_conserving", "ours_reserve")
FEWER_VIOLATIONS = 0.75
FEWER_CORES = 0.24
MORE_CPU = 1.02
"""CPU use within two percent counts as the same."""
NONE_PCT = 0.05
"""Fewer violations than this are none: one of 75 % fewer than none does not exist."""
GOODPUT = 0.95
COLLAPSE = 0.8
"""Part of the goodput at the highest load that fits, below which overload counts as a collapse."""
NEIGHBOUR_POINTS = 1.0
BEGIN, END = "<!-- serving: begin -->", "<!-- serving: end -->"

HEADS = (
    *("system", "runs", "violations %", "late %", "shed %", "failed %", "in time/s", "p95 ÷ objective, worst"),
    *("granted core-s", "cap core-s", "used core-s", "gateway core-s"),
)


def of(rows: Iterable[Row], system: str, condition: Condition | None = None, times: float = 1.0) -> list[Row]:
    """The runs of one system that did not fail."""
    return [
        row
        for row in finished(rows)
        if row["system"] == system
        and row["neighbour_times"] == times
        and condition in (None, (row["shape"], row["load"]))
    ]


def conditions(rows: Iterable[Row]) -> list[Condition]:
    """Those of the race; the neighbour's are not among them."""
    return sorted({(row["shape"], row["load"]) for row in rows if row["shape"] != "steady"}, key=lambda c: (c[1], c[0]))


def mean(rows: Sequence[Row], name: str) -> float:
    """Over the seeds."""
    return fmean(float(row[name]) for row in rows)


def lines(rows: Sequence[Row], condition: Condition, times: float = 1.0) -> list[tuple[str, ...]]:
    """Lines of the table for one condition."""
    found = []
    for name in SYSTEMS:
        mine = of(rows, name, condition, times)
        if mine:
            found.append((name, str(len(mine)), *_cells(mine)))
    return found


def _cells(mine: Sequence[Row]) -> list[str]:
    worst = fmean(max(_relative_p95(one) for one in row["models"].values()) for row in mine)
    gateway = [row["gateway_core_s"] for row in mine if row["gateway_core_s"] is not None]
    shares = [f"{mean(mine, name):.2f}" for name in ("violations_pct", "late_pct", "shed_pct", "failed_pct")]
    costs = [f"{mean(mine, name):.1f}" for name in ("granted_core_s", "cap_core_s", "used_core_s")]
    goodput = f"{mean(mine, 'goodput_per_s'):.1f}"
    return [*shares, goodput, f"{worst:.2f}", *costs, f"{fmean(gateway):.1f}" if gateway else "-"]


def _relative_p95(model: Mapping[str, Any]) -> float:
    return float(model["p95_ms"] or 0.0) / float(model["objective_ms"])


def table(rows: Sequence[Row], condition: Condition) -> Table:
    """For the terminal."""
    drawn = Table(title=f"{condition[0]}, {condition[1]:g} of the machine's capacity")
    for head in HEADS:
        drawn.add_column(head, no_wrap=head == HEADS[0], justify="left" if head == HEADS[0] else "right")
    for line in lines(rows, condition):
        drawn.add_row(*line)
    return drawn


def targets(rows: Sequence[Row]) -> list[Target]:
    """What is asked for of ours, and whether the rows show it."""
    found = [_against(rows, ours, rival) for ours in OURS for rival in AGAINST]
    found += [_caps(rows, rival) for rival in QUOTAS]
    found += [_sharing(rows, ours) for ours in OURS]
    found += [_neighbour(rows, name) for name in ("sharing", *OURS)]
    found += [_overload(rows, ours) for ours in OURS]
    return [*found, *(_collapse(rows, ours) for ours in OURS)]


def _both(
    rows: Sequence[Row], ours: str, rival: str, *, fits: bool = True
) -> list[tuple[Condition, Sequence[Row], Sequence[Row]]]:
    """Conditions that both have run, of the seeds that both have run."""
    found = []
    for condition in conditions(rows):
        mine, theirs = of(rows, ours, condition), of(rows, rival, condition)
        seeds = {row["seed"] for row in mine} & {row["seed"] for row in theirs}
        if seeds and (condition[1] <= 1) == fits:
            pick = [[row for row in each if row["seed"] in seeds] for each in (mine, theirs)]
            found.append((condition, pick[0], pick[1]))
    return found


def _against(rows: Sequence[Row], ours: str, rival: str) -> Target:
    says = f"{ours} against {rival}: 75 % fewer violations, 24 % fewer granted core-s, no more CPU"
    met, told = [], []
    for (shape, load), mine, theirs in _both(rows, ours, rival):
        violations = mean(mine, "violations_pct"), mean(theirs, "violations_pct")
        cheaper = 1 - mean(mine, "granted_core_s") / max(1e-9, mean(theirs, "granted_core_s"))
        cpu = mean(mine, "used_core_s") / max(1e-9, mean(theirs, "used_core_s"))
        none = max(violations) < NONE_PCT
        fewer = none or violations[0] <= (1 - FEWER_VIOLATIONS) * violations[1]
        met.append(fewer and cheaper >= FEWER_CORES and cpu <= MORE_CPU)
        nothing = " (none to save)" if none else ""
        told.append(
            f"{shape} {load:g}: {violations[0]:.2f} % against {violations[1]:.2f} %{nothing}, granted "
            f"{-100 * cheaper:+.0f} %, CPU {100 * (cpu - 1):+.0f} %"
        )
    return _target(says, met, told)


def _caps(rows: Sequence[Row], rival: str) -> Target:
    says = f"ours_reserve against {rival}: 24 % fewer cap core-s at half load"
    met, told = [], []
    for (shape, load), mine, theirs in _both(rows, "ours_reserve", rival):
        if load <= 0.5:
            cheaper = 1 - mean(mine, "cap_core_s") / max(1e-9, mean(theirs, "cap_core_s"))
            met.append(cheaper >= FEWER_CORES)
            told.append(f"{shape} {load:g}: {-100 * cheaper:+.0f} %")
    return _target(says, met, told)


def _sharing(rows: Sequence[Row], ours: str) -> Target:
    says = f"{ours} against sharing: no more violations"
    met, told = [], []
    for (shape, load), mine, theirs in _both(rows, ours, "sharing"):
        violations = mean(mine, "violations_pct"), mean(theirs, "violations_pct")
        met.append(violations[0] <= violations[1] + NONE_PCT)
        told.append(f"{shape} {load:g}: {violations[0]:.2f} % against {violations[1]:.2f} %")
    return _target(says, met, told)


def raised_points(rows: Sequence[Row], system: str) -> float | None:
    """By how much a neighbour beyond its rate raises the violations of the others: the worst one, mean over seeds."""
    calm, noisy = (
        {row["seed"]: row["models"] for row in of(rows, system, times=times) if row["shape"] == "steady"}
        for times in (1.0, NEIGHBOUR_TIMES)
    )
    seeds = calm.keys() & noisy.keys()
    if not seeds:
        return None
    others = [name for name in calm[min(seeds)] if name != NEIGHBOUR]
    return max(
        fmean(noisy[seed][name]["violations_pct"] - calm[seed][name]["violations_pct"] for seed in seeds)
        for name in others
    )


def _neighbour(rows: Sequence[Row], system: str) -> Target:
    says = f"{system}: a neighbour at {NEIGHBOUR_TIMES:g}× its rate raises no other model's violations by a point"
    raised = raised_points(rows, system)
    if raised is None:
        return Target(says, None, "")
    return Target(says, raised < NEIGHBOUR_POINTS, f"{raised:+.2f} points for the worst of them")


def _overload(rows: Sequence[Row], ours: str) -> Target:
    says = f"{ours}: goodput beyond the capacity at least {GOODPUT:g} of the best rival's"
    met, told = [], []
    rivals = [name for name, each in SYSTEMS.items() if not each.ours]
    for condition in conditions(rows):
        found = {name: mean(each, "goodput_per_s") for name in rivals if (each := of(rows, name, condition))}
        mine = of(rows, ours, condition)
        if condition[1] > 1 and found and mine:
            best = max(found, key=lambda name: found[name])
            reached = mean(mine, "goodput_per_s")
            met.append(reached >= GOODPUT * found[best])
            told.append(f"{condition[0]} {condition[1]:g}: {reached:.1f}/s against {found[best]:.1f}/s of {best}")
    return _target(says, met, told)


def _collapse(rows: Sequence[Row], ours: str) -> Target:
    says = (
        f"{ours}: no collapse beyond the capacity (goodput at least {COLLAPSE:g} of that at the highest load that fits)"
    )
    met, told = [], []
    every = conditions(rows)
    for shape in sorted({shape for shape, _ in every}):
        loads = [load for each, load in every if each == shape and of(rows, ours, (shape, load))]
        fitting = [load for load in loads if load <= 1]
        for load in loads:
            if load > 1 and fitting:
                there, here = (mean(of(rows, ours, (shape, each)), "goodput_per_s") for each in (max(fitting), load))
                met.append(here >= COLLAPSE * there)
                told.append(f"{shape}: {here:.1f}/s at {load:g}, {there:.1f}/s at {max(fitting):g}")
    return _target(says, met, told)


def _target(says: str, met: Sequence[bool], told: Sequence[str]) -> Target:
    return Target(says, all(met) if met else None, "; ".join(told))


def markdown(found: Results) -> str:
    """The page that goes with the picture."""
    rows = found.rows
    machine = ", ".join(f"{name} {value}" for name, value in {**found.machine, **found.versions}.items())
    scope = found.scope
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"Begun {found.started}; {machine}. {seeds} seed{'s' if seeds != 1 else ''}, {scope['length']:g} s measured "
        f"after {scope['lead']:g} s of lead in each run. All models together: "
        f"{found.capacity['requests_per_s']:.1f} requests/s saturate the machine.",
        _models(found),
    ]
    failed = [row for row in rows if row["error"]]
    if failed:
        parts.append(
            "Runs that failed: " + "; ".join(f"{row['system']} {row['shape']} {row['load']:g}" for row in failed)
        )
    for shape, load in conditions(finished(rows)):
        parts += [f"### {shape}, load {load:g}", _markdown(HEADS, lines(rows, (shape, load)))]
    beside = [row for row in finished(rows) if row["shape"] == "steady"]
    for times in sorted({row["neighbour_times"] for row in beside}):
        condition = next((row["shape"], row["load"]) for row in beside if row["neighbour_times"] == times)
        parts.append(f"### {NEIGHBOUR} at {times:g}× its rate, load {condition[1]:g} without that")
        parts.append(_markdown(HEADS, lines(rows, condition, times)))
    source = sorted(finished(rows), key=lambda row: float(row["sent_late_ms"]))
    if source:
        used = [row["load_core_s"] / row["length_s"] for row in source]
        middle, worst = source[len(source) // 2], source[-1]
        parts.append(
            f"The source of load used {max(used):.2f} cores at most. It sent 99 % of the requests of a run within "
            f"{middle['sent_late_ms']:.1f} ms of their time in the median run, {worst['sent_late_ms']:.1f} ms in the "
            f"worst, of {worst['system']}, which left it without a free connection if that is seconds."
        )
    parts += ["### Targets", "\n".join(f"- {target}" for target in targets(rows))]
    return "\n\n".join(parts) + "\n"


def _models(found: Results) -> str:
    heads = ("model", "alone", "at most", "objective (p95)", "rate at load 1")
    rows = [
        (
            name,
            f"{one['alone_ms']:.1f} ms",
            f"{one['alone_per_s']:.1f}/s",
            f"{one['objective_ms']:.0f} ms",
            f"{one['rate_per_s']:.2f}/s",
        )
        for name, one in found.capacity["models"].items()
    ]
    return _markdown(heads, rows)


def _markdown(heads: Sequence[str], found: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *found))

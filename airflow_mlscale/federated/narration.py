"""What the log tells of a run: a line for each round, and now and then a table of the sites. Pure.

Made from the decision journal, so that a worker, a triggerer and a command tell the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site
from airflow_mlscale.runtime.journal import Record

TABLE_EVERY_ROUNDS = 10
"""Between two tables of the sites."""
ROWS = 40
"""Of the largest table."""


def is_round(record: Record) -> bool:
    """Whether a record is one of a round; others tell of changes."""
    return "round" in record.seen


def line(record: Record, run: RunSettings) -> str:
    """One line for one record."""
    if not is_round(record):
        return record.reason
    seen, decided = record.seen, record.decided
    metric, value = run.target.metric, seen.get("value", seen.get(run.target.metric))
    parts = [
        f"round {seen['round']} of at most {run.max_rounds}: "
        f"{metric} {_number(value, '.4f')} (target {_number(seen['target'], 'g')})",
        _expectation(record),
        _left(record, run),
        f"{decided['answered']} of {decided['asked']} sites"
        + (f" and {decided['late']} late" if decided.get("late") else ""),
        _epochs(record),
        f"{_number(seen['seconds'], '.1f')} s",
        _cost(record),
    ]
    return ", ".join(part for part in parts if part)


def table(sites: Sequence[Site], state: model.RunState) -> list[str]:
    """The sites as aligned lines, of many those that cost most; empty without any."""
    known = sorted((site for site in sites if site.asked), key=lambda site: -site.busy_s)
    if not known:
        return []
    width = max(4, *(len(site.name) for site in known[:ROWS]))
    head = f"{'site':<{width}}  {'seconds of E epochs':>20}  reliability  answered  {'site s':>8}  {'MB':>8}"
    lines = [f"sites of run {state.run_id} after {len(state.rounds)} rounds:", head]
    for site in sorted(known[:ROWS], key=lambda site: site.name):
        answered = f"{site.answered}/{site.asked}"
        lines.append(
            f"{site.name:<{width}}  {speed(site):>20}  {site.reliability:>10.0%}   {answered:>8}  "
            f"{site.busy_s:>8.1f}  {_megabytes(site.gigabytes):>8}"
        )
    if len(known) > ROWS:
        lines.append(f"and {len(known) - ROWS} more that cost less")
    if len(state.sites) > len(known):
        lines.append(f"{len(state.sites) - len(known)} sites were not asked yet")
    return lines


def speed(site: Site) -> str:
    """The time that a site needs for E local epochs, c + b·E."""
    if site.overhead_s is None or site.epoch_s is None:
        return "unknown"
    return f"{site.overhead_s:.2f} + {site.epoch_s:.2f}·E"


def told(records: Sequence[Record], run: RunSettings, state: model.RunState) -> Iterator[str]:
    """Lines for new records, with a table of the sites after every tenth round."""
    for record in records:
        yield f"simulated {line(record, run)}" if state.simulated else line(record, run)
    rounds = [int(str(record.seen["round"])) for record in records if is_round(record)]
    if any(number % TABLE_EVERY_ROUNDS == 0 for number in rounds):
        yield from table(state.sites, state)


def rounds_table(state: model.RunState) -> list[str]:
    """All rounds as aligned lines."""
    lines = [f"round  {state.metric[:12]:>12}  answered  late  epochs  {'s':>8}  {'site s':>9}  {'MB':>8}  segment"]
    for done in state.rounds:
        epochs = sorted(set(done.epochs.values()))
        span = f"{epochs[0]}-{epochs[-1]}" if len(epochs) > 1 else str(epochs[0] if epochs else "")
        best = "*" if done.number == state.best_round else " "
        lines.append(
            f"{done.number:>5}{best} {_number(done.value, '>12.4f')}  {f'{len(done.answered)}/{len(done.asked)}':>8}  "
            f"{len(done.late):>4}  {span:>6}  {done.seconds:>8.1f}  {done.node_s:>9.1f}  "
            f"{_megabytes(done.gigabytes):>8}  {done.segment:>7}"
        )
    return lines


def forecast(found: Any, run: RunSettings) -> str:
    """A prediction, see `forecast.Forecast.to_json`, in words."""
    if not found:
        return "too few rounds to predict anything"
    chance = f"chance {found['chance']:.0%} to reach {run.target}"
    low, middle, high = found["rounds"]
    span = f"between {_number(low, '.0f')} and {_number(high, '.0f')}"
    left = f"rounds left {_number(middle, '.0f')}, {span}" if low is not None else "out of reach as it looks"
    worst, expected, best = found["at_limit"]
    limit = f"; at the limit ({found['limit']}) {_number(expected, '.4f')}"
    return f"{chance}; {left}{limit}, between {_number(worst, '.4f')} and {_number(best, '.4f')}"


HOPELESS_ROUNDS = 1000
"""More than so many to go are not counted: the curve is flat there, and the figure would mean nothing."""


def moment(at: float | None) -> str:
    """A time for people, in UTC."""
    return "none" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _expectation(record: Record) -> str:
    seen = record.seen
    if seen.get("chance") is None:
        return ""
    rounds, seconds = seen.get("expected_rounds"), seen.get("expected_seconds")
    if rounds is None:
        return f"chance {_number(seen['chance'], '.0%')}"
    if float(rounds) > HOPELESS_ROUNDS:
        return f"over {HOPELESS_ROUNDS} rounds to go, chance {_number(seen['chance'], '.0%')}"
    when = f"about {_number(rounds, '.0f')} rounds"
    when += f" ({_number(seconds, '.0f')} s)" if seconds is not None else ""
    return f"{when} to go, chance {_number(seen['chance'], '.0%')}"


def _left(record: Record, run: RunSettings) -> str:
    return "" if run.deadline_at is None else f"{max(0.0, run.deadline_at - record.at):.0f} s left"


def _epochs(record: Record) -> str:
    most, least = record.decided.get("epochs"), record.decided.get("least_epochs")
    if not most:
        return ""
    return f"{least}-{most} epochs" if least and least != most else f"{most} epoch{'s' if most != 1 else ''}"


def _cost(record: Record) -> str:
    seen = record.seen
    if seen.get("spent_node_seconds") is None:
        return ""
    told = f"cost {_number(seen['spent_node_seconds'], '.0f')} site s and {_number(seen['spent_gigabytes'], '.3g')} GB"
    more = seen.get("expected_node_seconds")
    return told if more is None else f"{told}, about {_number(more, '.0f')} site s to come"


def _megabytes(gigabytes: float) -> str:
    """Two significant digits at least: small models are no reason to say 0."""
    megabytes = 1000 * gigabytes
    return f"{megabytes:.1f}" if megabytes >= 1 or megabytes == 0 else f"{megabytes:.2g}"


def _number(value: object, form: str) -> str:
    width = len(format(0.0, form)) if form.startswith(">") else 0
    return format(value, form) if isinstance(value, int | float) else "none".rjust(width)

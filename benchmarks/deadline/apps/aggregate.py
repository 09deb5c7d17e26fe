"""Aggregate by key, in Python workers: ``aggregate.py SEED SCALE``.

Each round draws records, reduces each of them to a key and a value, and sums the values by key.
"""

from __future__ import annotations

import sys

from pyspark import SparkContext  # noqa: TID253 (runs inside Spark only)

ROUNDS = 4
ROWS = 5_900_000
"""Of each round, at scale 1."""
SLICES = 48
KEYS = 500


def keyed(row: int, seed: int) -> tuple[int, float]:
    """A key and a value, drawn by a linear congruential generator: the same for the same seed, anywhere."""
    state = (row * 2_654_435_761 + seed * 40_503 + 12_345) & 0xFFFFFFFF
    value = 0.0
    for _ in range(8):
        state = (1_664_525 * state + 1_013_904_223) & 0xFFFFFFFF
        value += state / 0x100000000
    return state % KEYS, value


def main(seed: int, scale: float) -> None:
    context = SparkContext.getOrCreate()
    rows = max(SLICES, int(ROWS * scale))
    for number in range(ROUNDS):
        salt = seed * ROUNDS + number
        records = context.range(rows, numSlices=SLICES).map(lambda row, salt=salt: keyed(row, salt))
        zero = (0, 0.0)
        sums = records.aggregateByKey(
            zero, lambda total, value: (total[0] + 1, total[1] + value), lambda a, b: (a[0] + b[0], a[1] + b[1]), 4
        ).collectAsMap()
        assert sum(count for count, _ in sums.values()) == rows
    context.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

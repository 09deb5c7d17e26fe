"""An application that works until somebody lets it end: ``spark_held_job.py FOLDER [CORE_SECONDS]``.

Two stages: a short one with a shuffle, and one whose tasks keep a core busy until there is a file ``gate`` in
the folder and the core-seconds, if any are asked for, are burnt after that. Each of them writes a file
``running-PARTITION-ATTEMPT`` that holds its process id, so that a test need not guess when it runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from operator import add
from pathlib import Path

# Runs inside the Spark driver only; pytest imports it only for the names of its stages.
LONGEST_S = 150.0
"""A job that nobody lets go ends all the same."""
PARTITIONS = 4


def stage_names() -> tuple[str, str]:
    """Of the two stages, as Spark calls them: after the lines below."""
    here = os.path.abspath(__file__)
    lines = Path(here).read_text().splitlines()
    (first,) = (n for n, line in enumerate(lines, 1) if ".reduceByKey(" in line and "line" not in line)
    (second,) = (n for n, line in enumerate(lines, 1) if ".collect()" in line and "line" not in line)
    return f"reduceByKey at {here}:{first}", f"collect at {here}:{second}"


def grind(value: int) -> int:
    return sum((value * step) % 7 for step in range(400_000))


def hold(folder: Path, core_s: float, partition: int, rows: Iterable[object]) -> Iterator[int]:
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    got = sum(1 for _ in rows)
    marker = folder / f"running-{partition}-{context.taskAttemptId()}"
    marker.write_text(str(os.getpid()))
    give_up_at = time.monotonic() + LONGEST_S
    while not (folder / "gate").exists() and time.monotonic() < give_up_at:
        grind(got)
    until_s = time.process_time() + core_s
    while time.process_time() < until_s:
        grind(got)
    yield got


def main(folder: Path, core_s: float) -> None:
    from pyspark import SparkContext

    context = SparkContext()
    pairs = context.parallelize(range(8), 8).map(lambda n: (n, grind(n)))
    sums = pairs.reduceByKey(add, PARTITIONS)
    counts = sums.mapPartitionsWithIndex(lambda partition, rows: hold(folder, core_s, partition, rows))
    assert sum(counts.collect()) == 8
    context.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)

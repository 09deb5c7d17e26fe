"""Counts text files at some cost, then goes one of two ways, as its data say: ``spark_branch.py FOLDER``."""

from __future__ import annotations

import sys

# Runs inside the Spark driver only; pytest does not import it.
from pyspark.sql import SparkSession  # noqa: TID253


def grind(line: str) -> int:
    total = 0
    for step in range(400):
        total = (total * 31 + len(line) * step) % 10_007
    return total


def main(folder: str) -> None:
    spark = SparkSession.builder.getOrCreate()
    lines = spark.sparkContext.textFile(folder, minPartitions=1)
    keyed = lines.map(lambda line: (grind(line) % 50, 1)).reduceByKey(lambda one, other: one + other, 4)
    total = sum(count for _, count in keyed.collect())
    if lines.first().startswith("long"):
        numbers = spark.sparkContext.parallelize([str(number) for number in range(total)], 8)
        assert numbers.map(grind).filter(lambda value: value >= 0).count() == total
    else:
        assert keyed.map(lambda pair: pair[1]).sum() == total
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])

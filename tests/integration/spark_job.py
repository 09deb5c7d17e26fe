"""A small Spark application with real shuffles and Python workers: ``spark_job.py ROWS [ROUNDS]``."""

from __future__ import annotations

import sys

# Runs inside the Spark driver only; pytest does not import it.
from pyspark.sql import SparkSession  # noqa: TID253
from pyspark.sql import functions as F  # noqa: TID253


def grind(value: float) -> float:
    total = 0.0
    for step in range(150):
        total += (value * step) % 7
    return total


def main(rows: int, rounds: int) -> None:
    spark = SparkSession.builder.getOrCreate()
    costly = F.udf(grind, "double")
    for _ in range(rounds):
        frame = spark.range(rows, numPartitions=6).withColumn("key", F.col("id") % 10)
        frame = frame.withColumn("value", costly(F.col("id").cast("double")))
        groups = frame.groupBy("key").agg(F.sum("value")).orderBy("key").collect()
        assert len(groups) == 10
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)

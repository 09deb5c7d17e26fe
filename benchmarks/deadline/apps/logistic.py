"""Logistic regression on noisy labels, in JVM tasks, many short stages: ``logistic.py SEED SCALE``."""

from __future__ import annotations

import sys

from pyspark.ml.classification import LogisticRegression  # noqa: TID253 (runs inside Spark only)
from pyspark.ml.functions import array_to_vector  # noqa: TID253
from pyspark.sql import Column, SparkSession  # noqa: TID253
from pyspark.sql import functions as F  # noqa: TID253

ROWS = 1_600_000
"""At scale 1."""
SLICES = 16
DIMENSIONS = 40
ITERATIONS = 30


def drawn(*keys: Column) -> Column:
    """Evenly from -1 to 1, the same for the same keys."""
    return F.pmod(F.xxhash64(*keys), F.lit(1_000_003)) / 500_001.5 - 1


def main(seed: int, scale: float) -> None:
    spark = SparkSession.builder.getOrCreate()
    rows = max(400, int(ROWS * scale))
    axes = F.sequence(F.lit(1), F.lit(DIMENSIONS))
    values = F.transform(axes, lambda index: drawn(F.col("id"), index, F.lit(seed)))
    frame = spark.range(rows, numPartitions=SLICES).select("id", values.alias("values"))
    # Weights of very different sizes and luck in the labels: the optimiser never settles before its last iteration.
    weighted = F.transform(F.col("values"), lambda value, index: value * F.pow(F.lit(0.8), index))
    score = F.aggregate(weighted, F.lit(0.0), lambda total, value: total + value)
    luck = (drawn(F.col("id"), F.lit(seed)) + 1) / 2
    frame = frame.withColumn("label", (luck < 1 / (1 + F.exp(-4 * score))).cast("double"))
    examples = frame.select("label", array_to_vector("values").alias("features"))
    model = LogisticRegression(maxIter=ITERATIONS, tol=0.0, regParam=1e-6).fit(examples)
    assert len(model.coefficients) == DIMENSIONS
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

"""K-means clustering of points around hidden centres, in JVM tasks: ``kmeans.py SEED SCALE``."""

from __future__ import annotations

import sys

from pyspark.ml.clustering import KMeans  # noqa: TID253 (runs inside Spark only)
from pyspark.ml.functions import array_to_vector  # noqa: TID253
from pyspark.sql import Column, SparkSession  # noqa: TID253
from pyspark.sql import functions as F  # noqa: TID253

ROWS = 1_200_000
"""At scale 1."""
SLICES = 16
DIMENSIONS = 20
CENTRES = 40
ITERATIONS = 15


def drawn(*keys: Column) -> Column:
    """Evenly from 0 to 1, the same for the same keys."""
    return F.pmod(F.xxhash64(*keys), F.lit(1_000_003)) / 1_000_003


def main(seed: int, scale: float) -> None:
    spark = SparkSession.builder.getOrCreate()
    rows = max(CENTRES * 10, int(ROWS * scale))

    def coordinate(index: Column) -> Column:
        # Around one of the hidden centres, but the groups overlap: it takes long to settle.
        return 3 * drawn(F.col("id") % CENTRES, index) + 2 * drawn(F.col("id"), index, F.lit(seed))

    axes = F.sequence(F.lit(1), F.lit(DIMENSIONS))
    frame = spark.range(rows, numPartitions=SLICES)
    points = frame.select(array_to_vector(F.transform(axes, coordinate)).alias("features"))
    # tol=0: every run makes all its iterations, whatever its seed.
    model = KMeans(k=CENTRES, maxIter=ITERATIONS, tol=0.0, initMode="random", seed=seed).fit(points)
    assert len(model.clusterCenters()) == CENTRES
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

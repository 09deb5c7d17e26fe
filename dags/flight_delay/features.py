"""Spark application: join flights with weather, planes and airports, and build features.

``spark-submit features.py RAW_DIR OUT_DIR``

Reads the five CSV files of RAW_DIR; writes ``OUT_DIR/train/carrier=XX/`` (Parquet, one data set per carrier),
``OUT_DIR/heldout`` (the last days of each month, all carriers) and ``OUT_DIR/features.json`` (feature names,
flights per carrier). Question asked of the data, when a flight leaves its gate: will it arrive more than
15 minutes late?
"""

import json
import sys
from pathlib import Path

from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

HELD_OUT_FROM_DAY = 26
FEATURES = [
    "dep_delay", "distance", "sched_minutes", "hour_sin", "hour_cos", "season_sin", "season_cos", "weekend",
    "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib",
    "plane_age", "seats", "dest_lat", "dest_lon", "dest_alt", "from_ewr", "from_jfk",
    "origin_delay_1h", "origin_flights_1h", "route_delay_7d", "plane_delay_1d",
]  # fmt: skip


def read(spark: SparkSession, raw: Path, name: str) -> DataFrame:
    return spark.read.csv(str(raw / f"{name}.csv"), header=True, inferSchema=True, nullValue="NA")


def joined(spark: SparkSession, raw: Path) -> DataFrame:
    """One row for each flight that left and arrived, with its weather, plane and destination."""
    flights = read(spark, raw, "flights").where("dep_delay is not null and arr_delay is not null")
    weather = read(spark, raw, "weather").drop("year", "month", "day", "hour", "wind_dir", "wind_gust")
    planes = read(spark, raw, "planes").selectExpr("tailnum", "cast(year as int) as built", "seats")
    airports = read(spark, raw, "airports").selectExpr(
        "faa as dest", "lat as dest_lat", "lon as dest_lon", "alt as dest_alt"
    )
    return (
        flights.join(weather.dropDuplicates(["origin", "time_hour"]), ["origin", "time_hour"], "left")
        .join(planes, "tailnum", "left")
        .join(airports, "dest", "left")
    )


def with_history(flights: DataFrame) -> DataFrame:
    """What was known of earlier flights: at the origin (last hour), of the route (week) and of the plane (day)."""
    at = F.unix_timestamp("time_hour") + F.col("minute") * 60
    hour, day = 3600, 86400
    # Arrivals of flights scheduled less than eight hours ago may not have happened yet: those windows end earlier.
    origin = Window.partitionBy("origin").orderBy("at").rangeBetween(-hour, -1)
    route = Window.partitionBy("dest", "carrier").orderBy("at").rangeBetween(-7 * day, -8 * hour)
    plane = Window.partitionBy("tailnum").orderBy("at").rangeBetween(-day, -8 * hour)
    return (
        flights.withColumn("at", at)
        .withColumn("origin_delay_1h", F.avg("dep_delay").over(origin))
        .withColumn("origin_flights_1h", F.count("*").over(origin))
        .withColumn("route_delay_7d", F.avg("arr_delay").over(route))
        .withColumn("plane_delay_1d", F.avg("arr_delay").over(plane))
    )


def with_features(flights: DataFrame) -> DataFrame:
    """The numeric columns of FEATURES, without gaps, and the label ``late``."""
    turn = F.lit(2 * 3.141592653589793)
    hours = (F.col("hour") + F.col("minute") / 60) / 24
    season = F.dayofyear("time_hour") / 365
    computed = {
        "sched_minutes": (F.col("sched_arr_time") - F.col("sched_dep_time")).cast("double"),
        "hour_sin": F.sin(turn * hours), "hour_cos": F.cos(turn * hours),
        "season_sin": F.sin(turn * season), "season_cos": F.cos(turn * season),
        "weekend": F.dayofweek("time_hour").isin(1, 7).cast("double"),
        "plane_age": F.lit(2013) - F.col("built"),
        "from_ewr": (F.col("origin") == "EWR").cast("double"),
        "from_jfk": (F.col("origin") == "JFK").cast("double"),
        "late": (F.col("arr_delay") > 15).cast("float"),
    }  # fmt: skip
    table = flights.withColumns(computed)
    typical = table.select([F.avg(name).alias(name) for name in FEATURES]).first().asDict()
    return table.fillna({name: value or 0.0 for name, value in typical.items()})


def main(raw: Path, out: Path) -> None:
    spark = SparkSession.builder.appName("flight-delay-features").getOrCreate()
    table = with_features(with_history(joined(spark, raw))).select("carrier", "day", "late", *FEATURES)
    table = VectorAssembler(inputCols=FEATURES, outputCol="raw").transform(table).cache()
    train = F.col("day") < HELD_OUT_FROM_DAY
    scaler = StandardScaler(inputCol="raw", outputCol="scaled", withMean=True).fit(table.where(train))
    result = scaler.transform(table).select(
        "carrier", "day", "late", vector_to_array("scaled", "float32").alias("features")
    )
    result.where(train).drop("day").repartition("carrier").write.mode("overwrite").partitionBy("carrier").parquet(
        str(out / "train")
    )
    result.where(~train).drop("day").coalesce(1).write.mode("overwrite").parquet(str(out / "heldout"))
    counts = {row["carrier"]: row["count"] for row in result.where(train).groupBy("carrier").count().collect()}
    (out / "features.json").write_text(json.dumps({"features": FEATURES, "flights_per_carrier": counts}, indent=1))
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

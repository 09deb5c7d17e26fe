"""The applications: each a file for spark-submit that takes a seed and a scale, sized for two cores.

At scale 1 an uncontrolled run takes roughly 40 s on two quiet cores, and executors do most of its work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NAMES = ("aggregate", "kmeans", "pagerank", "logistic")
"""Python workers, JVM tasks, Python workers, JVM tasks."""

PROPERTIES: Mapping[str, str] = {
    # A driver of half a minute gains nothing from the optimising compiler, which would cost more than its work.
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    "spark.driver.memory": "768m",
    "spark.executor.memory": "2g",
    "spark.ui.showConsoleProgress": "false",
}


def path(name: str) -> Path:
    """The application's file."""
    return Path(__file__).with_name(f"{name}.py")

"""PageRank of a random graph with a few popular pages, in Python workers: ``pagerank.py SEED SCALE``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from operator import add
from random import Random

from pyspark import SparkContext  # noqa: TID253 (runs inside Spark only)

PAGES = 130_000
"""At scale 1."""
LINKS = 8
"""Of each page."""
SLICES = 12
ITERATIONS = 8
DAMPING = 0.85


def links(page: int, pages: int, seed: int) -> tuple[int, list[int]]:
    """The pages that ``page`` links to; low numbers are popular."""
    draw = Random(seed * 1_000_003 + page)
    return page, [int(pages * draw.random() ** 3) for _ in range(LINKS)]


def shares(pair: tuple[int, tuple[Iterable[int], float]]) -> Iterator[tuple[int, float]]:
    """What a page gives to those that it links to; it keeps itself in the game with nothing."""
    page, (targets, rank) = pair
    targets = list(targets)
    yield page, 0.0
    for target in targets:
        yield target, rank / len(targets)


def main(seed: int, scale: float) -> None:
    context = SparkContext.getOrCreate()
    pages = max(100, int(PAGES * scale))
    graph = context.range(pages, numSlices=SLICES).map(lambda page: links(page, pages, seed))
    graph = graph.partitionBy(SLICES).cache()
    ranks = graph.mapValues(lambda _: 1.0)
    for _ in range(ITERATIONS):
        given = graph.join(ranks, SLICES).flatMap(shares)
        ranks = given.reduceByKey(add, SLICES).mapValues(lambda rank: 1 - DAMPING + DAMPING * rank)
    total = ranks.values().sum()
    assert abs(total - pages) < 0.01 * pages
    context.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

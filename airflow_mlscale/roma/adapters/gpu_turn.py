"""Whose turn it is on the GPUs: one daemon's for each state directory, while another one takes over from it too.

Two daemons that bring models to the same GPU would each count the other's memory as somebody else's, and make room
for each other by turns. So a successor serves from CPU workers until the daemon before it has let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from airflow_mlscale import errors
from airflow_mlscale.roma import gpus
from airflow_mlscale.roma.adapters import handover

log = logging.getLogger(__name__)

LOCK = "gpus.lock"
"""In the state directory."""

LOOK_S = 0.1
"""A lock has no event: how often it is tried."""


async def hold(graphics: gpus.Gpus, lock: handover.StateLock, *, given_up: asyncio.Event, stop: asyncio.Event) -> None:
    """Use the GPUs from when nobody else on this state does, until they are given up or the daemon stops.

    Args:
        graphics: the GPUs; whoever calls this runs their loop beside it.
        lock: the right to use them.
        given_up: set when a successor takes over.
        stop: set when the daemon stops; it ends what is on the GPUs itself, and `lock` goes with it.
    """
    graphics.ours = False
    while not _taken(lock):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_S)
            return
    graphics.ours = True
    log.info("the GPUs are this daemon's")
    waits = [asyncio.ensure_future(event.wait()) for event in (given_up, stop)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if not stop.is_set():
        await graphics.hand_over(stop)
        lock.release()
        log.info("the GPUs are left to the daemon that has taken over")


def _taken(lock: handover.StateLock) -> bool:
    try:
        lock.take()
    except errors.InvalidInputError:
        return False
    return True

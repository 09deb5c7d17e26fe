"""One segment of a simulated run, in a process of its own: ``python -m …simulated_run JOB``.

Started by `simulated_federation`; plays what the NVFlare server job plays on a real federation, and shows life as
that does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_mlscale.federated import controller, model, simulation
from airflow_mlscale.federated.adapters import keras_simulation, run_directory, simulated_federation
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.runtime import processes

log = logging.getLogger(__name__)


def play(job: Path) -> model.RunState:
    """Play the segment to its end; returns the run's state then."""
    arguments = json.loads((job / "app" / "config" / "config_fed_server.json").read_text("utf-8"))["workflows"][0][
        "args"
    ]
    told = json.loads((job / simulated_federation.FILE).read_text("utf-8"))
    run, segment = RunSettings.from_json(arguments["run"]), int(arguments["segment"])
    directory = run_directory.RunDirectory(Path(arguments["run_dir"]))
    writer = run_directory.RunWriter(directory, run.target, segment)
    ended = threading.Event()
    threading.Thread(target=_live, args=(writer, run, told, ended), name="mlscale-heartbeat", daemon=True).start()
    before = directory.state()
    try:
        sites = [simulation.SimulatedSite.from_json(each) for each in told["sites"]]
        return keras_simulation.play(
            run, sites, directory, writer, segment=segment, seed=told["seed"],
            began_s=before.updated_at if before else told["began_at"],
        ).state  # fmt: skip
    except Exception as exc:  # the cause must reach the run's state, whatever it is
        log.exception("segment %d failed", segment)
        last = directory.state()
        now = last.updated_at if last else told["began_at"]  # of the simulated clock
        # what is simulated would raise again: no new segment
        state = replace(controller.failed(last, run, segment, exc, now), status=model.Status.FAILED)
        writer.checkpoint(state)
        return state
    finally:
        ended.set()
        processes.forget(told["service"])


def _live(writer: run_directory.RunWriter, run: RunSettings, told: dict[str, Any], ended: threading.Event) -> None:
    """Show life, for as long as somebody wants to see it."""
    while not ended.is_set():
        writer.beat()
        seen_at = writer.directory.needed_at()
        if seen_at is None or time.time() - seen_at > told["patience_s"]:
            log.warning("nobody has followed run %s for %.0f s; it ends here", run.run_id, told["patience_s"])
            processes.forget(told["service"])
            os._exit(3)  # a round may be under way; what is durable is whole, and a later segment goes on there
        ended.wait(min(1.0, run.heartbeat_s))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(0 if play(Path(sys.argv[1])).status.usable else 1)

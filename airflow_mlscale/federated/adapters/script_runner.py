"""Runs a user's client script on a site; whatever ends it before the job does becomes the site's answer.

``python -m airflow_mlscale.federated.adapters.script_runner SCRIPT.py|MODULE ARGUMENTS…``, in the job's folder. The
script is the program, as if it had been started itself. NVFlare fails a whole job when a trainer never reports; so when
a script ends too early, this process stays in its place and answers each task with the reason.
"""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

from airflow_mlscale.federated.adapters import wire

log = logging.getLogger("airflow_mlscale.federated.script")


def main() -> None:
    """Run the script, and answer for it if it has ended before the job."""
    del sys.argv[0]  # the script sees its own name and arguments
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    why = run(sys.argv[0])
    try:
        answer_for_it(why)
    except Exception:  # NVFlare's session raises several kinds once it is over
        log.exception("the session has ended; the script: %s", why)


def run(script: str) -> str:
    """Run a script to its end; returns how it ended, in words."""
    try:
        if script.endswith(".py"):
            sys.path.insert(0, str(Path(script).resolve().parent))
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        return f"the client script ended with exit code {exc.code}"
    except Exception as exc:  # the user's code may raise anything; the server must hear it
        log.exception("the client script failed")
        return f"{type(exc).__name__}: {exc}"
    return "the client script ended before the run"


def answer_for_it(why: str) -> None:
    """Answer all tasks until the job ends, the one that the script may have left open first."""
    import nvflare.client as flare
    from nvflare.app_common.abstract.fl_model import FLModel

    flare.init()  # only warns if the script has done it
    while flare.is_running():
        task = flare.receive()
        if task is None:
            return
        log.error("round %s: %s", task.current_round, why)
        flare.send(FLModel(params={}, meta={wire.ERROR: why}, current_round=task.current_round))


if __name__ == "__main__":
    main()

"""Entry point. Without ``--keep`` everything runs below a guard, so that nothing survives this process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from airflow_mlscale.runtime import processes

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".demo"
REPORT = ROOT / "demo-report"


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Airflow and the engines running at the end")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["MLSCALE_HOME"] = str(HOME / "home")
    if options.inside or options.keep:
        from demo import pipeline

        return pipeline.run(ROOT / "dags", HOME, REPORT, keep=options.keep)
    # A terminal's Ctrl-C reaches only this process: the guard has a session of its own and ends all below it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    child = processes.spawn("demo", [sys.executable, "-m", "demo", "--inside"], cwd=ROOT, grace_s=20)
    try:
        return child.wait()
    except KeyboardInterrupt:
        print("\nending everything that was started …", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # impatience must not leave processes behind
        return 130
    finally:
        child.end(timeout_s=40)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

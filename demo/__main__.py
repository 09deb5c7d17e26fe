"""Entry point. Unless it is to be kept, everything runs below a guard, so that nothing survives this process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from airflow_mlscale.runtime import processes

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The flight-delay pipeline, end to end.")
    parser.add_argument("--keep", action="store_true", help="leave Airflow and the engines running at the end")
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="state of all services, and the data sets")
    parser.add_argument("--report", type=Path, default=ROOT / "demo-report", help="directory for the report")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    home, report = options.home.resolve(), options.report.resolve()
    os.environ["MLSCALE_HOME"] = str(home / "services")
    if options.inside or options.keep:
        from demo import pipeline

        for number in SIGNALS:
            signal.signal(number, _interrupt)
        return pipeline.run(ROOT / "dags", home, report, keep=options.keep)
    # A terminal's Ctrl-C reaches only this process: the guard has a session of its own and ends all below it.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    command = [sys.executable, "-m", "demo", "--inside", "--home", str(home), "--report", str(report)]
    child = processes.spawn("demo", command, cwd=ROOT, grace_s=20)
    try:
        return child.wait()
    except KeyboardInterrupt:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # impatience must not leave processes behind
        print("\nending everything that was started …", flush=True)
        return 130
    finally:
        child.end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""The ``mlscale`` command: thin; each engine brings its own sub-commands."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from airflow_mlscale import __version__, errors

COMMANDS = (
    "airflow_mlscale.embedded.main",
    "airflow_mlscale.cpu.main",
    "airflow_mlscale.spark.main",
    "airflow_mlscale.federated.main",
    "airflow_mlscale.roma.main",
)
"""Modules with ``add_commands(commands)``, which adds parsers whose default ``run`` is called with the arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Deliberate errors are one line on standard error, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="mlscale", description="Spark deadlines, federated quality targets and serving objectives that are kept."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log at debug level")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        import_module(module).add_commands(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if not options.verbose:  # one line for each request, also while waiting for a service to start
        logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return int(options.run(options) or 0)
    except errors.MlscaleError as exc:
        print(f"mlscale: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:  # a path or an address from the command line that cannot be used
        if options.verbose:
            raise
        print(f"mlscale: {exc.filename or 'operating system'}: {exc.strerror or exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

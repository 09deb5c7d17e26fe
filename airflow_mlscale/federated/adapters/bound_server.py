"""NVFlare's server on one address: ``python -m airflow_mlscale.federated.adapters.bound_server ARGUMENTS…``.

NVFlare listens on loopback if its certified name is a loopback one and on every address of the machine otherwise. A
federation's port is no business of networks that no site is in, so this runs NVFlare's own server program with one
change: a listener that would take every address takes that of ``MLSCALE_FEDERATED_BIND``.

Executed only as the server's process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# A program, not a library: everything below is what it is there to run.
from nvflare.fuel.f3.drivers import tcp_driver  # noqa: TID253
from nvflare.fuel.f3.drivers.driver_params import DriverParams  # noqa: TID253
from nvflare.fuel.f3.mpm import MainProcessMonitor  # noqa: TID253
from nvflare.private.fed.app.server import server_train  # noqa: TID253
from nvflare.private.fed.app.utils import version_check  # noqa: TID253

from airflow_mlscale.federated.adapters import environment

ALL = ("", "0", "0.0.0.0")  # noqa: S104 (what is replaced)


class BoundTcpServer(tcp_driver.TcpStreamServer):
    """NVFlare's TLS listener, which never takes every address of the machine unless it is told to."""

    def __init__(self, driver: Any, connector: Any) -> None:
        if connector.params.get(DriverParams.HOST.value) in ALL:
            connector.params[DriverParams.HOST.value] = os.environ[environment.BIND]
        super().__init__(driver, connector)


def main() -> int:
    """Run the server until it is shut down; returns its exit code."""
    tcp_driver.TcpStreamServer = BoundTcpServer
    version_check()
    arguments = server_train.parse_arguments()
    return int(MainProcessMonitor.run(main_func=server_train.main, run_dir=arguments.workspace, args=arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())

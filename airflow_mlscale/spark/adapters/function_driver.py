"""Runs one function inside a Spark driver: ``function_driver.py CALL OUTCOME``, both files of `function_call`.

Copied beside its files and started by spark-submit, so it imports nothing of this package.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path
from typing import Any


def main(call_path: Path, outcome_path: Path) -> int:
    """Returns the exit code: 0 when the function has returned, whether or not its value can travel."""
    # Executed inside the driver only.
    from pyspark import cloudpickle
    from pyspark.sql import SparkSession

    call: dict[str, Any] = pickle.loads(call_path.read_bytes())  # noqa: S301  written by our own task
    call_path.unlink()  # a task that is killed cannot: arguments may be secret
    sys.path.extend(folder for folder in call["path"] if folder not in sys.path)
    spark = SparkSession.builder.getOrCreate()
    try:
        function, args, kwargs, wanted = pickle.loads(call["call"])  # noqa: S301
        offered = {"spark": spark, "sc": spark.sparkContext}
        value = function(*args, **kwargs, **{name: offered[name] for name in wanted})
    except Exception as exc:
        traceback.print_exc()
        outcome_path.write_bytes(_packed(cloudpickle, "error", exc, f"{type(exc).__name__}: {exc}"))
        return 1
    else:
        outcome_path.write_bytes(_packed(cloudpickle, "value", value, f"a {type(value).__name__}"))
        return 0
    finally:
        spark.stop()


def _packed(cloudpickle: Any, kind: str, thing: Any, words: str) -> bytes:
    """What became of the call; words stand for a thing that cannot leave the driver."""
    try:
        travelling = cloudpickle.dumps(thing)
    except Exception:  # whatever its __reduce__ raises
        travelling = None
    return pickle.dumps({"kind": kind, "thing": travelling, "words": words})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

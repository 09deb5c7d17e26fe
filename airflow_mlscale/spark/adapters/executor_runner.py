"""Runs inside the driver's Python: the user's application, and a thread that changes how many executors it has.

``python executor_runner.py APPLICATION [ARGUMENTS…]`` with the path of a socket in ``MLSCALE_EXECUTORS``. It listens
there for lines such as ``{"executors": 2}``. Only the standard library is imported: the driver's Python may
be another one, without this package. To the application everything is as if it had been started by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import sys
import threading
from types import TracebackType
from typing import Any

SOCKET = "MLSCALE_EXECUTORS"


def main() -> None:
    """Listen, then become the application."""
    address = os.environ.pop(SOCKET)
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    threading.Thread(target=listen, args=(address,), name="executor count", daemon=True).start()
    sys.excepthook = without_us(sys.excepthook)
    runpy.run_path(sys.argv[0], run_name="__main__")


def listen(address: str) -> None:
    """Answer each connection's one line."""
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        server.bind(address)
    finally:
        os.umask(before)
    server.listen()
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines, contextlib.suppress(OSError):
            print(json.dumps(answer(lines.readline())), file=lines, flush=True)


def answer(line: str) -> dict[str, Any]:
    """What became of one request; whatever goes wrong must not end the thread."""
    try:
        return scale(int(json.loads(line)["executors"]))
    except Exception as exc:  # of py4j, of the JVM, of the request
        return {"error": f"{type(exc).__name__}: {exc}"[:500]}


def scale(count: int) -> dict[str, Any]:
    """Ask for so many executors; those too many finish their tasks, hand their blocks on and go."""
    context = active_context()
    if context is None:
        return {"executors": None}
    spark, jvm = context._jsc.sc(), context._jvm
    nowhere = jvm.PythonUtils.toScalaMap(jvm.java.util.HashMap())
    backend = spark.schedulerBackend()
    running = [executor for executor in rows(spark.statusStore().executorList(True)) if executor.id() != "driver"]
    leaving = [executor for executor in running if backend.isExecutorActive(executor.id())]
    leaving = sorted(leaving, key=lambda executor: executor.activeTasks())[: max(0, len(leaving) - count)]
    for executor in leaving:
        why = jvm.org.apache.spark.scheduler.ExecutorDecommissionInfo("not needed for the deadline", none(jvm))
        backend.decommissionExecutor(executor.id(), why, False, False)
    spark.requestTotalExecutors(count, 0, nowhere)
    return {"executors": len(running), "leaving": [executor.id() for executor in leaving]}


def active_context() -> Any:
    """The application's `SparkContext`; None before it is up. Never imports pyspark: that is the application's."""
    module = sys.modules.get("pyspark.core.context")
    found = getattr(getattr(module, "SparkContext", None), "_active_spark_context", None)
    return found if getattr(found, "_jsc", None) is not None else None  # it is announced before it is up


def none(jvm: Any) -> Any:
    """Scala's."""
    return getattr(getattr(jvm.scala, "None$"), "MODULE$")


def rows(sequence: Any) -> list[Any]:
    """A Scala sequence as a list."""
    return [sequence.apply(index) for index in range(sequence.size())]


def without_us(show: Any) -> Any:
    """An exception hook whose tracebacks begin with the application."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = (__file__, runpy.__file__, "<frozen runpy>")
        while trace is not None and trace.tb_frame.f_code.co_filename in own:
            trace = trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    return hook


if __name__ == "__main__":
    main()

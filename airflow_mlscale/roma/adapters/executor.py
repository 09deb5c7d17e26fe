"""A GPU's executor: one process, one GPU, the models that have a seat on it, one socket to the gateway.

``python -m airflow_mlscale.roma.adapters.executor [ENTRY_FILE…]``

Speaks as a `worker` does, but names the model in each frame: ``load`` and ``unload`` any number of models,
``infer`` with each of them. Which GPU it runs on is in ``CUDA_VISIBLE_DEVICES`` before TensorFlow is imported; an
emulated one has none and computes on the CPU.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import frames, worker, worker_process

EMULATED_VARIABLE = "MLSCALE_ROMA_EMULATED_GPU"
"""Set where the executor computes on the CPU on purpose."""


class Executor:
    """The loop over frames."""

    def __init__(self, connection: socket.socket, *, emulated: bool) -> None:
        self._connection = connection
        self._emulated = emulated
        self._sending = threading.Lock()
        self._runners: dict[str, worker.Runner] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        """One model at a time, so that the memory it takes can be told."""
        self._pool: ThreadPoolExecutor | None = None

    def serve(self) -> None:
        """Until the gateway closes the socket."""
        with self._connection.makefile("rb") as stream:
            while frame := frames.read(stream):
                header, body = frame
                match header["kind"]:
                    case "load":
                        if self._pool is None:
                            self._pool = ThreadPoolExecutor(header["places"], thread_name_prefix="execution")
                        self._loader.submit(self._load, header)
                    case "unload":
                        self._loader.submit(self._unload, header["model"])
                    case _ if self._pool:
                        self._pool.submit(self._infer, header, body)

    def _send(self, header: frames.Header, bodies: Sequence[bytes] = ()) -> None:
        with self._sending:
            self._connection.sendall(frames.pack(header, bodies))

    def _load(self, order: frames.Header) -> None:
        key = order["model"]
        try:
            self._send({"model": key, **self._loaded(order)})
        except errors.ModelArtefactError as exc:
            self._send({"kind": "failed", "model": key, "error": exc.fix})
        except Exception as exc:  # whatever one model does, the others stay
            self._send({"kind": "failed", "model": key, "error": f"{type(exc).__name__}: {exc}"[:500]})

    def _loaded(self, order: frames.Header) -> frames.Header:
        from airflow_mlscale.roma import runtimes
        from airflow_mlscale.roma.adapters import loading

        if not self._emulated:
            _require_gpu()
        warm = loading.load(
            Path(order["artefact"]),
            runtimes.Runtime(name="tensorflow"),
            threads=order["places"],
            max_batch=order["max_batch"],
            objective_s=order["objective_s"],
        )
        self._runners[order["model"]] = worker.Runner(warm.model, name=order["name"], version=order["version"])
        return {"kind": "loaded", "service_s": warm.service_s, "note": warm.note}

    def _unload(self, key: str) -> None:
        if runner := self._runners.pop(key, None):
            runner.close()
        gc.collect()

    def _infer(self, header: frames.Header, body: bytes) -> None:
        began = time.perf_counter()
        parts = frames.cut(body, [length for _, length, _ in header["calls"]])
        calls = [
            model.Call(protocol, part, header_length)
            for (protocol, _, header_length), part in zip(header["calls"], parts, strict=True)
        ]
        runner = self._runners.get(header["model"])
        if runner is None:
            gone = worker.failure(errors.RunFailedError("the model is no longer on this GPU"))
            answers = [gone for _ in calls]
        else:
            answers = runner.run(calls)
        self._send(
            {
                "kind": "served",
                "id": header["id"],
                "answers": worker_process.described(answers),
                "service_s": time.perf_counter() - began,
                "cpu_s": time.process_time(),
            },
            [answer.body for answer in answers],
        )


def _require_gpu() -> None:
    import tensorflow as tf

    found: list[Any] = tf.config.list_physical_devices("GPU")
    if not found:
        fix = "TensorFlow sees no GPU here; install tensorflow[and-cuda] in place of tensorflow-cpu"
        raise errors.ModelArtefactError("device", os.environ.get("CUDA_VISIBLE_DEVICES"), fix)


def main() -> int:
    """Join, connect, serve; returns the exit code."""
    emulated = os.environ.pop(EMULATED_VARIABLE, "") == "1"
    with contextlib.suppress(ConnectionError), worker.connected(sys.argv[1:]) as connection:
        Executor(connection, emulated=emulated).serve()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # TensorFlow's own threads have nothing left to say

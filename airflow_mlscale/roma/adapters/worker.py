"""A model worker: one process, one model, one socket to the gateway.

``python -m airflow_mlscale.roma.adapters.worker [ENTRY_FILE…]``

Joins its CPU group, connects, says hello, and then does what it is told until the socket closes: ``load``
once, ``infer`` many times. TensorFlow, or another runtime, is imported only when there is a model to load.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model, runtimes
from airflow_mlscale.roma.adapters import frames, worker_process

if TYPE_CHECKING:
    from airflow_mlscale.roma.adapters import tensors, warming


class Worker:
    """The loop over frames."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._runner: Runner | None = None
        self._pool: ThreadPoolExecutor | None = None

    def serve(self) -> None:
        """Until the gateway closes the socket."""
        with self._connection.makefile("rb") as stream:
            while frame := frames.read(stream):
                header, body = frame
                if header["kind"] == "load":
                    self._load(header)
                elif self._pool:
                    self._pool.submit(self._infer, header, body)
                else:
                    self._infer(header, body)

    def _send(self, header: frames.Header, bodies: Sequence[bytes] = ()) -> None:
        with self._sending:
            self._connection.sendall(frames.pack(header, bodies))

    def _load(self, order: frames.Header) -> None:
        from airflow_mlscale.roma.adapters import loading, signatures

        self._send({"kind": "state", "state": model.State.LOADING})
        try:
            warm = loading.load(
                Path(order["artefact"]),
                runtimes.Runtime(**order["runtime"]),
                threads=order["threads"],
                max_batch=order["max_batch"],
                objective_s=order["objective_s"],
                on_warming=lambda: self._send({"kind": "state", "state": model.State.WARMING}),
            )
        except errors.ModelArtefactError as exc:
            self._send({"kind": "failed", "field": exc.field, "value": exc.value, "fix": exc.fix})
            return
        loaded = warm.model
        self._runner = Runner(loaded, name=order["name"], version=order["version"])
        if order["threads"] > 1:
            self._pool = ThreadPoolExecutor(order["threads"], thread_name_prefix="execution")
        self._send(
            {
                "kind": "loaded",
                "signatures": signatures.described(loaded.signatures),
                "default_signature": loaded.default,
                "batchable": loaded.signatures[loaded.default].joinable,
                "service_s": warm.service_s,
                "note": warm.note,
                "runtime": warm.report,
            }
        )

    def _infer(self, header: frames.Header, body: bytes) -> None:
        began = time.perf_counter()
        parts = frames.cut(body, [length for _, length, _ in header["calls"]])
        calls = [
            model.Call(protocol, part, header_length)
            for (protocol, _, header_length), part in zip(header["calls"], parts, strict=True)
        ]
        if self._runner is None:
            raise AssertionError("asked to infer before a model was loaded")
        answers = self._runner.run(calls)
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


class Runner:
    """Decodes calls, joins those that fit together, runs them, encodes the answers."""

    def __init__(self, loaded: warming.Executable, *, name: str, version: str) -> None:
        self._codecs = _codecs()
        self._model = loaded
        self._name = name
        self._version = version

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def run(self, calls: Sequence[model.Call]) -> list[model.Answer]:
        """One answer for each call, in order; a bad call costs only its own answer."""
        answers: dict[int, model.Answer] = {}
        groups: dict[Any, dict[int, tensors.Inference]] = {}
        for index, call in enumerate(calls):
            try:
                codec = self._codecs[call.protocol]
                inference = codec.decode(call, self._model.signatures, self._model.default)
            except RecursionError:
                fix = "values are nested too deeply"
                answers[index] = failure(errors.InvalidInputError("body", f"{len(call.body)} bytes", fix))
            except Exception as exc:  # whatever a body holds, it must not cost its neighbours
                answers[index] = failure(exc)
            else:
                groups.setdefault(_kind(inference, index), {})[index] = inference
        for group in groups.values():
            answers.update(self._run_together(group, calls))
        return [answers[index] for index in range(len(calls))]

    def _run_together(
        self, group: dict[int, tensors.Inference], calls: Sequence[model.Call]
    ) -> dict[int, model.Answer]:
        import numpy as np

        inferences = list(group.values())
        signature = inferences[0].signature
        if len(inferences) == 1:
            return {index: self._run_alone(one, calls[index]) for index, one in group.items()}
        joined = {name: np.concatenate([one.inputs[name] for one in inferences]) for name in signature.inputs}
        try:
            outputs = self._model.run(signature, joined)
        except Exception:  # one of them is to blame; find out which
            return {index: self._run_alone(one, calls[index]) for index, one in group.items()}
        answers, start, total = {}, 0, sum(one.rows for one in inferences)
        if any(array.shape[:1] != (total,) for array in outputs.values()):
            return {index: self._run_alone(one, calls[index]) for index, one in group.items()}
        for index, one in group.items():
            part = {name: array[start : start + one.rows] for name, array in outputs.items()}
            answers[index] = self._encoded(one, part, calls[index])
            start += one.rows
        return answers

    def _run_alone(self, one: tensors.Inference, call: model.Call) -> model.Answer:
        try:
            outputs = self._model.run(one.signature, one.inputs)
        except Exception as exc:  # whatever it is, it must be told: nobody else answers this call
            return failure(exc)
        return self._encoded(one, outputs, call)

    def _encoded(self, one: tensors.Inference, outputs: dict[str, tensors.Array], call: model.Call) -> model.Answer:
        try:
            encode: Callable[..., model.Answer] = self._codecs[call.protocol].encode
            answer = encode(one, outputs, name=self._name, version=self._version)
            return replace(answer, nan=True) if any(map(_holds_nan, outputs.values())) else answer
        except Exception as exc:  # an output that cannot be written must not end the worker
            return failure(exc)


def _codecs() -> dict[str, Any]:
    """What reads and writes the bodies, by `model.Call.protocol`."""
    from airflow_mlscale.roma.adapters import (
        examples_codec,
        tfserving_codec,
        tfserving_grpc_codec,
        v2_codec,
        v2_grpc_codec,
    )

    return {
        "v2": v2_codec,
        "v2-grpc": v2_grpc_codec,
        "tfs": tfserving_codec,
        "tfs-classify": examples_codec.Examples(verb="classify", grpc=False),
        "tfs-regress": examples_codec.Examples(verb="regress", grpc=False),
        "tfs-grpc": tfserving_grpc_codec,
        "tfs-grpc-classify": examples_codec.Examples(verb="classify", grpc=True),
        "tfs-grpc-regress": examples_codec.Examples(verb="regress", grpc=True),
    }


def _holds_nan(array: tensors.Array) -> bool:
    import numpy as np

    # To NumPy, bfloat16 is of no kind that it knows.
    return (array.dtype.kind in "fc" or array.dtype.name == "bfloat16") and bool(np.isnan(array).any())


def _kind(inference: tensors.Inference, index: int) -> Any:
    """Calls of the same kind can be joined; those that cannot be are kinds of their own."""
    if not inference.signature.joinable:
        return index
    return inference.signature.name, tuple(
        (name, array.dtype.str, array.shape[1:]) for name, array in sorted(inference.inputs.items())
    )


def failure(exc: Exception) -> model.Answer:
    """As REST gives errors, ``{"error": "…"}``; the gateway puts it in another protocol's words."""
    status = 400 if isinstance(exc, errors.InvalidInputError) else 500
    text = str(exc) if isinstance(exc, errors.MlscaleError) else f"{type(exc).__name__}: {exc}"
    return model.Answer(status, json.dumps({"error": text[:2000]}).encode())


@contextlib.contextmanager
def connected(entry_files: Sequence[str]) -> Iterator[socket.socket]:
    """The socket to the gateway, from a process that has joined its CPU group and greeted."""
    for entry_file in map(Path, entry_files):
        try:
            entry_file.write_text(str(os.getpid()))
        except OSError as exc:  # an unmanaged worker serves too
            print(f"worker: cannot join {entry_file}: {exc}", file=sys.stderr)
    # Only the gateway ends a worker, by closing the socket: a stop of the whole service drains it first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    secret = os.environ.pop(worker_process.SECRET_VARIABLE)
    sys.setswitchinterval(0.001)  # a large body being decoded must not hold up short answers
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect("\0" + os.environ[worker_process.ADDRESS_VARIABLE])
        connection.sendall(frames.pack({"kind": "hello", "secret": secret, "pid": os.getpid()}))
        yield connection


def main() -> int:
    """Join, connect, serve; returns the exit code."""
    # A gateway that is gone ends the worker: nothing is left to answer.
    with contextlib.suppress(ConnectionError), connected(sys.argv[1:]) as connection:
        Worker(connection).serve()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # TensorFlow's own threads have nothing left to say

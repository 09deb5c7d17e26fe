"""A model brought up in the runtime that was asked for, or in the fastest that agrees with its native one.

Runs in the worker process only; each library is imported when a model needs it.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import runtimes
from airflow_mlscale.roma.adapters import formats, warming


@dataclass(frozen=True, kw_only=True)
class Warm:
    """A model that is ready for requests."""

    model: warming.Executable
    service_s: Mapping[int, float]
    """Measured seconds by batch size."""
    note: str
    report: Mapping[str, Any]
    """Of `ports.Loaded.runtime`."""


def load(
    artefact: Path,
    wanted: runtimes.Runtime,
    *,
    threads: int,
    max_batch: int,
    objective_s: float,
    on_warming: Callable[[], None] = lambda: None,
) -> Warm:
    """Load and warm up.

    Args:
        artefact: what `formats.find` finds.
        wanted: which runtime.
        threads: executions side by side.
        max_batch: largest batch to warm up with.
        objective_s: larger batches than take this long are not tried.
        on_warming: called once the (native) model is loaded.

    Raises:
        ModelArtefactError: it is no model, or cannot be loaded in this runtime.
    """
    found = formats.find(artefact)
    if found is None:
        raise errors.ModelArtefactError("artefact", str(artefact), f"it is not {formats.KNOWN}")
    kind, path = found
    able = formats.RUNTIMES[kind]
    if wanted.name not in ("auto", "native", *able):
        fix = f"it cannot run {kind}; choose one of {', '.join(able)}"
        raise errors.ModelArtefactError("runtime", wanted.name, fix)
    with _loadable(kind, path) as files:
        native = _open(able[0] if wanted.name in ("auto", "native") else wanted.name, files, threads)
        on_warming()
        service_s, note = warming.measure(native, max_batch=max_batch, objective_s=objective_s)
        first = runtimes.Trial(runtime=native.runtime, service_s=service_s)
        if wanted.name == "auto":
            others = [one for one in able[1:] if wanted.reduced_precision or one not in runtimes.REDUCED]
            return _fastest(native, first, note, others, files, wanted, threads)
    return Warm(model=native, service_s=service_s, note=note, report=runtimes.report(wanted, first, [first]))


def _fastest(
    native: warming.Executable,
    first: runtimes.Trial,
    note: str,
    others: Sequence[str],
    files: Path,
    wanted: runtimes.Runtime,
    threads: int,
) -> Warm:
    """Load the others beside the native one, let those that agree race, keep the winner."""
    running, trials = [native], [first]
    for name in others:
        if any(name.startswith(f"{one.runtime}-") for one in trials if one.refused and not one.compared):
            continue  # another precision of what cannot be loaded at all
        trial, model = _try(name, files, native, wanted, threads, first.service_s)
        trials.append(trial)
        running += [model] if model else []
    taken = dict(zip((one.runtime for one in running), warming.race(running, list(first.service_s)), strict=True))
    trials = [replace(one, service_s=taken.get(one.runtime, {})) for one in trials]
    chosen = runtimes.fastest(trials)
    (winner,) = (one for one in running if one.runtime == chosen.runtime)
    for model in running:
        if model is not winner:
            model.close()
    gc.collect()
    report = runtimes.report(wanted, chosen, trials)
    return Warm(model=winner, service_s=chosen.service_s, note=note, report=report)


def _try(
    name: str,
    files: Path,
    native: warming.Executable,
    wanted: runtimes.Runtime,
    threads: int,
    sizes: Iterable[int],
) -> tuple[runtimes.Trial, warming.Executable | None]:
    """Load another runtime and compare it; the model is returned, warm, if it may serve."""
    try:
        model = _open(name, files, threads)
    except errors.ModelArtefactError as exc:
        return runtimes.Trial(runtime=name, service_s={}, refused=exc.fix), None
    difference, why = warming.greatest_difference(model, native, rtol=wanted.rtol, atol=wanted.atol)
    if not why:
        why = warming.warm(model, sizes)
    if why:
        model.close()
    trial = runtimes.Trial(runtime=name, service_s={}, greatest_difference=difference, compared=True, refused=why)
    return trial, None if why else model


@contextmanager
def _loadable(kind: formats.Format, path: Path) -> Iterator[Path]:
    """The files that runtimes read: of a Keras file a SavedModel, for as long as they are being loaded."""
    if kind is not formats.Format.KERAS:
        yield path
        return
    from airflow_mlscale.roma.adapters import keras_file

    with tempfile.TemporaryDirectory(prefix="mlscale-keras-") as directory:
        exported = Path(directory) / "model"
        keras_file.export(path, exported)
        yield exported


def _open(name: str, files: Path, threads: int) -> warming.Executable:
    match name:
        case "tensorflow":
            from airflow_mlscale.roma.adapters import savedmodel

            return savedmodel.SavedModel(files, threads=threads)
        case "onnxruntime":
            from airflow_mlscale.roma.adapters import onnx_file

            return onnx_file.OnnxModel(files, threads=threads)
        case _:
            from airflow_mlscale.roma.adapters import openvino_model

            _, _, precision = name.partition("-")
            return openvino_model.OpenVinoModel(files, threads=threads, precision=precision or "f32")

"""The program that trains on a site: started once per job, keeps its model and data, answers each round.

``python -m airflow_mlscale.federated.adapters.trainer``, started by the site's NVFlare job process in the job's
folder. Runs where the data is; sends back weights, a sample count and timings, never data.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import zlib
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import labels, privacy
from airflow_mlscale.federated.adapters import environment, keras_model, proximal, user_functions, wire
from airflow_mlscale.federated.settings import RunSettings

log = logging.getLogger("airflow_mlscale.federated.trainer")


class Trainer:
    """A site's model and data, built once."""

    def __init__(self, run: RunSettings, site: str) -> None:
        import keras

        _limit_threads()
        self.run = run
        self.site = site
        self.model = keras_model.build(run)
        self._pull = proximal.ProximalTerm(self.model, run.proximal_mu) if run.proximal_mu else None
        told = {**run.data_args, **environment.site_data_args()}
        told = user_functions.arguments(run, "client_data", str(run.client_data), told)
        own = user_functions.call("client_data", str(run.client_data), site, **told)
        (self.x, self.y), validation = user_functions.site_data("client_data", str(run.client_data), own)
        self._measure: keras_model.Measure | None = None
        self.validation_samples = 0
        if run.measured_by_sites:
            self._hold_out(validation)
        keras.utils.set_random_seed(zlib.crc32(f"{run.seed}/{site}".encode()) % 2**31)
        log.info("%s trains on %d samples and measures on %d", site, len(self.x), self.validation_samples)

    def _hold_out(self, validation: user_functions.Pair | None) -> None:
        """Data to measure on: the user's own, or a part of the site's that is the same in every segment of the run."""
        if validation is None:
            training, held_out = split(
                len(self.x), self.run.validation_split, zlib.crc32(f"{self.run.seed}/{self.site}/held out".encode())
            )
            validation = self.x[held_out], self.y[held_out]
            self.x, self.y = self.x[training], self.y[training]
        self._measure = keras_model.Measure(self.run, self.model, *validation)
        self.validation_samples = len(validation[0])

    def measured(self, weights: list[Any]) -> dict[str, float]:
        """The target's metric and loss of these weights on what the site does not train on; empty where it need not.

        Raises:
            InvalidInputError: the weights do not fit the model.
        """
        if self._measure is None:
            return {}
        self._take(weights)
        return self._measure()

    def _take(self, weights: list[Any]) -> None:
        shapes = [tuple(weight.shape) for weight in weights]
        if shapes != [tuple(weight.shape) for weight in self.model.get_weights()]:
            raise errors.InvalidInputError("weights", shapes, "do not fit the site's model; is its code the same?")
        self.model.set_weights(weights)

    def train(self, weights: list[Any], *, epochs: int, batch_size: int) -> tuple[list[Any], list[float], float]:
        """Train from ``weights``; returns the weights that may leave, training loss of each epoch, and seconds.

        Raises:
            InvalidInputError: the weights do not fit the model.
            ValueError: training diverged.
        """
        import numpy as np

        self._take(weights)
        if self._pull:
            self._pull.hold()
        started = time.monotonic()
        seen = self.model.fit(self.x, self.y, epochs=epochs, batch_size=batch_size, verbose=0)
        trained = self.model.get_weights()
        if not all(np.isfinite(weight).all() for weight in trained if np.issubdtype(weight.dtype, np.floating)):
            raise ValueError("training diverged: the weights are not finite; lower the learning rate")
        if self.run.privacy is not None:
            trainable = keras_model.trained(self.model)
            trained = privacy.leaving(self.run.privacy, trained, weights, trainable, quorum=self.run.min_nodes)
        return trained, [float(loss) for loss in seen.history["loss"]], time.monotonic() - started


def main() -> None:
    """Serve rounds until the job ends."""
    import nvflare.client as flare
    from nvflare.app_common.abstract.fl_model import FLModel

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    flare.init()
    site = flare.get_site_name()
    prepared = None if _may_stay_idle() else _start(site)
    while flare.is_running():
        task = flare.receive()
        if task is None:
            break
        prepared = prepared or _start(site)
        params, meta, metrics = _answer(*prepared, task)
        flare.send(FLModel(params=params, meta=meta, metrics=metrics or None, current_round=task.current_round))


def _may_stay_idle() -> bool:
    """Whether only the server knows if this site takes part: then nothing is read before it is asked."""
    return labels.selects(_settings().get("sites"))


def _settings() -> dict[str, Any]:
    return dict(json.loads((Path("custom") / wire.SETTINGS_FILE).read_text()))


def _start(site: str) -> tuple[Trainer | None, str | None]:
    try:
        return Trainer(RunSettings.from_json(_settings()), site), None
    except Exception as exc:  # the user's code may raise anything; the server must hear it, not a closed connection
        log.exception("cannot prepare training")
        return None, f"{type(exc).__name__}: {exc}"


def _answer(
    trainer: Trainer | None, broken: str | None, task: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Parameters, what is told of them, and what the site measured of the model that it was sent."""
    if trainer is None:
        return {}, {wire.ERROR: broken}, {}
    try:
        sent = wire.unpack(task.params)
        measured = trainer.measured(sent)
        weights, losses, seconds = trainer.train(
            sent,
            epochs=int(task.meta[wire.EPOCHS][trainer.site]),
            batch_size=int(task.meta[wire.BATCH]),
        )
    except Exception as exc:  # as above
        log.exception("round %s failed", task.current_round)
        return {}, {wire.ERROR: f"{type(exc).__name__}: {exc}"}, {}
    log.info("round %s: loss %.4f in %.1f s", task.current_round, losses[-1], seconds)
    told = {wire.SAMPLES: len(trainer.x), wire.SECONDS: round(seconds, 3)}
    if trainer.run.privacy is None:  # a loss tells about the data, and nothing hides it
        told[wire.LOSS], told[wire.FIRST_LOSS] = losses[-1], losses[0]
    if measured:
        told[wire.VALIDATION_SAMPLES] = trainer.validation_samples
    leaving = [wire.flatten(weights)] if trainer.run.encrypted else weights  # the site's job process encrypts it
    return wire.pack(leaving), told, measured


def split(samples: int, share: float, seed: int) -> tuple[Any, Any]:
    """Places of samples to train on, in their order, and of those that are held out: always the same of a seed.

    Raises:
        InvalidInputError: there are too few samples for both.
    """
    import numpy as np

    if samples < 2:
        fix = "the site needs at least 2 samples to train on one and measure on the other, or return its own validation"
        raise errors.InvalidInputError("client_data", samples, fix)
    held_out = min(samples - 1, max(1, round(samples * share)))
    drawn = np.random.default_rng(seed).permutation(samples)
    return np.sort(drawn[held_out:]), np.sort(drawn[:held_out])


def _limit_threads() -> None:
    import tensorflow as tf

    threads = environment.trainer_threads()
    with contextlib.suppress(RuntimeError):  # a process that has used TensorFlow before has its number
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


if __name__ == "__main__":
    main()

"""What the sites of the real benchmark train: digits, split by a Dirichlet law, each at its own pace.

Travels with the job and imports nothing of the benchmark. The sites share one machine, so slow devices, lost rounds
and stalls are emulated: training really happens, and then lasts as long as the site's device would take.
"""

import random
import time

_pace = {}


def build():
    import keras

    layers = [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(10, activation="softmax", name="digit"),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    return _at_pace(model)


def weights():
    """The untrained model's weights by name, for who trains with a script of their own."""
    return {f"w{i:02d}": weight for i, weight in enumerate(build().get_weights())}


def of_site(site_name: str, file: str, pace: dict | None = None, seed: int = 0, **_):
    """The arrays of one site out of the benchmark's own split."""
    import numpy as np

    if pace:
        _pace.update(pace[site_name], chance=random.Random(f"{seed}/{site_name}"))
    with np.load(file) as split:
        return split[f"{site_name}_x"], split[f"{site_name}_y"]


def held_out(file: str, **_):
    import numpy as np

    with np.load(file) as split:
        return split["held_out_x"], split["held_out_y"]


def _at_pace(model):
    """The model, whose training lasts as long as on the site's emulated device."""
    train = model.fit

    def fit(*arguments, epochs=1, **options):
        began = time.monotonic()
        seen = train(*arguments, epochs=epochs, **options)
        if _pace:
            _wait(began + _lasts_s(epochs))
        return seen

    model.fit = fit
    return model


def _lasts_s(epochs):
    chance = _pace["chance"]
    if chance.random() >= _pace["answers"]:
        raise RuntimeError("emulated: this site drops the round")
    slow = chance.uniform(*_pace["straggle"]) if chance.random() < _pace["straggles"] else 1.0
    return slow * (_pace["overhead_s"] + epochs * _pace["epoch_s"])


def _wait(until):
    time.sleep(max(0.0, until - time.monotonic()))

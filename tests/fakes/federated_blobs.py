"""A user's module for federated runs: three classes of points in a plane, one part of them on each site.

Travels with the job as any user's module does, so it imports nothing of the tests.
"""


def build(rate: float = 0.1):
    import keras

    model = keras.Sequential(
        [
            keras.Input((2,), name="point"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(3, activation="softmax", name="class"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(rate), loss="sparse_categorical_crossentropy")
    return model


def of_site(site_name: str, samples: int = 400, slow_site: str = "", slow_s: float = 0.0, **_):
    if site_name == slow_site:
        import threading

        threading.Event().wait(slow_s)
    return _points(samples, seed=sum(site_name.encode()))


def held_out(**_):
    return _points(500, seed=7)


def broken(site_name: str, **_):
    raise FileNotFoundError(f"no data for {site_name}")


def _points(samples: int, seed: int):
    import numpy as np

    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, samples)
    centres = np.array([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]])
    x = centres[y] + draw.normal(0, 0.8, (samples, 2))
    return x.astype("float32"), y.astype("int32")

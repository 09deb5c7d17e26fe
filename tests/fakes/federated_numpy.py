"""A user's module without Keras: a linear classifier of the points of `federated_blobs`, in NumPy.

Travels with the job as any user's module does, so it imports nothing of the tests.
"""

from __future__ import annotations

import numpy as np


def start():
    """What takes every point for another one, so that there is something to learn for some rounds."""
    wrong = np.array([[0.0, 1.0, -1.0], [-1.0, 0.5, 0.5]], "float32")
    return {"linear/weight": wrong, "linear/bias": np.zeros(3, "float32")}


def own(site_name: str):
    """A site's ``(x, y)`` to train on, and to measure on."""
    from federated_blobs import of_site

    x, y = of_site(site_name)
    return (x[:300], y[:300]), (x[300:], y[300:])


def accuracy(params, x, y) -> float:
    return float((_scores(params, x).argmax(1) == y).mean())


def step(params, x, y, rate: float):
    """One step of gradient descent on the cross-entropy."""
    scores = _scores(params, x)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    wrong = (odds / odds.sum(1, keepdims=True) - np.eye(3, dtype="float32")[y]) / len(x)
    return {
        "linear/weight": params["linear/weight"] - rate * x.T @ wrong,
        "linear/bias": params["linear/bias"] - rate * wrong.sum(0),
    }


def _scores(params, x):
    return x @ params["linear/weight"] + params["linear/bias"]


def share_right(y_true, y_pred):
    """A metric of the user's own, for Keras."""
    import keras

    labels = keras.ops.reshape(keras.ops.cast(y_true, "int32"), (-1,))
    return keras.ops.cast(keras.ops.equal(labels, keras.ops.cast(keras.ops.argmax(y_pred, -1), "int32")), "float32")

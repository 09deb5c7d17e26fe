"""What a site's trainer does with a compiled Keras model: FedProx, and what may leave under privacy and encryption."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import combination, privacy
from airflow_mlscale.federated.adapters import keras_model, proximal, trainer, wire
from tests.fakes import federated

pytestmark = pytest.mark.engine

MU = 0.7
DRAW = np.random.default_rng(3)
X = DRAW.integers(0, 5, (40, 2)).astype("float32")
Y = DRAW.normal(size=(40, 1)).astype("float32")


def network(optimizer, anchors=None):
    """With an embedding, whose gradients come as slices; with anchors the paper's objective is in its loss."""
    import keras

    class Explicit(keras.Model):
        def compute_loss(self, *arguments, **named):
            loss = super().compute_loss(*arguments, **named)
            pairs = zip(self.trainable_variables, anchors, strict=True)
            return loss + MU / 2 * sum(keras.ops.sum(keras.ops.square(w - a)) for w, a in pairs)

    keras.utils.set_random_seed(0)
    point = keras.Input((2,))
    inside = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(point))
    outside = keras.layers.Dense(1)(keras.layers.Dense(4, activation="tanh")(inside))
    built = (keras.Model if anchors is None else Explicit)(point, outside)
    built.compile(optimizer=optimizer(keras.optimizers), loss="mse")
    return built


OPTIMIZERS = {
    "sgd": lambda known: known.SGD(0.1),
    "momentum": lambda known: known.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda known: known.Adam(0.01),
    "clipped": lambda known: known.SGD(0.1, clipnorm=0.05),
    "scaled": lambda known: known.LossScaleOptimizer(known.SGD(0.1), initial_scale=1024.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_pull_is_the_papers_objective_for_whatever_optimizer(name):
    ours, free = network(OPTIMIZERS[name]), network(OPTIMIZERS[name])
    started = ours.get_weights()
    explicit = network(OPTIMIZERS[name], anchors=[np.array(weight) for weight in started])
    pull = proximal.ProximalTerm(ours, MU)
    for model in (ours, explicit, free):
        model.set_weights(started)
        pull.hold()
        seen = model.fit(X, Y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    for mine, papers in zip(ours.get_weights(), explicit.get_weights(), strict=True):
        assert mine == pytest.approx(papers, abs=2e-5)
    moved = [privacy.norm(privacy.update_of(model.get_weights(), started, [True] * 5)) for model in (ours, free)]
    assert 0 < moved[0] < moved[1]
    assert np.isfinite(seen.history["loss"]).all()


def test_each_round_pulls_towards_the_weights_it_was_sent():
    model = network(OPTIMIZERS["sgd"])
    pull = proximal.ProximalTerm(model, 9.0)  # 0.1·9: each step goes nine tenths of the way back
    for shift in (0.0, 5.0):
        model.set_weights([np.full_like(weight, shift) for weight in model.get_weights()])
        pull.hold()
        model.fit(X, Y + shift, epochs=2, verbose=0)
        kernel = model.get_weights()[0]
        assert abs(kernel - shift).max() < 1.0


def site(**changes) -> trainer.Trainer:
    module = "tests.fakes.federated_blobs"
    changes = {"model": f"{module}:build", "client_data": f"{module}:of_site", **changes}
    return trainer.Trainer(federated.settings(**changes), "a")


def answer(one: trainer.Trainer):
    task = SimpleNamespace(
        params=wire.pack(one.model.get_weights()), meta={wire.EPOCHS: {"a": 1}, wire.BATCH: 32}, current_round=1
    )
    return trainer._answer(one, None, task)


def test_a_site_tells_weights_samples_and_loss():
    one = site()
    params, told = answer(one)
    assert len(params) == 4
    assert told[wire.SAMPLES] == 400
    assert told[wire.LOSS] > 0


@pytest.mark.parametrize("noise_at", combination.NOISE_AT)
def test_under_privacy_only_clipped_weights_and_nothing_about_the_data_leave_a_site(noise_at):
    secret = combination.Privacy(clip_norm=0.01, noise_multiplier=1e-6, noise_at=noise_at)
    one = site(privacy=secret)
    sent = one.model.get_weights()
    params, told = answer(one)
    length = privacy.norm(privacy.update_of(wire.unpack(params), sent, [True] * 4))
    assert length == pytest.approx(0.01, rel=1e-3)  # an epoch moves much further
    assert set(told) == {wire.SAMPLES, wire.SECONDS}


def test_what_is_to_be_encrypted_is_one_array():
    one = site(encrypted=True)
    sent = one.model.get_weights()
    params, _ = answer(one)
    assert [array.shape for array in params.values()] == [(sum(weight.size for weight in sent),)]
    assert [array.shape for array in wire.unflatten(params["w00000"], sent)] == [array.shape for array in sent]


def normalised():
    import keras

    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    frozen = keras.layers.Dense(3, trainable=False)
    model = keras.Sequential([keras.Input((2,)), inner, frozen, keras.layers.Dense(3, activation="softmax")])
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return model


def test_moving_statistics_and_frozen_layers_are_not_trained():
    import keras

    model = normalised()
    names = dict(zip([weight.path for weight in model.weights], keras_model.trained(model), strict=True))
    assert [kept for path, kept in names.items() if "moving" in path] == [False, False]
    assert sum(names.values()) == 6  # kernel and bias of two layers, γ and β
    assert [array.shape for array in model.get_weights()] == [tuple(weight.shape) for weight in model.weights]
    assert isinstance(model, keras.Model)


def test_batch_normalisation_and_privacy_do_not_go_together():
    run = federated.settings(
        model=f"{__name__}:normalised", evaluation_data="tests.fakes.federated_blobs:held_out",
        privacy=combination.Privacy(clip_norm=1.0, noise_multiplier=1.0),
    )  # fmt: skip
    with pytest.raises(errors.InvalidInputError, match=r"batch_normalization.*privacy needs LayerNormalization"):
        keras_model.KerasEvaluator(run)

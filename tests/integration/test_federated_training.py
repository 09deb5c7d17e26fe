"""What a site's trainer does with a compiled Keras model: FedProx, and what may leave under privacy and encryption."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import combination, metrics, privacy, simulation
from airflow_mlscale.federated.adapters import keras_model, keras_simulation, proximal, trainer, wire
from airflow_mlscale.federated.model import Quality
from tests.fakes import federated, federated_blobs

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


def answer_of(one: trainer.Trainer):
    task = SimpleNamespace(
        params=wire.pack(one.model.get_weights()), meta={wire.EPOCHS: {"a": 1}, wire.BATCH: 32}, current_round=1
    )
    return trainer._answer(one, None, task)


def test_a_site_tells_weights_samples_and_loss():
    one = site()
    params, told, _ = answer_of(one)
    assert len(params) == 4
    assert told[wire.SAMPLES] == 400
    assert told[wire.LOSS] > 0


@pytest.mark.parametrize("noise_at", combination.NOISE_AT)
def test_under_privacy_only_clipped_weights_and_nothing_about_the_data_leave_a_site(noise_at):
    secret = combination.Privacy(clip_norm=0.01, noise_multiplier=1e-6, noise_at=noise_at)
    one = site(privacy=secret)
    sent = one.model.get_weights()
    params, told, _ = answer_of(one)
    length = privacy.norm(privacy.update_of(wire.unpack(params), sent, [True] * 4))
    assert length == pytest.approx(0.01, rel=1e-3)  # an epoch moves much further
    assert set(told) == {wire.SAMPLES, wire.SECONDS}


def test_what_is_to_be_encrypted_is_one_array():
    one = site(encrypted=True)
    sent = one.model.get_weights()
    params, *_ = answer_of(one)
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


def regression(units=1, activation=None, loss="mse"):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, activation=activation)])
    model.compile(optimizer="sgd", loss=loss)
    return model


BINARY = {"units": 1, "activation": "sigmoid", "loss": "binary_crossentropy"}
CLASSES = {"units": 3, "activation": "softmax", "loss": "categorical_crossentropy"}
LABELS = {"units": 3, "activation": "softmax", "loss": "sparse_categorical_crossentropy"}
FITTING = {
    "sparse_categorical_accuracy": LABELS,
    "sparse_top_k_categorical_accuracy": LABELS,
    "sparse_categorical_crossentropy": LABELS,
    "categorical_accuracy": CLASSES,
    "top_k_categorical_accuracy": CLASSES,
    "categorical_crossentropy": CLASSES,
    "categorical_hinge": CLASSES,
    "f1_score": CLASSES,
    "f_beta_score": CLASSES,
    "kl_divergence": CLASSES,
    "cosine_similarity": CLASSES,
    "pearson_correlation": CLASSES,
}
REGRESSION = ("mean", "mse", "mae", "root", "mape", "msle", "log", "r2", "concordance")
TYPICAL = ("accuracy", "f1_score", "mape", "r2_score")
EVERY = [name if name in TYPICAL else pytest.param(name, marks=pytest.mark.long) for name in metrics.METRICS]


def labels(shape):
    draw = np.random.default_rng(1)
    if shape is LABELS:
        return draw.integers(0, 3, 40)
    if shape is CLASSES:
        return np.eye(3, dtype="float32")[draw.integers(0, 3, 40)]
    return draw.integers(0, 2, (40, 1)).astype("float32") if shape is BINARY else Y


@pytest.mark.parametrize("name", EVERY)
def test_keras_knows_every_metric_of_the_table_and_its_values_lie_in_the_range(name):
    shape = FITTING.get(name, {} if name.startswith(REGRESSION) else BINARY)
    scale = metrics.METRICS[name]
    target = 0.5 if scale.higher_is_better else 1.0
    run = federated.settings(target=Quality(name, target))
    x = X + 0.5  # a correlation needs outputs that differ
    seen = keras_model.Measure(run, regression(**shape), x, labels(shape))()
    assert scale.possible(seen[name])
    assert set(seen) == {name, "loss"}


def misses(y_true, y_pred):
    import keras

    return keras.ops.abs(y_true - y_pred)


def limited_recall():
    import keras

    return keras.metrics.RecallAtPrecision(0.3)


@pytest.mark.parametrize("name", ["misses", "limited_recall"])
def test_a_metric_of_ones_own_is_a_function_of_labels_and_outputs_or_makes_one(name):
    run = federated.settings(target=Quality(f"{__name__}:{name}", 0.5, higher_is_better=name != "misses"))
    seen = keras_model.Measure(run, regression(**BINARY), X, labels(BINARY))()
    assert np.isfinite(seen[f"{__name__}:{name}"])


@pytest.mark.parametrize(
    ("name", "told"),
    [("f1", "cannot make it of its name alone"), ("mean_io_u", "num_classes"), ("json:dumps", "cannot be computed")],
)
def test_a_metric_that_cannot_be_made_or_does_not_fit_is_refused_before_the_first_round(name, told):
    run = federated.settings(target=Quality(name, 0.5, higher_is_better=True))
    with pytest.raises(errors.InvalidInputError, match=told) as refused:
        keras_model.Measure(run, regression(), X, Y)
    assert refused.value.field == "metric"


def test_measuring_leaves_the_users_compilation_and_the_models_weights_as_they_are():
    one = site(evaluation_data=None)
    sent = one.model.get_weights()
    compiled = one.model.loss, one.model.optimizer
    seen = one.measured(sent)
    assert 0 <= seen["accuracy"] <= 1
    assert (one.model.loss, one.model.optimizer) == compiled
    assert all((before == after).all() for before, after in zip(sent, one.model.get_weights(), strict=True))
    assert (len(one.x), one.validation_samples) == (320, 80)  # a fifth of 400
    _, told, measured = answer_of(one)
    assert measured == seen  # of what it was sent, not of what it has learned
    assert told[wire.VALIDATION_SAMPLES] == 80
    again = site(evaluation_data=None)
    assert (again.x == one.x).all()  # never trained on in another segment either


def test_split_holds_out_a_part_and_refuses_a_single_sample():
    training, held_out = trainer.split(10, 0.25, seed=3)
    assert sorted([*training, *held_out]) == list(range(10))
    assert len(held_out) == 2
    assert [len(part) for part in trainer.split(2, 0.01, seed=3)] == [1, 1]
    with pytest.raises(errors.InvalidInputError, match="at least 2 samples"):
        trainer.split(1, 0.2, seed=3)


def told_apart(site_name):
    return (X, Y), (X[:8], Y[:8])


def told_apart_by_name(site_name):
    return {"train": (X, Y), "validation": (X[:8], Y[:8])}


@pytest.mark.parametrize("function", ["told_apart", "told_apart_by_name"])
def test_a_site_may_tell_its_validation_data_apart(function):
    one = site(
        evaluation_data=None, model=f"{__name__}:regression", client_data=f"{__name__}:{function}",
        target=Quality("loss", 0.1),
    )  # fmt: skip
    assert (len(one.x), one.validation_samples) == (40, 8)


def test_a_keras_client_script_gets_arrays_by_the_names_that_nvflare_gives_layers():
    from nvflare.app_opt.tf.utils import flat_layer_weights_dict

    built = normalised()
    theirs = flat_layer_weights_dict({layer.name: layer.get_weights() for layer in built.layers})
    ours = wire.pack(built.get_weights(), keras_model.names(built, "keras_layer_weights"))
    assert set(ours) == set(theirs)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert len(set(keras_model.names(built, "numpy"))) == len(ours)


def test_what_a_script_sends_is_read_by_name_and_what_cannot_be_is_an_error():
    from nvflare.app_common.abstract.fl_model import FLModel
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils

    from airflow_mlscale.federated.adapters import exchange

    run = federated.settings(client_script="own.py", client_data=None, evaluation_data=None)
    sent = [np.ones((2, 2), "float32"), np.zeros(2, "float32")]
    spoken = exchange.Exchange(run, names=["b", "a"])

    def read(**fields):
        return spoken.answer("s", FLModelUtils.to_shareable(FLModel(**fields)), sent)

    good = {"b": np.full((2, 2), 3.0), "a": [1.0, 2.0]}
    seen = read(params=good, metrics={"accuracy": np.float32(0.5)}, meta={wire.NUM_STEPS: np.int64(7)})
    assert (seen.error, seen.samples, seen.value) == (None, 7, 0.5)
    assert [array.tolist() for array in seen.weights] == [[[3, 3], [3, 3]], [1, 2]]
    moved = read(params=good, params_type="DIFF").weights
    assert [array.tolist() for array in moved] == [[[4, 4], [4, 4]], [1, 2]]
    assert read(params=good).samples == 1  # as NVFlare takes it
    for bad in ({"b": good["b"]}, {**good, "c": 1}, {**good, "a": "text"}):
        assert "sent " in read(params=bad).error
    assert "no parameter" in read(metrics={"accuracy": 0.5}).error


def test_simulated_sites_measure_where_there_is_no_held_out_data(tmp_path):
    import keras

    module = "tests.fakes.federated_blobs"
    run = federated.settings(
        model=f"{module}:build", client_data=f"{module}:of_site", evaluation_data=None, batch_size=64,
    )  # fmt: skip
    seen = keras_simulation.simulate(run, simulation.drawn(["a", "b", "c", "d"], 1), tmp_path)

    assert seen.reached
    assert seen.state.values[0] < 0.9 <= seen.state.best_value  # the first round tells of a model that knows nothing
    found = keras.models.load_model(seen.state.keras_model)
    x, y = federated_blobs.held_out()
    assert (found.predict(x, verbose=0).argmax(1) == y).mean() > 0.85
    assert "what the sites keep from training" in (tmp_path / "run" / "model" / "model_card.md").read_text()

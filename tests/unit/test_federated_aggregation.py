"""Which answers are believed, and how they become one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.federated import aggregation, combination, model

SENT = [np.zeros(2, "float32"), np.zeros((), "int64")]


def answer(site: str, *values: float, samples=1, steps: int = 0, **changes) -> model.SiteAnswer:
    weights = [np.array(values, "float32"), np.array(steps)]
    return model.SiteAnswer(**{"site": site, "samples": samples, "weights": weights, **changes})


def combined(*answers: model.SiteAnswer, **settings) -> list[float]:
    return aggregation.combined(answers, combination.Aggregation(**settings))[0].tolist()


def parts(*values: float) -> list[model.SiteAnswer]:
    return [answer(f"s{i}", value, -value) for i, value in enumerate(values)]


def test_a_mean_is_weighted_by_samples_and_keeps_types():
    seen = aggregation.combined(
        [answer("a", 0, 4, samples=1, steps=1), answer("b", 4, 0, samples=3, steps=4), answer("c", error="no data")],
        combination.MEAN,
    )
    assert seen[0].tolist() == [3.0, 1.0]  # (1·0 + 3·4) / 4, (1·4 + 3·0) / 4
    assert seen[1] == 3  # (1·1 + 3·4) / 4 = 3.25
    assert [array.dtype for array in seen] == [np.float32, np.int64]


def test_a_trimmed_mean_drops_the_extremes_of_each_coordinate():
    seen = combined(answer("a", -9, 1), answer("b", 1, 2), answer("c", 3, 99), rule="trimmed_mean", tolerated=1)
    assert seen == [1.0, 2.0]  # of −9, 1, 3 the 1; of 1, 2, 99 the 2
    assert combined(*parts(0, 1, 2, 6, 90), rule="trimmed_mean", tolerated=1) == [3.0, -3.0]  # (1 + 2 + 6) / 3


def test_a_median_is_taken_of_each_coordinate():
    assert combined(answer("a", -9, 1), answer("b", 1, 2), answer("c", 3, 99), rule="median") == [1.0, 2.0]


def test_krum_scores_are_squared_distances_to_the_nearest():
    # n = 5, f = 1: to the 5 − 1 − 2 = 2 nearest others. Each distance counts twice: two coordinates.
    scores = aggregation.krum_scores([each.weights[:1] for each in parts(0, 1, 2, 4, 90)], 1)
    assert scores.tolist() == [2 * (1 + 4), 2 * (1 + 1), 2 * (1 + 4), 2 * (4 + 9), 2 * (86**2 + 88**2)]


def test_krum_takes_one_answer_and_multi_krum_the_best_few():
    assert combined(*parts(0, 1, 2, 4, 90), rule="krum") == [1.0, -1.0]
    assert combined(*parts(0, 1, 2, 4, 90), rule="multi_krum") == [
        0.5,
        -0.5,
    ]  # the best 5 − 1 − 2: 1, then 0 (of a tie)


@pytest.mark.parametrize(("rule", "least"), [("trimmed_mean", 5), ("median", 3), ("krum", 7), ("multi_krum", 7)])
def test_robust_rules_refuse_too_few_answers(rule, least):
    settings = combination.Aggregation(rule=rule, tolerated=2)
    assert least == settings.least_answers
    with pytest.raises(ValueError, match=f"{rule} needs {least} answers, there are {least - 1}"):
        aggregation.combined(parts(*range(least - 1)), settings)
    aggregation.combined(parts(*range(least)), settings)


def test_no_good_answer_cannot_be_combined():
    with pytest.raises(ValueError, match="mean needs 1 answers, there are 0"):
        combined(answer("a", error="no data"))


honest = st.lists(st.floats(-10, 10), min_size=5, max_size=9)
lies = st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2)


@given(honest, lies, st.sampled_from(["trimmed_mean", "median", "krum", "multi_krum"]))
def test_two_liars_cannot_move_a_robust_answer_out_of_the_honest_ones(values, lying, rule):
    """For a trimmed mean and a median this is a theorem. Krum takes an answer with n − f − 2 near others: if that were
    a lie, it would be as near to honest ones as they are to each other, so a factor of the honest spread bounds it."""
    values = [float(np.float32(value)) for value in values]
    (found, _) = combined(*parts(*values, *lying), rule=rule, tolerated=2)
    slack = 1e-3 if rule in ("trimmed_mean", "median") else 1e-3 + 3 * (max(values) - min(values))
    assert min(values) - slack <= found <= max(values) + slack


@given(
    st.lists(st.floats(-10, 10), min_size=7, max_size=9), st.integers(0, 99), st.sampled_from(list(combination.RULES))
)
def test_the_order_of_the_answers_makes_no_difference(values, seed, rule):
    answers = parts(*values)
    shuffled = random.Random(seed).sample(answers, len(answers))
    assert combined(*answers, rule=rule, tolerated=2) == combined(*shuffled, rule=rule, tolerated=2)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10)), min_size=1, max_size=8))
def test_an_average_lies_between_its_parts(shares):
    answers = [answer(str(i), value, 0, samples=samples) for i, (samples, value) in enumerate(shares)]
    values = [value for _, value in shares]
    assert min(values) - 1e-5 <= combined(*answers)[0] <= max(values) + 1e-5


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"samples": 0}, "a bad sample count 0"),
        ({"samples": True}, "a bad sample count True"),
        ({"samples": 2.5}, "a bad sample count 2.5"),
        ({"weights": [np.zeros(3, "float32"), np.array(0)]}, "weights of other shapes"),
        ({"weights": [np.zeros(2, "float32")]}, "weights of other shapes"),
        ({"weights": ["no array", np.array(0)]}, "weights of other shapes"),
        ({"weights": [np.zeros(2, "complex64"), np.array(0)]}, "weights of type complex64 for float32"),
        ({"weights": [np.zeros(2, "float32"), np.array(0.5)]}, "weights of type float64 for int64"),
        ({"weights": [np.array([1, np.nan], "float32"), np.array(0)]}, "weights that are not finite"),
        ({"weights": [np.array([1, -np.inf], "float32"), np.array(0)]}, "weights that are not finite"),
    ],
)
def test_a_bad_answer_becomes_an_error_that_says_why(bad, why):
    good = answer("a", 1, 1)
    seen = aggregation.believed([good, answer("b", 1, 1, **bad)], SENT, combination.MEAN)
    assert seen[0] is good
    assert seen[1].site == "b"
    assert why in seen[1].error
    assert seen[1].weights == ()


def test_an_update_that_blew_up_is_refused_by_the_others_length():
    answers = parts(1, 2, 3, 1000)  # lengths √2·(1, 2, 3, 1000), the median 2.5·√2: 400 times as long
    seen = aggregation.believed(answers, SENT, combination.MEAN)
    assert [each.error for each in seen[:3]] == [None] * 3
    assert seen[3].error == "sent an update 400 times as long as the round's median one"
    assert answers == aggregation.believed(answers, SENT, combination.Aggregation(max_norm_ratio=401.0))
    assert answers == aggregation.believed(answers, SENT, combination.Aggregation(max_norm_ratio=None))
    assert answers == aggregation.believed(answers, SENT, combination.MEAN, compare=False)


def test_two_answers_and_a_model_that_stands_still_are_no_measure():
    assert [each.error for each in aggregation.believed(parts(1, 1000), SENT, combination.MEAN)] == [None, None]
    assert [each.error for each in aggregation.believed(parts(0, 0, 0, 5), SENT, combination.MEAN)] == [None] * 4


def test_an_update_too_long_for_its_type_is_measured():
    assert aggregation.length([np.full(2, 3e38, "float32")], [np.zeros(2, "float32")]) == pytest.approx(3e38 * 2**0.5)


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (combination.Aggregation, {"rule": "average"}, "rule"),
        (combination.Aggregation, {"rule": ["mean"]}, "rule"),
        (combination.Aggregation, {"tolerated": 0}, "tolerated"),
        (combination.Aggregation, {"max_norm_ratio": 1.0}, "max_norm_ratio"),
        (combination.ServerOptimiser, {"name": "adam"}, "server_optimiser"),
        (combination.ServerOptimiser, {"learning_rate": 0}, "learning_rate"),
        (combination.ServerOptimiser, {"momentum": 1.0}, "momentum"),
        (combination.ServerOptimiser, {"second_moment": -0.1}, "second_moment"),
        (combination.ServerOptimiser, {"adaptivity": 0.0}, "adaptivity"),
        (combination.Privacy, {"clip_norm": 0.0, "noise_multiplier": 1.0}, "clip_norm"),
        (combination.Privacy, {"clip_norm": 1.0, "noise_multiplier": "1"}, "noise_multiplier"),
        (combination.Privacy, {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1.0}, "delta"),
        (combination.Privacy, {"clip_norm": 1.0, "noise_multiplier": 1.0, "max_epsilon": 0}, "max_epsilon"),
        (combination.Privacy, {"clip_norm": 1.0, "noise_multiplier": 1.0, "noise_at": "home"}, "noise_at"),
    ],
)
def test_bad_words_about_combining_are_refused(kind, values, field):
    with pytest.raises(errors.InvalidInputError) as refused:
        kind(**values)
    assert field == refused.value.field
    assert refused.value.fix

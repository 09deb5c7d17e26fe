"""Measures of a model's quality: which of two values is better, and what values there can be.

Keras is not imported here: what a DAG file says is judged by a table of Keras' own metrics, and whether a metric fits a
model is found out where the model is. Does not belong here: computing one (`adapters.keras_model`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite

from airflow_mlscale import errors
from airflow_mlscale.federated import checks

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")
"""A name that Keras or a client script knows, or ``module:name`` of one's own."""
ROUNDING = 1e-6
"""How far single precision may carry a value out of its range."""


@dataclass(frozen=True)
class Metric:
    """A metric that a run can be held to."""

    name: str
    least: float
    most: float
    higher_is_better: bool = True
    best: float | None = None
    """From where errors are measured; None for the end of the range, which then has one."""

    @property
    def ideal(self) -> float:
        """The best value that there can be."""
        if self.best is not None:
            return self.best
        return self.most if self.higher_is_better else self.least

    def possible(self, value: float) -> bool:
        """Whether the metric can have this value."""
        return isfinite(value) and self.least - ROUNDING <= value <= self.most + ROUNDING


_SHARES = (
    "accuracy",
    "binary_accuracy",
    "categorical_accuracy",
    "sparse_categorical_accuracy",
    "top_k_categorical_accuracy",
    "sparse_top_k_categorical_accuracy",
    "auc",
    "precision",
    "recall",
    "f1_score",
    "f_beta_score",
    "binary_io_u",
)
_CORRELATIONS = ("cosine_similarity", "pearson_correlation", "concordance_correlation")
_ERRORS = (
    "loss",
    "mean_squared_error",
    "mse",
    "mean_absolute_error",
    "mae",
    "root_mean_squared_error",
    "mean_absolute_percentage_error",
    "mape",
    "mean_squared_logarithmic_error",
    "msle",
    "log_cosh_error",
    "binary_crossentropy",
    "bce",
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "kl_divergence",
    "hinge",
    "squared_hinge",
    "categorical_hinge",
    "false_negatives",
    "false_positives",
)

METRICS: Mapping[str, Metric] = {
    **{name: Metric(name, 0.0, 1.0) for name in _SHARES},
    **{name: Metric(name, -1.0, 1.0) for name in _CORRELATIONS},
    "r2_score": Metric("r2_score", -inf, 1.0),
    **{name: Metric(name, 0.0, inf, higher_is_better=False) for name in _ERRORS},
}
"""Keras' metrics by the names that it gives them; all but ``loss`` are resolved by Keras for the task of the model
(binary, categorical, …). Of F scores the mean of the classes is meant."""


def named(name: object, *, higher_is_better: bool | None = None, best: float | None = None) -> Metric:
    """The metric of a name.

    Args:
        name: one of `METRICS`, another one that Keras or the client script knows, or ``module:name``.
        higher_is_better: which values are better, for names that are not in the table.
        best: the best value that it can have; default is 1, or 0 where lower is better. For such names too.

    Raises:
        InvalidInputError: it is unknown which values are better, or what is known is contradicted.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise errors.InvalidInputError("metric", name, "write a Keras metric's name or 'module:name'")
    known = METRICS.get(name)
    if known is None and higher_is_better is None:
        fix = f"for another metric than {', '.join(sorted(METRICS))} add higher_is_better=True or False"
        raise errors.InvalidInputError("metric", name, fix)
    if higher_is_better is not None:
        checks.check(isinstance(higher_is_better, bool), "higher_is_better", higher_is_better, "use True or False")
    if known is None:
        if best is not None:
            checks.check(checks.is_number(best), "best", best, f"must be the best value of {name}, a finite number")
        ideal = best if best is not None else 1.0 if higher_is_better else 0.0
        return Metric(name, -inf, inf, bool(higher_is_better), ideal)
    same = higher_is_better in (None, known.higher_is_better)
    checks.check(same, "higher_is_better", higher_is_better, f"leave it out: it is known of {name}")
    checks.check(best is None, "best", best, f"leave it out: it is {known.ideal:g} for {name}")
    return known


def check_value(field: str, metric: Metric, value: object) -> None:
    """Refuse what no run can be held to.

    Args:
        field: how the user calls the value.
        metric: what must reach it.
        value: a number that is possible, but not the worst, and of errors not the best one, which no rounds reach.

    Raises:
        InvalidInputError: it is none.
    """
    least, most = metric.least, metric.most
    if metric.higher_is_better:
        most = metric.ideal
    else:
        least = metric.ideal
    good = checks.is_number(value) and least < value <= most  # type: ignore[operator]
    span = (
        f"above {least:g}" if most == inf else f"in ({least:g}, {most:g}]" if least > -inf else f"of at most {most:g}"
    )
    more = "; give best=..., the best value that it can have" if metric.best is not None else ""
    checks.check(good, field, value, f"a target for {metric.name} must be a number {span}{more}")

"""FedProx on whatever model the user compiled: each gradient also pulls towards the weights of the round's beginning.

Minimising F(w) + µ/2·‖w − w_t‖² (Li et al., MLSys 2020) is F's gradient plus µ·(w − w_t). That term is added where
every gradient of Keras passes, in the optimizer's ``apply``, and not to the loss: the user's losses, metrics, own
training steps, gradient clipping and loss scaling stay as they are, and the training loss that a site reports means
the same with and without µ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class ProximalTerm:
    """The pull of one compiled model; attached once, held to new weights each round."""

    def __init__(self, model: Any, mu: float) -> None:
        import tensorflow as tf

        self._mu = mu
        self._variables: Sequence[Any] = list(model.trainable_variables)
        self._anchors = [tf.Variable(variable.value, trainable=False) for variable in self._variables]
        self._by_variable = {
            id(variable): anchor for variable, anchor in zip(self._variables, self._anchors, strict=True)
        }
        self._optimizer = model.optimizer
        self._apply = model.optimizer.apply
        model.optimizer.apply = self._apply_pulled

    def hold(self) -> None:
        """Pull towards the weights that the model has now."""
        for variable, anchor in zip(self._variables, self._anchors, strict=True):
            anchor.assign(variable.value)

    def _apply_pulled(self, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> Any:
        variables = list(self._variables if trainable_variables is None else trainable_variables)
        return self._apply([self._pulled(g, v) for g, v in zip(grads, variables, strict=True)], variables)

    def _pulled(self, gradient: Any, variable: Any) -> Any:
        import tensorflow as tf

        anchor = self._by_variable.get(id(variable))
        if gradient is None or anchor is None:
            return gradient
        pull = self._mu * (variable.value - anchor)
        dense = tf.convert_to_tensor(gradient)  # gradients of embeddings come as slices; the pull is on every row
        return dense + tf.cast(self._optimizer.scale_loss(pull), dense.dtype)

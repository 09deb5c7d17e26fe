"""What is sent to sites and read from their answers: NVFlare's ``FLModel`` on one side, plans and answers on the other.

Our own trainer and client scripts speak the same language; scripts leave more of it out. Loaded only inside the NVFlare
server job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

# Executed only by NVFlare.
from nvflare.apis.fl_constant import ReturnCode  # noqa: TID253
from nvflare.apis.shareable import Shareable  # noqa: TID253
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType  # noqa: TID253
from nvflare.app_common.utils.fl_model_utils import FLModelUtils  # noqa: TID253

from airflow_mlscale.federated import faults, model, policy, ports
from airflow_mlscale.federated.adapters import wire
from airflow_mlscale.federated.settings import RunSettings

_TOLD = {
    ReturnCode.EXECUTION_EXCEPTION: faults.LOST,
    ReturnCode.TASK_RESULT_FILTER_ERROR: "could not encrypt its weights; provision the federation with encryption",
}
"""NVFlare's codes in words."""


@dataclass(frozen=True)
class Exchange:
    """The language of one run."""

    run: RunSettings
    names: Sequence[str] | None = None
    """Of the model's arrays, as a client script knows them; None for our own trainer, which knows their order."""

    def question(self, plan: policy.RoundPlan, weights: ports.Weights) -> Shareable:
        """A round's task."""
        meta = {wire.EPOCHS: dict(plan.local_epochs), wire.BATCH: plan.batch_size}
        params = wire.pack(weights, self.names)
        sent = FLModel(params=params, current_round=plan.number, total_rounds=self.run.max_rounds, meta=meta)
        return FLModelUtils.to_shareable(sent)

    def answer(self, site: str, result: Shareable, sent: ports.Weights) -> model.SiteAnswer:
        """What a site came back with; what cannot be read is its error."""
        if (code := result.get_return_code()) and code != ReturnCode.OK:
            return model.SiteAnswer(site=site, error=_TOLD.get(code, str(code)))
        try:
            found = FLModelUtils.from_shareable(result)
            if error := found.meta.get(wire.ERROR):
                return model.SiteAnswer(site=site, error=faults.worded(error))
            return self._read(site, found, sent)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:  # sites may send anything
            return model.SiteAnswer(site=site, error=faults.worded(f"sent an answer that cannot be read: {exc}"))

    def _read(self, site: str, found: FLModel, sent: ports.Weights) -> model.SiteAnswer:
        meta, metrics = found.meta, found.metrics or {}
        samples = self._samples(meta)
        secret = self.run.privacy is not None  # what a script tells all the same is not looked at
        measured = {} if secret or not self.run.measured_by_sites else metrics
        return model.SiteAnswer(
            site=site, samples=samples, weights=self._weights(found, sent),
            train_s=max(0.0, _number(meta.get(wire.SECONDS)) or 0.0),
            loss=None if secret else _number(meta.get(wire.LOSS)),
            utility=None if secret else _number(meta.get(wire.FIRST_LOSS)),
            value=_value(measured.get(self.run.target.metric)), value_loss=_number(measured.get("loss")),
            value_samples=_whole(meta.get(wire.VALIDATION_SAMPLES, 0)),
        )  # fmt: skip

    def _weights(self, found: FLModel, sent: ports.Weights) -> list[Any]:
        if self.names is None:
            return wire.unpack(found.params)
        changes = found.params_type == ParamsType.DIFF
        return wire.named(found.params, self.names, sent if changes else None)

    def _samples(self, meta: dict[str, Any]) -> Any:
        """Of a script also what NVFlare weighs answers by; 1 without any, as NVFlare takes it."""
        if self.names is None:
            return meta.get(wire.SAMPLES, 0)
        return _whole(meta.get(wire.SAMPLES, meta.get(wire.NUM_STEPS, 1)))


def _whole(value: Any) -> Any:
    """A count as Python's own whole number: scripts send NumPy's, or floats. What is none stays what it is."""
    number = _value(value)
    return int(number) if number is not None and number.is_integer() else value


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    number = _value(value)
    return number if number is not None and isfinite(number) else None


def _value(value: Any) -> float | None:
    """A number, perhaps not a finite one; None for what is none."""
    if value is None or isinstance(value, bool | str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

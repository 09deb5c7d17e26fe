"""Which runtime is taken, and how outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import runtimes
from airflow_mlscale.roma.adapters import signatures, tensors, warming


def trial(runtime: str, *, refused: str = "", **service_ms: float) -> runtimes.Trial:
    """``b1=2`` is two milliseconds at batch size 1."""
    service_s = {int(size[1:]): ms / 1000 for size, ms in service_ms.items()}
    return runtimes.Trial(runtime=runtime, service_s=service_s, refused=refused)


def test_the_fastest_is_taken() -> None:
    trials = [trial("tensorflow", b1=2, b2=2), trial("onnxruntime", b1=1.5, b2=1.5), trial("openvino", b1=1, b2=1)]
    assert runtimes.fastest(trials).runtime == "openvino"


def test_sizes_count_alike_however_long_they_take() -> None:
    native, other = trial("tensorflow", b1=1, b8=10), trial("openvino", b1=0.5, b8=15)
    assert runtimes.relative_time(other, native) == pytest.approx((0.5 * 1.5) ** 0.5)  # √(0.5/1 · 15/10) = 0.87
    assert runtimes.fastest([native, other]) is other


def test_what_saves_less_than_a_twentieth_is_not_worth_it() -> None:
    native = trial("tensorflow", b1=1)
    assert runtimes.fastest([native, trial("openvino", b1=0.96)]) is native
    assert runtimes.fastest([native, trial("openvino", b1=0.94)]).runtime == "openvino"
    exact = trial("openvino", b1=0.5)
    assert runtimes.fastest([native, exact, trial("openvino-bf16", b1=0.49)]) is exact  # of equals the more exact


def test_what_is_refused_or_unmeasured_is_not_taken() -> None:
    native = trial("tensorflow", b1=1)
    assert runtimes.fastest([native, trial("openvino", refused="it differs", b1=0.1), trial("onnxruntime")]) is native


@pytest.mark.parametrize(
    "document",
    ["pytorch", 5, ["auto"], {"rtol": -1}, {"atol": True}, {"rtol": "1e-3"}, {"nam": "auto"}, {"name": ["auto"]},
     {"reduced_precision": "yes"}, {"rtol": float("nan")}],
)  # fmt: skip
def test_wrong_wishes_are_refused(document: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match="runtime"):
        runtimes.from_json(document)


def test_a_wish_is_a_name_or_an_object() -> None:
    assert runtimes.from_json(None) is None
    assert runtimes.from_json("auto") == runtimes.Runtime(name="auto")
    assert runtimes.from_json({"name": "auto", "rtol": 0.01}) == runtimes.Runtime(name="auto", rtol=0.01)


class Model:
    """y = x + ``shift``, or what ``answer`` says."""

    def __init__(self, shift: float = 0, *, kind: str = "FP32", answer: Any = None, refuses: bool = False) -> None:
        self.runtime = "model"
        tensor = signatures.tensor("x", kind, (-1, 2))
        self.signatures: Mapping[str, tensors.Signature] = signatures.alone([tensor], [tensor])
        self.default = "serving_default"
        self._shift, self._answer, self._refuses = shift, answer, refuses

    def run(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
        if self._refuses:
            raise errors.InvalidInputError("inputs", "these", "no")
        found = inputs["x"]
        return {"x": found + found.dtype.type(self._shift) if self._answer is None else self._answer}

    def close(self) -> None:
        pass


def compared(other: Model, native: Model) -> tuple[float | None, str]:
    return warming.greatest_difference(other, native, rtol=0, atol=1e-3)


def test_outputs_agree_within_the_tolerance() -> None:
    difference, why = compared(Model(0.0005), Model())
    assert difference == pytest.approx(0.0005, rel=1e-3)
    assert why == ""
    difference, why = compared(Model(0.01), Model())
    assert difference == pytest.approx(0.01, rel=1e-3)
    assert why == "output 'x' differs by 0.01"


def test_whole_numbers_must_be_the_same() -> None:
    assert compared(Model(1, kind="INT64"), Model(kind="INT64")) == (1.0, "output 'x' differs by 1")
    assert compared(Model(kind="INT64"), Model(kind="INT64")) == (0.0, "")


def test_nan_agrees_with_nan_alone() -> None:
    nan = np.full((1, 2), np.nan, dtype=np.float32)
    assert compared(Model(answer=nan), Model(answer=nan)) == (0.0, "")
    assert compared(Model(answer=nan), Model(answer=np.zeros((1, 2), np.float32)))[0] == float("inf")


def test_other_shapes_and_types_differ() -> None:
    for answer in (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64)):
        assert "differs" in compared(Model(answer=answer), Model(answer=np.zeros((1, 2), np.float32)))[1]
    assert "is another" in compared(Model(kind="FP64"), Model())[1]


def test_what_cannot_be_compared_does_not_agree() -> None:
    assert compared(Model(), Model(refuses=True))[0] is None
    assert "cannot run what model can" in compared(Model(refuses=True), Model())[1]


def test_a_race_measures_all_at_every_size() -> None:
    found = warming.race([Model(), Model(1)], [1, 4])
    assert [set(one) for one in found] == [{1, 4}, {1, 4}]
    assert all(seconds > 0 for one in found for seconds in one.values())

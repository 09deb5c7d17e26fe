"""How good a model's answers were, once the truth is known: comparing, counting, remembering what was answered.

Pure but for `Recent`, which keeps answers for those who send the truth with a request id. Keeping the counts
is a `ports.QualityPort`'s work.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model

MAX_RECORDS = 10_000
"""Records in one message."""

SLOT_S = 60.0
"""Counts are kept in slots of this length."""

KEEP_S = 30 * 86_400.0
"""How long they are kept."""

MOST_VERSIONS = 64
"""Of one model, that counts are kept of; made-up ones would fill the status and the metrics."""

GREATEST = 1e100
"""Numbers beyond this are no predictions, and their sums would be none."""

_ID = re.compile(rb'"id":\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the truth said about a number of answers."""

    records: int = 0
    judged: int = 0
    """That can be right or wrong: classes, texts, truth values."""
    correct: int = 0
    measured: int = 0
    """That are numbers, and so are off by some amount."""
    error_sum: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """Part of the judged answers that were right."""
        return self.correct / self.judged if self.judged else None

    @property
    def mae(self) -> float | None:
        """Mean absolute error of the measured ones."""
        return self.error_sum / self.measured if self.measured else None

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            records=self.records + other.records,
            judged=self.judged + other.judged,
            correct=self.correct + other.correct,
            measured=self.measured + other.measured,
            error_sum=self.error_sum + other.error_sum,
        )


def compare(prediction: Any, label: Any) -> Tally:
    """One answer against the truth.

    A list of scores is right if its greatest stands where the label, a whole number, says (a list of one is the
    score alone). A score against a truth value, 0 or 1, is right on its side of one half. Texts, whole numbers and
    truth values are right if they are equal. Where both are numbers the absolute difference counts too.

    Raises:
        InvalidInputError: they cannot be compared.
    """
    if isinstance(prediction, list) and len(prediction) == 1:
        prediction = prediction[0]
    if isinstance(prediction, list):
        if not all(map(model.is_number, prediction)) or not model.is_integer(label) or not 0 <= label < len(prediction):
            fix = f"with {len(prediction)} scores give the number of the right one, from 0 to {len(prediction) - 1}"
            raise errors.InvalidInputError("label", label, fix)
        best = max(range(len(prediction)), key=prediction.__getitem__)
        return Tally(records=1, judged=1, correct=int(best == label))
    if not _simple(prediction) or not _simple(label) or isinstance(prediction, str) != isinstance(label, str):
        raise errors.InvalidInputError("label", label, f"it cannot be compared with the prediction {prediction!r:.60}")
    if isinstance(prediction, str):
        return Tally(records=1, judged=1, correct=int(prediction == label))
    right: bool | None = None
    if isinstance(label, int) and isinstance(prediction, int):
        right = prediction == label
    elif label in (0, 1) and isinstance(label, int):
        right = (prediction >= 0.5) == bool(label)
    return Tally(
        records=1,
        judged=int(right is not None),
        correct=int(bool(right)),
        measured=1,
        error_sum=abs(float(prediction) - float(label)),
    )


@dataclass(frozen=True, kw_only=True)
class Known:
    """The truth about one answer, as it was sent."""

    label: Any
    prediction: Any = None
    version: str | None = None
    """None for the version that serves."""
    request_id: str | None = None
    """Of the request whose answer is meant, if there is no prediction."""


def read(document: Any) -> list[Known]:
    """The records of a message ``{"records": [{"label": …, "prediction": … or "id": …, "version": …}]}``.

    Raises:
        InvalidInputError: it is none.
    """
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
        fix = f'send {{"records": [{{"prediction": 0.2, "label": 0}}]}}, 1 to {MAX_RECORDS} of them'
        raise errors.InvalidInputError("records", type(records).__name__, fix)
    return [_known(each, index) for index, each in enumerate(records)]


def _known(document: Any, index: int) -> Known:
    where = f"records[{index}]"
    if not isinstance(document, dict) or not document.keys() <= {"label", "prediction", "version", "id"}:
        fix = "give an object with label, and prediction or id; version if you know it"
        raise errors.InvalidInputError(where, repr(document)[:60], fix)
    if document.get("label") is None or (document.get("prediction") is None) == (document.get("id") is None):
        fix = "give label, and one of prediction and id"
        raise errors.InvalidInputError(where, repr(document)[:60], fix)
    request_id, version = document.get("id"), document.get("version")
    if request_id is not None and not isinstance(request_id, str):
        raise errors.InvalidInputError(f"{where}.id", repr(request_id)[:60], "give the request's id, a text")
    if version is not None:
        version = model.check_name(f"{where}.version", str(version) if model.is_integer(version) else version)
    return Known(label=document["label"], prediction=document.get("prediction"), version=version, request_id=request_id)


def tallies(known: Iterable[Known], recent: Recent, name: str, serving: str) -> tuple[dict[str, Tally], list[str]]:
    """Counts by version, and the ids of requests that are not remembered.

    Raises:
        InvalidInputError: a prediction and its label cannot be compared; nothing is counted then.
    """
    counted: dict[str, Tally] = {}
    unknown = []
    for each in known:
        if each.request_id is None:
            version, pairs = each.version or serving, [(each.prediction, each.label)]
        elif answer := recent.find(name, each.request_id):
            version, pairs = answer.version, _paired(answer.predictions(), each.label)
        else:
            unknown.append(each.request_id)
            continue
        for prediction, label in pairs:
            counted[version] = counted.get(version, Tally()) + compare(prediction, label)
    return counted, unknown


def _paired(predictions: list[Any], label: Any) -> list[tuple[Any, Any]]:
    labels = label if isinstance(label, list) else [label]
    if len(labels) != len(predictions):
        fix = f"the request had {len(predictions)} rows: give a list of as many labels"
        raise errors.InvalidInputError("label", repr(label)[:60], fix)
    return list(zip(predictions, labels, strict=True))


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it went out, in JSON."""

    version: str
    body: bytes

    def predictions(self) -> list[Any]:
        """One for each row, of the first output.

        Raises:
            InvalidInputError: nothing can be compared with it.
        """
        document = json.loads(self.body)
        if "predictions" in document:
            rows = document["predictions"]
            return [next(iter(row.values())) if isinstance(row, dict) else row for row in rows]
        if isinstance(document.get("outputs"), list):
            first = document["outputs"][0]
            data, count = first["data"], (first["shape"] or [1])[0]
            width = len(data) // max(1, count)
            return data if width <= 1 else [data[start : start + width] for start in range(0, len(data), width)]
        fix = "that answer has no predictions to compare; send the prediction with the label"
        raise errors.InvalidInputError("id", "…", fix)


class Recent:
    """The latest answers in JSON by the ids of their requests, for each model at most so many and no large ones."""

    def __init__(self, *, keep: int = 2048, max_bytes: int = 4096) -> None:
        self._keep = keep
        self._max_bytes = max_bytes
        self._answers: dict[str, OrderedDict[str, Answered]] = {}

    def remember(self, name: str, request_id: str | None, version: str, body: bytes) -> None:
        """Keep an answer under the request's id, and under the one in its JSON if that has one."""
        if len(body) > self._max_bytes:
            return
        said = _ID.search(body, 0, 512)
        for one in (request_id, json.loads(said[1]) if said else None):
            if one is not None:
                answers = self._answers.setdefault(name, OrderedDict())
                answers[one] = Answered(version, body)
                answers.move_to_end(one)
                if len(answers) > self._keep:
                    answers.popitem(last=False)

    def find(self, name: str, request_id: str) -> Answered | None:
        answers = self._answers.get(name)
        return answers.get(request_id) if answers else None

    def forget(self, name: str) -> None:
        self._answers.pop(name, None)


def as_json(counted: Mapping[str, Tally]) -> dict[str, Any]:
    """By version."""
    return {
        version: {"records": one.records, "accuracy": one.accuracy, "mae": one.mae}
        for version, one in sorted(counted.items())
    }


def slot(at: float) -> int:
    """The number of the slot a time (seconds since the epoch) falls into."""
    return int(at // SLOT_S)


def check_versions(known: Iterable[str], named: Iterable[str]) -> None:
    """Whether so many versions can be kept apart.

    Raises:
        InvalidInputError: there are too many of them.
    """
    versions = {*known, *named}
    if len(versions) > MOST_VERSIONS:
        fix = f"counts of {MOST_VERSIONS} versions of a model are kept; name those that answered"
        raise errors.InvalidInputError("version", f"{len(versions)} versions", fix)


class Tallies:
    """A `ports.QualityPort` that a crash empties."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], Tally] = {}

    def add(self, name: str, at: float, counted: Mapping[str, Tally]) -> None:
        for version, tally in counted.items():
            key = name, version, slot(at)
            self._counts[key] = self._counts.get(key, Tally()) + tally

    def since(self, name: str, at: float) -> dict[str, Tally]:
        counted: dict[str, Tally] = {}
        for (whose, version, number), tally in self._counts.items():
            if whose == name and number >= slot(at):
                counted[version] = counted.get(version, Tally()) + tally
        return counted

    def forget(self, name: str) -> None:
        self._counts = {key: tally for key, tally in self._counts.items() if key[0] != name}


def _simple(value: Any) -> bool:
    return isinstance(value, str | bool) or (model.is_number(value) and abs(value) <= GREATEST)

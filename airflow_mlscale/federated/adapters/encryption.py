"""Sums that the server computes without reading what it sums: homomorphic encryption of the sites' weights.

Every site holds the same secret key (from provisioning), the server holds none. A site's job process encrypts the
weights (NVFlare's CKKS filter on TenSEAL), the server averages ciphertexts, and one of the sites that answered
decrypts the average and sends it back: the server needs the model, for the held-out evaluation and to export it.

What is promised: the server, and whoever reads its memory or its disk, never sees what one site learned. What is not:
it trusts the server to ask only for averages to be decrypted, and the sites not to hand the key to the server.
Nothing encrypted can be checked or clipped by the server, so there are no robust rules beside this.

Loaded only inside NVFlare's job processes, of runs that encrypt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

# Executed only by NVFlare, which has to see the base class when it loads this module.
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable  # noqa: TID253
from nvflare.apis.executor import Executor  # noqa: TID253
from nvflare.apis.fl_constant import ReturnCode  # noqa: TID253
from nvflare.apis.fl_context import FLContext  # noqa: TID253
from nvflare.apis.shareable import Shareable  # noqa: TID253
from nvflare.apis.signal import Signal  # noqa: TID253

from airflow_mlscale import errors
from airflow_mlscale.federated import aggregation, model, policy, ports
from airflow_mlscale.federated.adapters import wire

REVEAL_S = 30.0
"""How long sites may take to decrypt an average."""
REVEALERS = 2
"""Sites that are asked for it at once: the first answer counts, so that one that dies costs nothing."""
NAME = "w00000"
"""Of the one array of an answer, see `wire.flatten` and `wire.pack`."""


def register() -> None:
    """Let NVFlare carry ciphertexts.

    Raises:
        InvalidInputError: TenSEAL is not installed here.
    """
    try:
        from nvflare.app_opt.he import decomposers
    except ImportError as exc:
        raise errors.InvalidInputError(
            "encrypted", True, "needs TenSEAL on server and sites: pip install airflow-provider-mlscale[encryption]"
        ) from exc
    decomposers.register()


def fault(answer: model.SiteAnswer, sent: ports.Weights) -> str | None:
    """Why an encrypted answer cannot be summed; its content cannot be looked at."""
    if answer.error is not None:
        return None
    if not isinstance(answer.samples, int) or isinstance(answer.samples, bool) or answer.samples < 1:
        return f"sent a bad sample count {answer.samples!r}"
    size = getattr(answer.weights[0], "size", None) if len(answer.weights) == 1 else None
    if not callable(size):
        return "sent weights that are not encrypted"
    expected = sum(weight.size for weight in sent)
    return None if size() == expected else f"sent {size()} encrypted numbers for {expected}"


class RevealedSites:
    """`ports.Sites` whose answers all carry the average of the round: it is all that the server ever sees."""

    def __init__(self, sites: Any, *, equal: bool) -> None:
        """`sites` answer with ciphertexts; `equal` counts each site the same, else by its samples."""
        self._sites = sites
        self._equal = equal

    def names(self) -> Sequence[str]:
        return self._sites.names()  # type: ignore[no-any-return]

    def train(self, plan: policy.RoundPlan, weights: ports.Weights) -> list[model.SiteAnswer]:
        answers = self._sites.train(plan, weights)
        seen: list[Any] | None = list(weights)  # for a round without a quorum, whose answers nobody combines
        if policy.counts(plan, answers):
            good = [answer for answer in answers if answer.error is None]
            seen = self._reveal(average(good, equal=self._equal), [answer.site for answer in good], weights)
        if seen is None:
            return [aggregation.refused(answer, answer.error or "the run was told to stop") for answer in answers]
        return [answer if answer.error is not None else replace(answer, weights=seen) for answer in answers]

    def late(self) -> list[model.SiteAnswer]:
        """How long they took; their weights stay unread, as the averages of their rounds are known without them."""
        return [replace(answer, weights=()) for answer in self._sites.late()]

    def returned(self) -> Sequence[str]:
        return self._sites.returned()  # type: ignore[no-any-return]

    def _reveal(self, encrypted: Any, sites: Sequence[str], like: ports.Weights) -> list[Any] | None:
        """The decrypted average; None if the run is told to stop meanwhile.

        Raises:
            TransientError: no site could decrypt it in time.
        """
        for first in range(0, len(sites), REVEALERS):
            asked = sites[first : first + REVEALERS]
            answers = self._sites.ask(
                wire.REVEAL,
                _question(encrypted),
                asked,
                read=lambda _site, result: _plain(result, like),
                left_s=lambda heard, elapsed_s, asked=asked: _left_s(heard, elapsed_s, len(asked)),
            )
            for _, plain in answers:
                if plain is not None:
                    return plain  # type: ignore[no-any-return]
            if self._sites.stopped():
                return None
        raise errors.TransientError(f"none of {', '.join(sites)} decrypted the round's average")


def average(answers: Sequence[model.SiteAnswer], *, equal: bool) -> Any:
    """Weighted average of ciphertexts, which stays one."""
    total = len(answers) if equal else sum(answer.samples for answer in answers)
    parts = [answer.weights[0] * ((1 if equal else answer.samples) / total) for answer in answers]
    added = parts[0]
    for part in parts[1:]:
        added = added + part
    return added


def _question(encrypted: Any) -> Shareable:
    """As bytes: NVFlare copies what it broadcasts, and a ciphertext without the secret key cannot be copied."""
    meta = {MetaKey.PROCESSED_KEYS: {NAME: True}, MetaKey.PROCESSED_ALGORITHM: "CKKS"}
    return DXO(DataKind.WEIGHTS, data={NAME: encrypted.serialize()}, meta=meta).to_shareable()


def _plain(result: Shareable, like: ports.Weights) -> list[Any] | None:
    """The average in the model's shapes; None if the site could not decrypt it."""
    if result.get_return_code() not in (None, ReturnCode.OK):
        return None
    try:
        found = wire.unflatten(from_shareable(result).data[NAME], like)
    except (KeyError, TypeError, ValueError):
        return None
    return found if all(np.isfinite(weight).all() for weight in found) else None


def _left_s(heard: Sequence[tuple[float, Any]], elapsed_s: float, asked: int) -> float:
    done = any(plain is not None for _, plain in heard) or len(heard) >= asked
    return 0.0 if done else max(0.0, REVEAL_S - elapsed_s)


class Revealer(Executor):
    """On a site: sends back what NVFlare's filter has decrypted before it came here."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer with the numbers of the task's data."""
        numbers = np.asarray(from_shareable(shareable).data[NAME], np.float64)
        return DXO(DataKind.WEIGHTS, data={NAME: numbers}).to_shareable()

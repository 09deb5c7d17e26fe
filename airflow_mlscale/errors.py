"""Every error this package raises on purpose.

::

    MlscaleError                     the base; says whether trying again can help
    ├── InvalidInputError            an argument, a setting or a request is wrong (field, value, fix)
    │   └── ModelArtefactError       a path does not hold a model that can be loaded
    ├── DeadlineInfeasibleError      the promise cannot be kept even with every core
    ├── AdmissionRefusedError        the host cannot guarantee what was asked for
    ├── RunFailedError               an engine ran the work and the work failed
    │   ├── SparkJobFailedError
    │   └── FederatedRunFailedError
    ├── TargetNotReachedError        a limit came before the target quality
    └── TransientError               worth another try, after ``retry_after_s``
        └── UnreachableError         a service does not answer (which, where, what to do)

What does not belong here: errors of foreign libraries (adapters translate them) and HTTP statuses
(the servers map these classes to their protocol's own shape).
"""

from __future__ import annotations

from typing import Any


class MlscaleError(Exception):
    """Base of every deliberate error."""

    retryable: bool = False
    """Whether the same call may succeed later without anybody changing anything."""


class InvalidInputError(MlscaleError, ValueError):
    """An argument is wrong; the message names the field, the value and the fix."""

    def __init__(self, field: str, value: Any, fix: str) -> None:
        super().__init__(f"{field}={value!r}: {fix}")
        self.field = field
        self.value = value
        self.fix = fix


class ModelArtefactError(InvalidInputError):
    """A path does not hold a model that can be loaded."""


class DeadlineInfeasibleError(MlscaleError):
    """The deadline cannot be met even at the full share."""

    def __init__(self, *, needed_s: float, left_s: float, detail: str = "") -> None:
        what = f"the job needs about {needed_s:.0f} s at its full share but {left_s:.0f} s are left"
        if left_s <= 0:
            what = f"the deadline passed {-left_s:.0f} s ago"
            what += f", and the job needs about {needed_s:.0f} s at its full share" if needed_s > 0 else ""
        fix = "allow more time" if needed_s <= 0 else "allow more time or cores"
        super().__init__(f"{what}{f' ({detail})' if detail else ''}; {fix}, or set on_infeasible='best_effort'")
        self.needed_s = needed_s
        self.left_s = left_s


class AdmissionRefusedError(MlscaleError):
    """The sum of minimum guarantees would exceed the host."""


class RunFailedError(MlscaleError):
    """An engine ran the work and the work failed."""


class SparkJobFailedError(RunFailedError):
    """The Spark application ended with an error."""


class FederatedRunFailedError(RunFailedError):
    """The federated run ended without a usable model."""


class TargetNotReachedError(MlscaleError):
    """A limit (deadline, rounds, budget) came before the target quality."""


class TransientError(MlscaleError):
    """Something passing; another try after ``retry_after_s`` seconds may work."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnreachableError(TransientError):
    """A service does not answer."""

    def __init__(self, service: str, address: str, fix: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(f"{service} at {address} does not answer: {fix}", retry_after_s=retry_after_s)
        self.service = service
        self.address = address

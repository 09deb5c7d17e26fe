"""A user's module for federated runs in which site ``c`` lies: it sends something else than it has learned.

Travels with the job as any user's module does, so it imports nothing of the tests.
"""

from federated_blobs import of_site


def of_site_or_liar(site_name: str, lie: str = "", **arguments):
    """Data for training; on site ``c`` it first puts the lie where weights are packed."""
    if site_name == "c":
        from airflow_mlscale.federated.adapters import wire

        honest = wire.pack
        wire.pack = lambda weights: honest([LIES[lie](weight) for weight in weights])
    return of_site(site_name, **arguments)


def _nothing(weight):
    import numpy as np

    return np.full_like(weight, np.nan)


def _other_shape(weight):
    import numpy as np

    return np.zeros((*weight.shape, 2), weight.dtype)


def _far(weight):
    return -4 * weight - 2


LIES = {"nan": _nothing, "shape": _other_shape, "far": _far}

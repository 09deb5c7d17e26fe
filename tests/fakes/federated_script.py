"""A user's client script as in NVFlare's examples: it knows nothing of whoever sends it models.

On the site that ``--liar`` names it sends something wrong in its first rounds and then raises; with ``--dies`` it ends
at once.
"""

import argparse

import numpy as np
import nvflare.client as flare  # noqa: TID253  executed only on a site
from federated_numpy import accuracy, own, step


def leave(model):
    raise KeyError("a column")


LIES = {
    1: lambda model: model.params.update({"linear/bias": np.full(3, np.nan, "float32")}),
    2: lambda model: model.params.update({"more": np.zeros(3)}),
    3: lambda model: model.metrics.update({"accuracy": 7.0}),
    6: leave,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--liar", default="")
    parser.add_argument("--dies", action="store_true")
    options = parser.parse_args()
    if options.dies:
        raise SystemExit(3)

    flare.init()
    site = flare.get_site_name()
    train, test = own(site)
    while flare.is_running():
        received = flare.receive()
        found = accuracy(received.params, *test)
        params = received.params
        for _ in range(3):
            params = step(params, *train, options.rate)
        model = flare.FLModel(
            params=params, metrics={"accuracy": found}, meta={"NUM_STEPS_CURRENT_ROUND": len(train[0])}
        )
        if site == options.liar and received.current_round in LIES:
            LIES[received.current_round](model)
        flare.send(model)


if __name__ == "__main__":
    main()

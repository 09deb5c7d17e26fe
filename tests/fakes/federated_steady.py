"""A client script whose answers take a steady time, and on the sites that ``--slow`` names twenty times as long.

Without TensorFlow, so that a job starts within seconds. Knows nothing of whoever sends it models.
"""

import argparse
import threading

import nvflare.client as flare  # noqa: TID253  executed only on a site
from federated_numpy import accuracy, own, step

SLOWER = 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pace-s", type=float, default=0.3)
    parser.add_argument("--slow", default="")
    options = parser.parse_args()

    flare.init()
    site = flare.get_site_name()
    pace_s = options.pace_s * (SLOWER if site in options.slow.split(",") else 1)
    train, test = own(site)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        threading.Event().wait(pace_s)
        params = step(received.params, *train, 0.2)
        flare.send(
            flare.FLModel(
                params=params,
                metrics={"accuracy": accuracy(received.params, *test)},
                meta={"NUM_STEPS_CURRENT_ROUND": len(train[0])},
            )
        )


if __name__ == "__main__":
    main()

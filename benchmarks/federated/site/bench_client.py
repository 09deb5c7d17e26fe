"""A client script as NVFlare's own examples have it: receive, evaluate, train, send.

The same file trains under NVFlare's FedAvg and under our controller. It notes when each model came, which is how long
a round takes for who waits for it.
"""

import argparse
import time

# Executed only by NVFlare.
import nvflare.client as flare  # noqa: TID253
from nvflare.app_common.abstract.fl_model import FLModel  # noqa: TID253


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--file", required=True)
    options.add_argument("--clock", required=True, help="file for the times at which models came")
    arguments = options.parse_args()
    from bench_digits import build, of_site

    flare.init()
    site = flare.get_site_name()
    model = build()
    model.compile(optimizer=model.optimizer, loss=model.loss, metrics=["accuracy"])
    x, y = of_site(site, arguments.file)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        with open(f"{arguments.clock}.{site}", "a") as clock:
            clock.write(f"{time.time()}\n")
        names = sorted(received.params)
        model.set_weights([received.params[name] for name in names])
        _, accuracy = model.evaluate(x, y, verbose=0)
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
        flare.send(
            FLModel(
                params=dict(zip(names, model.get_weights(), strict=True)),
                metrics={"accuracy": accuracy},
                meta={"NUM_STEPS_CURRENT_ROUND": len(x)},
            )
        )


if __name__ == "__main__":
    main()

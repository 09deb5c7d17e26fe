"""A user's client script for a Keras model, as in NVFlare's examples for TensorFlow: layer by layer."""

import nvflare.client as flare  # noqa: TID253  executed only on a site
from federated_blobs import build, of_site


def main():
    flare.init()
    model = build()
    x, y = of_site(flare.get_site_name())
    while flare.is_running():
        received = flare.receive()
        for layer, weights in received.params.items():
            model.get_layer(layer).set_weights(weights)
        model.fit(x, y, epochs=received.meta["mlscale_local_epochs"][flare.get_site_name()], verbose=0)
        params = {layer.name: layer.get_weights() for layer in model.layers}
        flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": len(x)}))


if __name__ == "__main__":
    main()

"""The small model on LitServe: ``python litserve_app.py PORT``."""

import os
import sys

import litserve
import numpy as np
import tf_model


class Small(litserve.LitAPI):
    """LitServe joins requests by itself; its handler wants its parameter to be named so."""

    def setup(self, device):
        self.model = tf_model.Model(os.environ["BENCH_ARTEFACT"], threads=2)

    def decode_request(self, request):
        return np.asarray(request["rows"][0], dtype=np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.model(x)[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"outputs": [output.tolist()]}


if __name__ == "__main__":
    server = litserve.LitServer(Small(max_batch_size=64, batch_timeout=0.001), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")

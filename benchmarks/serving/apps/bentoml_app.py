"""The small model on BentoML."""

import os

import bentoml
import numpy as np
import tf_model


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Small:
    """Rows in, rows out; BentoML joins requests by itself."""

    def __init__(self):
        self.model = tf_model.Model(os.environ["BENCH_ARTEFACT"], threads=2)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model(rows.astype("float32"))[0]

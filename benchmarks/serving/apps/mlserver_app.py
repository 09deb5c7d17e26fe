"""The small model on MLServer."""

import os

import tf_model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Small(MLModel):
    """Rows in, rows out; MLServer joins requests by itself."""

    async def load(self):
        self.model = tf_model.Model(os.environ["BENCH_ARTEFACT"], threads=2)
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        outputs = [NumpyCodec.encode_output("late", self.model(rows)[0])]
        return InferenceResponse(model_name=self.name, outputs=outputs)

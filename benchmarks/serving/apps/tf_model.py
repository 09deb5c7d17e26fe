"""A SavedModel as a function of arrays, as ROMA's workers run it: a session of its own, one thread for an execution."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


class Model:
    """One input, any number of outputs."""

    def __init__(self, path, threads=1):
        import tensorflow as tf

        options = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=1, inter_op_parallelism_threads=threads, use_per_session_threads=True
        )
        self.session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        with self.session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        names = [name for name in ("serving_default", "serve") if name in meta.signature_def]
        signature = meta.signature_def[names[0]]
        (input_name,) = signature.inputs
        self.input = signature.inputs[input_name].name
        self.outputs = sorted(signature.outputs)
        fetch = [signature.outputs[name].name for name in self.outputs]
        self.call = self.session.make_callable(fetch, feed_list=[self.input])

    def __call__(self, array):
        """Run a batch; a list of arrays."""
        return self.call(array)

"""Models on Ray Serve: ``python ray_app.py CONFIG``; says what its replicas reserve, as `meter.events` reads it.

One deployment for each model, scaled by the requests under way, with Ray's own choice of most things; delays and
windows of the scaling are shortened in its favour, as the defaults are for minutes.
"""

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve

sys.path.insert(0, str(Path(__file__).parent))
PERIOD_S = 0.5


class Raw:
    """Answers a body of raw float32 values with those of the first output: less to decode than any protocol."""

    def __init__(self, artefact, shape):
        import tf_model

        self.model = tf_model.Model(artefact)
        self.shape = shape
        self.model(np.zeros(shape, dtype=np.float32))

    def run(self, body):
        return self.model(np.frombuffer(body, dtype=np.float32).reshape(self.shape))[0].tobytes()

    async def __call__(self, request):
        import asyncio

        from starlette.responses import Response

        body = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(None, self.run, body)
        return Response(answer, media_type="application/octet-stream")


class Small:
    """Answers rows in JSON, joined by Ray's own batching."""

    def __init__(self, artefact, width):
        import tf_model

        self.model = tf_model.Model(artefact)
        self.model(np.zeros((1, width), dtype=np.float32))

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def run(self, rows):
        answers = self.model(np.asarray(rows, dtype=np.float32))[0]
        return [answer.tolist() for answer in answers]

    async def __call__(self, request):
        (row,) = (await request.json())["rows"]
        return {"outputs": [await self.run(row)]}


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    ray.init(
        num_cpus=config["cores"],
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        _temp_dir=config["temporary"],
        logging_level="warning",
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": config["port"]}, logging_config={"enable_access_log": False})
    for one in config["models"]:
        kind = Small if "width" in one else Raw
        deployment = serve.deployment(kind).options(
            max_ongoing_requests=one["ongoing"],
            autoscaling_config=one["autoscaling"],
            ray_actor_options={"num_cpus": one["cores"]},
        )
        argument = one["width"] if "width" in one else one["shape"]
        serve.run(deployment.bind(one["artefact"], argument), name=one["name"], route_prefix="/" + one["name"])
    print("ready", flush=True)
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    with open(config["shares"], "a", buffering=1) as notes:
        last = {}
        while not over:
            for one in config["models"]:
                count = replicas(one["name"])
                if last.get(one["name"]) != count:
                    last[one["name"]] = count
                    line = {"at": time.monotonic(), "group": one["name"], "guaranteed": count * one["cores"]}
                    notes.write(json.dumps({**line, "ceiling": None}) + "\n")
            time.sleep(PERIOD_S)
    serve.shutdown()
    ray.shutdown()


def replicas(name):
    """Replicas of an application that hold their reservation."""
    (deployment,) = serve.status().applications[name].deployments.values()
    return sum(count for state, count in deployment.replica_states.items() if str(state) != "STOPPED")


if __name__ == "__main__":
    main()

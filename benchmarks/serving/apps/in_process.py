"""The small model without any server: ``python in_process.py ARTEFACT WIDTH``.

For each number on standard input it runs one row so many times and answers with the seconds of each, as JSON.
"""

import json
import sys
import time

import numpy as np
import tf_model


def main():
    model, row = tf_model.Model(sys.argv[1]), np.zeros((1, int(sys.argv[2])), dtype=np.float32)
    model(row)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            model(row)
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()

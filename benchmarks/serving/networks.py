"""Writes the models that are made here: ``python -m benchmarks.serving.networks FOLDER NAME…``.

MobileNetV2 and EfficientNetB0 have random weights: what they answer means nothing, how long it takes does. The
flight-delay model is the demo's network; its weights are random here too, for the same reason.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

FEATURES = 26
"""Width of the flight-delay model's input (`dags/flight_delay/features.py`, which needs Spark to be read)."""


def main(folder: Path, names: list[str]) -> None:
    import keras

    builders = {"mobilenet": _mobilenet, "efficientnet": _efficientnet, "flight_delay": _flight_delay}
    for name in names:
        keras.utils.set_random_seed(7)
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        builders[name]().export(partial, verbose=False)
        partial.rename(folder / name)


def _mobilenet() -> Any:
    import keras

    return keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3))


def _efficientnet() -> Any:
    import keras

    return keras.applications.EfficientNetB0(weights=None, input_shape=(224, 224, 3))


def _flight_delay() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[2] / "dags"))
    from flight_delay import learning

    with tempfile.TemporaryDirectory() as features:
        names = [f"feature_{number}" for number in range(FEATURES)]
        (Path(features) / "features.json").write_text(json.dumps({"features": names}))
        return learning.make_model(features)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

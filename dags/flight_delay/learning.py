"""What the federation needs to know: the Keras model, each carrier's own data, and the server's held-out flights.

Imported by every site and by the server; nothing heavy happens until a function is called.
"""

from pathlib import Path


def make_model(features_dir: str):
    """A small classifier for 'arrives more than 15 minutes late'."""
    import json

    import keras

    width = len(json.loads((Path(features_dir) / "features.json").read_text())["features"])
    model = keras.Sequential(
        [
            keras.Input((width,), name="features"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid", name="late"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.02), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def carrier_flights(site_name: str, features_dir: str):
    """The flights of one carrier; the site carries the carrier's code as its name."""
    return _arrays(Path(features_dir) / "train" / f"carrier={site_name}")


def held_out_flights(features_dir: str, limit: int = 20_000):
    """Flights of the last days of each month, all carriers: the server's own evaluation set."""
    x, y = _arrays(Path(features_dir) / "heldout")
    return x[:limit], y[:limit]


def _arrays(path: Path):
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["features", "late"]).combine_chunks()
    features = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    x = features.reshape(table.num_rows, -1).clip(-10, 10).astype("float32")
    return x, table["late"].to_numpy().astype("float32")

"""NVFlare's own FedAvg, with a model to begin with and a place to keep it, as its documentation says to add them."""

# Executed only by NVFlare.
import numpy as np
from bench_digits import weights
from nvflare.app_common.abstract.fl_model import FLModel  # noqa: TID253
from nvflare.app_common.workflows.fedavg import FedAvg  # noqa: TID253


class KeptFedAvg(FedAvg):
    """`FedAvg` of a named number of clients and rounds."""

    def __init__(self, num_clients: int, num_rounds: int, kept: str):
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self._kept = kept

    def load_model(self):
        return FLModel(params=weights())

    def save_model(self, model):
        np.savez(self._kept, **model.params)

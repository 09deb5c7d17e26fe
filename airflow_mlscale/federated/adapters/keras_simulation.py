"""A run of the user's own functions on simulated sites: the same models, data, policies and stops, in this process.

For tests of DAGs, models and settings: nothing is submitted, no site is needed, and only the time of the training
itself is really spent. Belongs here: what needs Keras. Does not belong here: how sites behave (`simulation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.federated import ports, simulation
from airflow_mlscale.federated.adapters import keras_model, run_directory, trainer
from airflow_mlscale.federated.settings import RunSettings


class KerasTrainer:
    """`simulation.Trainer` with the trainer that real sites have, one for each site."""

    def __init__(self, run: RunSettings, names: Sequence[str]) -> None:
        """Read all sites' data.

        Raises:
            InvalidInputError: a function of the run cannot be found or returns something else than it should.
        """
        self._sites = {name: trainer.Trainer(run, name) for name in names}

    def train(
        self, site: str, weights: ports.Weights, *, epochs: int, batch_size: int, number: int
    ) -> simulation.Trained:
        one = self._sites[site]
        seen = one.measured(list(weights))
        trained, losses, _ = one.train(list(weights), epochs=epochs, batch_size=batch_size)
        return simulation.Trained(
            trained, samples=len(one.x), loss=losses[-1], first_loss=losses[0], value=seen.get(one.run.target.metric),
            value_loss=seen.get("loss"), value_samples=one.validation_samples,
        )  # fmt: skip


def simulate(run: RunSettings, sites: Sequence[simulation.SimulatedSite], run_store: Path) -> simulation.Simulated:
    """Play a run; it is recorded in ``run_store`` as a real one is, so that sensors and hooks can read it.

    Args:
        run: settings; ``deadline_at`` in seconds from the start of the simulated clock.
        sites: who takes part, see `simulation.drawn`.
        run_store: directory of runs.

    Raises:
        InvalidInputError: a function of the run cannot be found or returns something else than it should.
    """
    directory = run_directory.RunDirectory(run_store / run.run_id)
    return play(run, sites, directory, run_directory.RunWriter(directory, run.target, 1))


def play(
    run: RunSettings,
    sites: Sequence[simulation.SimulatedSite],
    directory: run_directory.RunDirectory,
    writer: run_directory.RunWriter,
    *,
    segment: int = 1,
    seed: int | None = None,
    began_s: float = 0.0,
) -> simulation.Simulated:
    """Play a segment of a run that is recorded in a directory; arguments as of `simulate` and `simulation.simulate`.

    Raises:
        InvalidInputError: as for `simulate`.
    """
    if run.client_data is None:
        raise errors.InvalidInputError("client_script", run.client_script, "cannot be simulated; use client_data")
    trains = KerasTrainer(run, [site.name for site in sites])  # first: it says how many threads there are
    evaluator = keras_model.KerasEvaluator(run)
    directory.create(run)
    return simulation.simulate(
        run, sites, trains, evaluator, store=writer, segment=segment, seed=seed, began_s=began_s,
        output_dir=Path(run.output_dir or directory.path / "model"),
    )  # fmt: skip

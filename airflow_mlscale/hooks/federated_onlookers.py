"""Who hears the news of a federated run where Airflow follows it: the log, the metrics and, if wanted, MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from airflow_mlscale.federated import following, narration
from airflow_mlscale.federated.adapters import mlflow_log
from airflow_mlscale.hooks.federated_telemetry import FederatedMetrics
from airflow_mlscale.runtime.aside import Aside

PATIENCE_S = 30.0
"""For an MLflow that is still busy at the end of a task."""


@dataclass
class Onlookers:
    """All of them; a context manager, whose end waits for MLflow for a while."""

    tell: Callable[[str], None]
    metrics: FederatedMetrics
    mlflow: mlflow_log.MlflowLog | None = None
    _aside: Aside[following.News] | None = field(default=None, init=False)

    def __enter__(self) -> Onlookers:
        if self.mlflow is not None:
            self._aside = Aside(self.mlflow, "MLflow", PATIENCE_S).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._aside is not None:
            self._aside.__exit__(kind, error, trace)

    async def __aenter__(self) -> Onlookers:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._aside is not None:
            await self._aside.__aexit__(kind, error, trace)

    def __call__(self, news: following.News | None) -> None:
        """Tell them, if there is something to tell."""
        if news is None:
            return
        for line in narration.told(news.records, news.run, news.state):
            self.tell(line)
        for record in news.records:
            self.metrics(record)
        if self._aside is not None and (news.records or news.state.status.ended):
            self._aside(news)

    def finished(self, news: following.News | None) -> None:
        """The same at the end of the run, with all of its sites; the end is counted."""
        self(news)
        if news is not None:
            for line in narration.table(news.state.sites, news.state):
                self.tell(line)
            self.metrics.finished(str(news.state.status))

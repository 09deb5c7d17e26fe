"""The alert rules and the Grafana dashboard ask for what the daemon tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import parser

from airflow_mlscale.roma import devices, measurement, model
from tests.fakes import roma_served

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = yaml.safe_load((FOLDER / "roma-alerts.yml").read_text())["groups"][0]["rules"]
GRAFANA = json.loads((FOLDER / "roma-grafana.json").read_text())
PANELS = [(panel["title"], target) for panel in GRAFANA["panels"] for target in panel["targets"]]

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
VALUES = {
    "verdict": set(model.Verdict),
    "state": set(model.State),
    "outcome": set(measurement.Outcome),
    "kind": {"total", "used", "budget", "reserved"},
}


async def told() -> dict[str, set[str]]:
    """Every series that a daemon with some traffic has, with its labels."""
    async with roma_served.serving(emulated_gpu=True) as served:
        infer = "/v2/models/m/infer"
        await served.http.post(infer, content=b"{}")
        await served.http.post("/v2/models/nobody/infer", content=b"{}")
        served.occupy()
        await served.http.post(infer, content=b"{}", headers={"x-mlscale-deadline-ms": "5"})
        served.gpu_port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", used_bytes=2**30, utilisation=0.5)
        await served.place()
        await served.http.post(infer, content=b"{}")
        text = (await served.http.get("/metrics")).text
    found: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # No controller runs here, which would have granted shares and measured.
    for name in ("cores_guaranteed", "cores_ceiling"):
        assert f"# TYPE mlscale_roma_{name} gauge" in text
        found.setdefault(f"mlscale_roma_{name}", {"model"})
    return found


def plain(query: str) -> str:
    """Without Grafana's own variables."""
    return query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$model", ".*")


def selectors(expression: Any) -> Iterator[Any]:
    match expression:
        case promql_parser.VectorSelector():
            yield expression
        case promql_parser.MatrixSelector():
            yield expression.vector_selector
        case promql_parser.BinaryExpr():
            yield from selectors(expression.lhs)
            yield from selectors(expression.rhs)
        case promql_parser.Call():
            for argument in expression.args:
                yield from selectors(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr():
            yield from selectors(expression.expr)
        case promql_parser.NumberLiteral():
            return
        case _:
            raise AssertionError(f"not looked into: {expression}")


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    import asyncio

    return asyncio.run(told())


@pytest.mark.parametrize(
    "query",
    [
        *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
        *(pytest.param(target["expr"], id=f"{title} {target['refId']}") for title, target in PANELS),
    ],
)
def test_queries_ask_for_what_is_told(query: str, series: dict[str, set[str]]) -> None:
    found = list(selectors(promql_parser.parse(plain(query))))
    assert found
    for selector in found:
        if selector.name == "up":  # Prometheus' own
            continue
        assert selector.name in series
        for matcher in selector.matchers.matchers:
            assert matcher.name in series[selector.name] | SCRAPED, (selector.name, matcher.name)
            if matcher.name in VALUES:
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]
    grouped = re.findall(r"by \(([^)]*)\)", query)
    labels = set().union(*(series.get(selector.name, set()) for selector in found)) | SCRAPED
    assert {label.strip() for group in grouped for label in group.split(",")} <= labels


def memory(text: str) -> dict[str, float]:
    """MiB by kind."""
    families = parser.text_string_to_metric_families(text)
    samples = [one for family in families for one in family.samples if one.name == "mlscale_roma_gpu_memory_bytes"]
    return {one.labels["kind"]: one.value / 2**20 for one in samples}


async def test_a_gpu_is_told_of_and_its_loss_too() -> None:
    async with roma_served.serving(emulated_gpu=True) as served:
        served.gpu_port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", used_bytes=1000 * 2**20, utilisation=0.5)
        await served.place()
        for _ in range(3):
            await served.http.post("/v2/models/m/infer", content=b"{}")
        text = (await served.http.get("/metrics")).text
        label = 'device="emulated-gpu",gpu="GPU-a"'
        # 8000 · 0.95 − 1000 of others; 600 for the runtime and 128 for a model without files
        assert memory(text) == {"total": 8000, "used": 1000, "budget": 6600, "reserved": 728}
        assert f"gpu_utilisation{{{label}}} 0.5" in text
        assert 'executions_total{device="emulated-gpu",model="m",version="1"} 3.0' in text
        served.gpu_port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", fault="XID 79", lasting=True)
        await served.place()
        assert f"gpu_usable{{{label}}} 0.0" in (await served.http.get("/metrics")).text


def test_rules_say_what_and_how_bad() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        for used in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert used in rule["expr"] or used in ("model", "instance")


def test_legends_name_labels_that_are_there(series: dict[str, set[str]]) -> None:
    for title, target in PANELS:
        labels = set().union(*(series[one.name] for one in selectors(promql_parser.parse(plain(target["expr"])))))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels | SCRAPED, title


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells

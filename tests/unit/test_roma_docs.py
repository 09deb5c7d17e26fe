"""docs/roma.md names all that can be set, asked and measured, with the defaults that hold."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from airflow_mlscale.roma import main, settings
from airflow_mlscale.roma.adapters import openapi
from tests.fakes import roma_served

PAGE = (Path(__file__).parents[2] / "docs" / "roma.md").read_text()
GROUPS = {name: one for name, one in vars(settings).items() if dataclasses.is_dataclass(one)}


def shown(field: dataclasses.Field[Any]) -> str:
    """A default as the page has it."""
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if isinstance(value, int) and value >= size and value % size == 0 and field.name.endswith("_bytes"):
            return f"{value // size} {unit}"
    return repr(value).replace("'", '"')


@pytest.mark.parametrize("name", GROUPS)
def test_every_setting_is_there_with_its_default(name: str) -> None:
    _, _, section = PAGE.partition(f"\n**`{name}`**")
    assert section, f"no table of {name}"
    rows = section.partition("\n\n**")[0]
    plain = [field for field in dataclasses.fields(GROUPS[name]) if not dataclasses.is_dataclass(field.default)]
    missing = [row for field in plain if (row := f"| `{field.name}` | `{shown(field)}` |") not in rows]
    assert missing == []


def options(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[str, str]]:
    """Every option of a command and of those under it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, under in action.choices.items():
                yield from options(under, *path, name)
        for option in action.option_strings:
            if option.startswith("--") and option != "--help":
                yield " ".join(path), option


def test_every_option_of_the_command_line_is_there() -> None:
    made = argparse.ArgumentParser()
    main.add_commands(made.add_subparsers())
    found = list(options(made))
    assert ("roma serve", "--gpus") in found
    assert [(path, one) for path, one in found if not re.search(rf"(?<![\w-]){one}(?![\w-])", PAGE)] == []


def test_every_endpoint_is_there() -> None:
    table = PAGE.partition("| endpoint | |")[2].partition("\n\n")[0]
    whole = table.replace("[/versions/{v}]", "").replace("[/versions/{v}\\|/labels/stable]", "")
    missing = []
    for path in openapi.document(token=False)["paths"]:
        plain = re.sub(r"/(versions|labels)/\{\w+\}", "", path)
        ending = re.sub(r"\{\w+\}", "{m}", plain)
        if ending not in whole and not any(f"{end}`" in whole for end in endings(ending)):
            missing.append(path)
    assert missing == []


def endings(path: str) -> Iterator[str]:
    """How the table abbreviates a path that differs from the one before in its end alone."""
    last = re.split(r"(?=[/:])", path)[-1]
    yield f"`{last}"
    yield f"…{last}"


async def test_every_metric_is_there() -> None:
    async with roma_served.serving(emulated_gpu=True) as served:
        text = (await served.http.get("/metrics")).text
    names = {family.name for family in parser.text_string_to_metric_families(text)}
    own = {name.removeprefix("mlscale_roma_") for name in names if name.startswith("mlscale_roma_")}
    assert "gpu_usable" in own
    assert [one for one in sorted(own) if not re.search(rf"`{one}(_total)?`", PAGE)] == []

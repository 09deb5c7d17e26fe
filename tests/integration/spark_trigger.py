"""Runs one trigger as a triggerer would: ``spark_trigger.py SERIALISED_JSON RESULT_FILE``."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def restored(serialised: tuple[str, dict[str, Any]] | list[Any]) -> Any:
    """The trigger, from what was stored of it."""
    path, arguments = json.loads(json.dumps(serialised))
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)(**arguments)


async def first_event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


if __name__ == "__main__":
    payload = asyncio.run(first_event(restored(json.loads(sys.argv[1]))))
    result = Path(sys.argv[2])
    result.with_suffix(".partial").write_text(json.dumps(payload))
    result.with_suffix(".partial").replace(result)

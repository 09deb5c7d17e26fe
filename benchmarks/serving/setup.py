"""``python -m benchmarks.serving.setup``: the models and, in environments of their own, the rivals' servers.

Everything is cached below `home`; what is there is not made again. The rivals' dependencies clash with ours and with
each other's, so each has its own environment, with the same TensorFlow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from airflow_mlscale import errors

RIVALS = {
    "ray": ("ray[serve]==2.60.0",),
    "mlserver": ("mlserver==1.7.1", "aiohttp"),  # which it imports and does not ask for
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.39",),
}
"""Requirements of each server, its own first."""
PITCH = "basic-pitch==0.4.0"
"""Has the pitch detector as a SavedModel among its files; its dependencies are not installed."""
MODELS = ("pitch", "mobilenet", "efficientnet", "flight_delay")


def home() -> Path:
    """``$MLSCALE_BENCH_CACHE`` or a folder of the user's cache."""
    given = os.environ.get("MLSCALE_BENCH_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(given) if given else cache / "mlscale-bench-serving"


def model_path(name: str) -> Path:
    """Where the SavedModel of that name is."""
    return home() / "models" / name


def python_of(rival: str) -> Path:
    """The interpreter of that rival's environment."""
    return home() / "venvs" / rival / "bin" / "python"


def has(rival: str) -> bool:
    """Whether its environment was made to the end."""
    stamp = home() / "venvs" / rival / ".made"
    return stamp.exists() and stamp.read_text() == " ".join(RIVALS[rival])


def models(names: Sequence[str] = MODELS) -> None:
    """Write what is missing of these models.

    Raises:
        TransientError: something could not be downloaded or written.
    """
    missing = [name for name in names if not model_path(name).exists()]
    if "pitch" in missing:
        _pitch(model_path("pitch"))
        missing.remove("pitch")
    if missing:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-m", "benchmarks.serving.networks", str(home() / "models"), *missing]
        _run(command, "models", environment)


def rival(name: str) -> None:
    """Make the environment of one rival, unless it is there.

    Raises:
        TransientError: it cannot be installed here, with the end of what was said about it.
    """
    if has(name):
        return
    folder = home() / "venvs" / name
    shutil.rmtree(folder, ignore_errors=True)
    _run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)], name)
    tensorflow = f"tensorflow-cpu=={version('tensorflow-cpu')}"
    # Compiled now, or each process would do it at each start where the environment forbids writing bytecode.
    install = ["uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python_of(name))]
    _run([*install, *RIVALS[name], tensorflow], name)
    (folder / ".made").write_text(" ".join(RIVALS[name]))


def _pitch(path: Path) -> None:
    scratch = home() / "basic-pitch"
    _run(["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch), PITCH], "basic-pitch")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(scratch / "basic_pitch" / "saved_models" / "icassp_2022" / "nmp", path)
    shutil.rmtree(scratch)


def _run(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    if command[0] == "uv":  # the one of this environment before any other
        beside = Path(sys.executable).parent / "uv"
        command = [str(beside) if beside.exists() else "uv", *command[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        end = "\n".join((done.stderr or done.stdout).splitlines()[-8:])
        raise errors.TransientError(f"{what} could not be set up ({command[0]} ended with {done.returncode}):\n{end}")


def main() -> int:
    """Make everything; 1 if something could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.setup", description=__doc__)
    parser.add_argument("rivals", nargs="*", default=list(RIVALS), help=f"of {', '.join(RIVALS)} (default: all)")
    options = parser.parse_args()
    failed = False
    for name, make in [("models", models), *((each, lambda each=each: rival(each)) for each in options.rivals)]:
        try:
            make()
            print(f"{name}: there")
        except errors.TransientError as exc:
            failed = True
            print(f"{name}: {exc}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

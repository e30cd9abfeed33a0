"""One results file a benchmark: what was measured, by which command, on what machine, with which versions."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "scikit-learn", "torch")


def write(name: str, rows: Any, *, seeds: Sequence[int]) -> Path:
    """Writes `results/NAME.json` and returns its path.

    Args:
        name: of the benchmark.
        rows: what was measured, anything that JSON holds.
        seeds: that the figures rest on.
    """
    result = {
        "command": command(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "seeds": list(seeds),
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)  # a result that is cut short would be a result lost
    return path


def command() -> str:
    """Returns the command line from the repository's root, of paths outside it the last part alone."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folder, sys.argv[1:])])


def commit() -> str:
    """Returns the commit that is checked out, "-dirty" where files but results differ from it; or "unknown"."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=RESULTS.parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """Returns processor, cores at this process's disposal, platform and the device that JAX computes on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter here, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _without_folder(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = Path(value)
    return option + equals + (path.name if path.is_absolute() or ".." in path.parts else value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

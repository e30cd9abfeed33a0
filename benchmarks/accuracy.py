"""Accuracy at a byte budget: trains the cells of a table, one process a run.

    python benchmarks/accuracy.py TABLE --data_dir DIR [--seeds N] [--cells NAME ...] [--jobs N] [--out DIR]

It writes `benchmarks/results/TABLE.json` after every run, and keeps what that file says of other cells. A finished run
is never made again, and tells the commit that made it: stop at any time and start the same command. With `--jobs 2` two
runs share the cores, one half each: together faster than one after the other on all of them, for much of a run is not
parallel.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, commit, write

ROOT = Path(__file__).resolve().parent.parent
NONE = {"compress.up.method": "identity", "compress.down.method": "identity"}
KEPT = (
    "accuracy", "accuracy_uncompressed", "balanced_accuracy", "loss", "ratio", "total_up_bytes", "total_down_bytes",
    "raw_up_bytes", "raw_down_bytes", "total_link_seconds", "steps", "seed", "wall_seconds", "commit",
)  # fmt: skip


def both(**settings: Any) -> dict[str, Any]:
    """Returns the overrides that give both directions the same settings."""
    return {f"compress.{way}.{key}": value for way in ("up", "down") for key, value in settings.items()}


def one(way: str, **settings: Any) -> dict[str, Any]:
    """Returns the overrides that compress one direction alone."""
    other = "down" if way == "up" else "up"
    return {
        f"compress.{other}.method": "identity",
        **{f"compress.{way}.{key}": value for key, value in settings.items()},
    }


FEEDBACK = {"none": {}, "across_steps_0.9": {"feedback": "across_steps", "feedback_decay": 0.9},
            "across_steps_1": {"feedback": "across_steps", "feedback_decay": 1.0},
            "per_sample": {"feedback": "per_sample"}}  # fmt: skip

TABLES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    **{
        config: (config, {"none": NONE, "nsc_sl": {}})
        for config in (
            "quickstart",
            "fashion_mnist",
            "cifar10_bench",
            "cifar10_small",
            "cifar10_lte",
            "cifar10_resnet18",
        )
    },
    "feedback": (
        "cifar10_bench",
        {
            f"{way} {ratio}x {name}": one(way, ratio=ratio, **settings) | {"train.eval_every": 500}
            for ratio in (40, 100)
            for way in ("up", "down")
            for name, settings in FEEDBACK.items()
        },
    ),
    "settings": (
        "cifar10_bench",
        {
            **{f"ratio {ratio}": both(ratio=ratio) for ratio in (16, 64, 100, 160)},
            "8 bits": both(factor_bits=8),
            "energy 0.9": both(energy=0.9),
        },
    ),
}
"""Tables by name: the config file and the cells, each a set of overrides."""


def run(
    config: str, overrides: dict[str, Any], seed: int, run_dir: Path, data_dir: str | None, cores: frozenset[int]
) -> dict[str, Any]:
    """Returns the summary of one run on `cores`, made now unless it was made before."""
    if not (run_dir / "summary.json").exists():
        values = {**overrides, "seed": seed, "run_dir": run_dir, "train.resume": "true"}
        values |= {"data.dir": data_dir} if data_dir else {}
        command = [sys.executable, "train/main.py", "--config", f"configs/{config}.toml"]
        command += [word for key, value in values.items() for word in (f"--{key}", str(value))]
        process = subprocess.Popen(command, cwd=ROOT)
        if cores:
            os.sched_setaffinity(process.pid, cores)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        (run_dir / "commit.txt").write_text(commit())
    return json.loads((run_dir / "summary.json").read_text()) | {"commit": (run_dir / "commit.txt").read_text()}


def shares(jobs: int) -> "queue.Queue[frozenset[int]]":
    """Returns the cores of this process dealt out to `jobs` runs; empty sets, for no limit, where there is one job."""
    cores = sorted(os.sched_getaffinity(0)) if jobs > 1 else []
    free: queue.Queue[frozenset[int]] = queue.Queue()
    for job in range(jobs):
        free.put(frozenset(cores[job::jobs]))
    return free


def cell(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Returns the runs of a cell, in the order of their seeds, with mean and standard error of the accuracy."""
    summaries = [by_seed[seed] for seed in sorted(by_seed)]
    accuracies = [summary["accuracy"] for summary in summaries]
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None
    return {
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_standard_error": error,
        "ratio": statistics.mean(summary["ratio"] for summary in summaries),
        "runs": [{key: summary[key] for key in KEPT} for summary in summaries],
    }


def earlier(table: str) -> dict[str, Any]:
    """Returns the cells of a table that were measured before."""
    path = RESULTS / f"{table}.json"
    return json.loads(path.read_text())["rows"]["cells"] if path.exists() else {}


def main() -> None:
    """Runs a table, seed by seed, and writes what there is after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--cells", nargs="*", help="only these cells")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks", help="where the runs are kept")
    options = parser.parse_args()
    config, cells = TABLES[options.table]
    chosen = {name: cells[name] for name in options.cells or cells}
    done: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in chosen}
    free = shares(options.jobs)

    def make(name: str, seed: int) -> dict[str, Any]:
        folder = options.out / options.table / name.replace(" ", "_").replace(",", "-") / f"seed{seed}"
        cores = free.get()
        try:
            return run(config, chosen[name], seed, folder, options.data_dir, cores)
        finally:
            free.put(cores)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = {pool.submit(make, name, seed): (name, seed) for seed in range(options.seeds) for name in chosen}
        for finished in concurrent.futures.as_completed(runs):
            name, seed = runs[finished]
            done[name][seed] = finished.result()
            found = earlier(options.table) | {name: cell(by_seed) for name, by_seed in done.items() if by_seed}
            rows = {name: found[name] for name in cells if name in found}
            write(options.table, {"config": config, "cells": rows}, seeds=sorted(set().union(*done.values())))
            print(f"{options.table}: {name}, seed {seed}: accuracy {done[name][seed]['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()

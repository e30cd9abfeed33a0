"""Training runs of a benchmark, one process each: made once, resumed where they were stopped, kept in a table."""

import concurrent.futures
import contextlib
import datetime as dt
import fcntl
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import RESULTS, commit, machine, versions, write

from train import compression
from train import config as configs

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "benchmarks"
"""Where runs are kept by default."""

KEPT = (
    "accuracy", "accuracy_uncompressed", "balanced_accuracy", "loss", "ratio", "total_up_bytes", "total_down_bytes",
    "raw_up_bytes", "raw_down_bytes", "total_link_seconds", "steps", "seed", "wall_seconds",
)  # fmt: skip
EVAL_KEPT = ("step", "accuracy", "accuracy_uncompressed", "total_up_bytes", "total_down_bytes", "total_link_seconds")


ELSEWHERE = ("seed", "run_dir", "overwrite", "data.dir", "data.download", "train.resume")
"""Config keys that do not say what a run is."""


class RefusedError(Exception):
    """The program refused the settings; the message is its own."""


def settings_of(config: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run is made with: every value of the config and the overrides that is not the program's default.

    Neither seed, nor where data and runs are kept, nor what a direction's method does not use.
    """
    values = configs.flat(configs.from_toml(ROOT / "configs" / f"{config}.toml")) | overrides
    defaults = configs.flat(configs.Config())
    unused = set(ELSEWHERE)
    for way in ("up", "down"):
        prefix = f"compress.{way}."
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        used = compression.used_keys(way, configs.DirectionConfig(**own))
        unused |= {prefix + name for name in own if name not in used}
    return {key: value for key, value in values.items() if key not in unused and value != defaults[key]}


def run(
    config: str,
    overrides: dict[str, Any],
    seed: int,
    run_dir: Path,
    data_dir: str | None,
    traces: Path | None,
    cores: frozenset[int],
) -> dict[str, Any]:
    """Returns the summary of one run on `cores` with its evaluations, made now unless it was made before.

    Overrides name a trace by its file in the folder `traces`.

    Raises:
        RefusedError: no frame of the method fits the budget.
        CalledProcessError: the program failed in another way; its message is in the error.
    """
    # Beside the folder, so that it is known of a run that was stopped as well.
    about, settings = run_dir.with_name(f"{run_dir.name}.json"), settings_of(config, overrides)
    known = json.loads(about.read_text()) if about.exists() else {}
    if run_dir.exists() and known.get("settings") != settings:
        # Made with other settings: it is kept aside.
        run_dir.rename(next(old for n in itertools.count(1) if not (old := Path(f"{run_dir}.old{n}")).exists()))
    if not (run_dir / "summary.json").exists():
        about.parent.mkdir(parents=True, exist_ok=True)
        known = {"settings": settings, "made_by": made_by()}
        about.write_text(json.dumps(known))
        values = {**overrides, "seed": seed, "run_dir": run_dir, "train.resume": "true"}
        values |= {"data.dir": data_dir} if data_dir else {}
        values |= {key: traces / f"{value}.csv" for key, value in overrides.items() if traces and key == "link.trace"}
        command = [sys.executable, "train/main.py", "--config", f"configs/{config}.toml"]
        command += words_of(values)
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if cores:
            os.sched_setaffinity(process.pid, cores)
        _, errors = process.communicate()
        if process.returncode == 2 and "budget of a frame" in errors:
            raise RefusedError(errors.strip())
        if process.returncode:
            print(errors, file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
    summary = json.loads((run_dir / "summary.json").read_text())
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    evals = [{key: line[key] for key in EVAL_KEPT} for line in lines if line["kind"] == "eval"]
    kept = {key: summary[key] for key in KEPT}
    return kept | known["made_by"] | {"evals": evals}


def made_by() -> dict[str, Any]:
    """Returns what tells runs of one table apart that were made in several places and at several times."""
    found = machine()
    return {
        "commit": commit(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": found["cpu"],
        "cores": found["cores"],
        "device": found["device"],
        "jax": versions()["jax"],
    }


def config_of(name: str, values: dict[str, Any]) -> configs.Config:
    """Returns the config of a file in `configs/`, with overrides, as the program reads it."""
    return configs.load(["--config", str(ROOT / "configs" / f"{name}.toml"), *words_of(values)]).config


def words_of(values: dict[str, Any]) -> list[str]:
    """Returns overrides as the command line takes them."""

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [word for key, value in values.items() for word in (f"--{key}", text(value))]


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
        "runs": summaries,
    }


def earlier(table: str) -> dict[str, Any]:
    """Returns the cells of a table that were measured before."""
    path = RESULTS / f"{table}.json"
    return json.loads(path.read_text())["rows"]["cells"] if path.exists() else {}


def make(
    table: str,
    config: str,
    cells: dict[str, dict[str, Any]],
    chosen: dict[str, int],
    *,
    data_dir: str | None,
    jobs: int,
    out: Path,
    traces: Path | None = None,
) -> None:
    """Makes runs, seed by seed, and writes `benchmarks/results/TABLE.json` after every one.

    A run that the file or `out` holds, made with the same settings, is never made again; what the file says of other
    cells is kept. A cell whose settings the program refuses is noted as refused. Where a run fails the others are made
    all the same.

    Args:
        table: the results file's name.
        config: name of the config.
        cells: overrides by cell, in the table's order.
        chosen: number of seeds, from 0, by the cells to be run.
        data_dir: folder of the data set, or None for the config's.
        jobs: runs at a time, each on its share of the cores.
        out: where the runs are kept.
        traces: folder of the traces that the overrides name.

    Raises:
        SystemExit: runs failed; their messages are on stderr, and the same command tries them again.
    """
    known = earlier(table)
    settings = {name: settings_of(config, cells[name]) for name in chosen}
    # What was measured with other settings is measured anew.
    done = {
        name: {run["seed"] for run in found.get("runs", [])} if found.get("settings") == settings[name] else set()
        for name, found in ((name, known.get(name, {})) for name in chosen)
    }
    refused: dict[str, str] = {}
    failed = []
    free = shares(jobs)

    def one_run(name: str, seed: int) -> dict[str, Any] | None:
        folder = out / table / name.replace(" ", "_").replace(",", "-") / f"seed{seed}"
        cores = free.get()
        try:
            return None if name in refused else run(config, cells[name], seed, folder, data_dir, traces, cores)
        except RefusedError as error:
            refused[name] = str(error)
            return None
        finally:
            free.put(cores)

    most = max(chosen.values(), default=0)
    wanted = [(name, seed) for seed in range(most) for name, num_seeds in chosen.items() if seed < num_seeds]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(one_run, *key): key for key in wanted if key[1] not in done[key[0]]}
        try:
            for finished in concurrent.futures.as_completed(runs):
                name, seed = runs[finished]
                try:
                    summary = finished.result()
                except subprocess.CalledProcessError:
                    print(f"{table}: {name}, seed {seed}: failed", flush=True)
                    failed.append(f"{name}, seed {seed}")
                    continue
                if summary is None:
                    print(f"{table}: {name}, refused: {refused[name]}", flush=True)
                    put(table, config, list(cells), name, {"settings": settings[name], "refused": refused[name]})
                else:
                    print(f"{table}: {name}, seed {seed}: accuracy {summary['accuracy']:.4f}", flush=True)
                    put_run(table, config, list(cells), name, settings[name], summary)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is under way is resumed the next time
            raise
    if failed:
        raise SystemExit(f"{len(failed)} runs of {table} failed: {'; '.join(failed)}")


def put_run(
    table: str, config: str, order: list[str], name: str, settings: dict[str, Any], summary: dict[str, Any]
) -> None:
    """Adds a run to its cell in the table's file, whoever else has added to it; runs of other settings are left out."""
    with _alone(table):
        found = earlier(table).get(name, {})
        known = found.get("runs", []) if found.get("settings") == settings else []
        by_seed = {run["seed"]: run for run in [*known, summary]}
        _put(table, config, order, name, {"settings": settings} | cell(by_seed))


def put(table: str, config: str, order: list[str], name: str, entry: dict[str, Any]) -> None:
    """Writes a cell into the table's file, in the place of what it had; other cells stay, those of no order last."""
    with _alone(table):
        _put(table, config, order, name, entry)


@contextlib.contextmanager
def _alone(table: str) -> Iterator[None]:
    """Lets no other command change the table's file meanwhile."""
    with open(Path(tempfile.gettempdir()) / f"nscjax-{table}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _put(table: str, config: str, order: list[str], name: str, entry: dict[str, Any]) -> None:
    known = earlier(table) | {name: entry}
    rows = {key: known[key] for key in [*(key for key in order if key in known), *known]}
    seeds = sorted({run["seed"] for found in rows.values() for run in found.get("runs", [])})
    write(table, {"config": config, "cells": rows}, seeds=seeds)

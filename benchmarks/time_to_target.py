"""Time to a target accuracy on recorded links: every cell of accuracy_vs_bytes over every trace, on the virtual clock.

    python benchmarks/time_to_target.py CONFIG --traces DIR [--target 0.5] [--step_s 0.1] [--latency_ms 30]

For cells of a fixed ratio no run is made: the steps that a cell needed for the target come from its evaluations (linear
between them, mean over its seeds), its frames' bytes from its totals; both directions go over the same trace, from its
beginning. Where the rank follows the link, the run was made on the trace (`adaptive.py`), and its own clock is read.
`nsc_sl_hindsight` is no method but what following the link can gain: in every step it has that ratio of the grid that
gets on fastest, the link's next seconds known, or one ratio throughout where that is faster. Nor is `no_bytes`: the
steps of no compression, and messages that take the latency alone. Every step computes for as long, whatever the method:
what compressing takes is not in it (`device_part.py` measures that). It writes
`benchmarks/results/time_to_target_CONFIG.json`: seconds by cell and trace, null for a cell that never got there.
"""

import argparse
import functools
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record import RESULTS, write

from nscjax import link as links


def made_from(config: str) -> str:
    """Returns what tells whether results of a config are those that times were reckoned from."""
    paths = (RESULTS / f"{table}_{config}.json" for table in ("accuracy_vs_bytes", "adaptive"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.exists())).hexdigest()[:16]


CHANCE = 0.1
"""Accuracy before the first step, of ten classes."""


def steps_to(target: float, evals: list[dict[str, Any]], chance: float) -> float | None:
    """Returns the step at which the accuracy reached the target, or None if it never did."""
    step, accuracy = 0, chance
    for line in evals:
        if line["accuracy"] >= target:
            return step + (line["step"] - step) * max(0.0, target - accuracy) / (line["accuracy"] - accuracy)
        step, accuracy = line["step"], line["accuracy"]
    return None


@functools.partial(jax.jit, static_argnames="num_steps")
def seconds_of(
    trace: links.Trace, up_bytes: jax.Array, down_bytes: jax.Array, step_s: float, latency_s: float, num_steps: int
) -> jax.Array:
    """Returns when each of `num_steps` steps has ended, [num_steps] seconds."""
    link = links.Link(trace, trace, latency_s, latency_s, step_s, step_s)
    estimator = links.ewma()

    def one(carry, _):
        state, elapsed = carry
        state, up_s, down_s = links.exchange(link, estimator, state, up_bytes, down_bytes)
        elapsed = elapsed + up_s + down_s + 2 * step_s
        return (state, elapsed), elapsed

    return jax.lax.scan(one, (links.init(link, estimator), jnp.float32(0)), length=num_steps)[1]


@functools.partial(jax.jit, static_argnames="most_steps")
def hindsight_seconds(
    trace: links.Trace, sizes: tuple[jax.Array, ...], step_s: float, latency_s: float, most_steps: int
) -> jax.Array:
    """Returns the seconds to the target of one who knows how long messages will take: the ratio that gets on fastest.

    Step by step, greedily; a step at a ratio is one of the steps that the ratio needs.

    Args:
        trace: of both directions.
        sizes: bytes up and down of a message, and the steps to the target, of every ratio: [K] each.
        step_s: that either party computes.
        latency_s: of a message.
        most_steps: as many as the slowest ratio needs.
    """
    link = links.Link(trace, trace, latency_s, latency_s, step_s, step_s)
    estimator = links.ewma()
    up_bytes, down_bytes, steps = sizes

    def one(carry, _):
        state, elapsed, progress = carry
        states, up_s, down_s = jax.vmap(functools.partial(links.exchange, link, estimator, state))(up_bytes, down_bytes)
        seconds = up_s + down_s + 2 * step_s
        best = jnp.argmin(seconds * steps)  # of the whole way, had the step been all of it
        # The last step counts by the part of it that was needed.
        share = jnp.clip((1 - progress) * steps[best], 0, 1)
        state = jax.tree.map(lambda leaf: leaf[best], states)
        return (state, elapsed + share * seconds[best], progress + 1 / steps[best]), None

    first = links.init(link, estimator), jnp.float32(0), jnp.float32(0)
    return jax.lax.scan(one, first, length=most_steps)[0][1]


def adaptive_seconds(run: dict[str, Any], target: float, chance: float, step_s: float) -> float | None:
    """Returns the time to the target of a run that was made on a trace."""
    step = steps_to(target, run["evals"], chance)
    if step is None:
        return None
    steps, link_s = ([0, *(line[key] for line in run["evals"])] for key in ("step", "total_link_seconds"))
    return float(np.interp(step, steps, link_s)) + 2 * step_s * step


def main() -> None:
    """Plays every cell over every trace and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="of accuracy_vs_bytes")
    parser.add_argument("--traces", type=Path, required=True, help="folder of CSV traces (time_s,mbit_per_s)")
    parser.add_argument("--target", type=float, default=0.5, help="accuracy on the test set, cut compressed")
    parser.add_argument("--chance", type=float, default=CHANCE, help="accuracy before the first step")
    parser.add_argument("--step_s", type=float, default=0.1, help="seconds that either party computes in a step")
    parser.add_argument("--latency_ms", type=float, default=30.0)
    options = parser.parse_args()
    grid = RESULTS / f"accuracy_vs_bytes_{options.config}.json"
    found = json.loads(grid.read_text())["rows"]["cells"]
    traces = {path.stem: links.read_trace(path) for path in sorted(options.traces.glob("*.csv"))}
    rows: dict[str, dict[str, Any]] = {}
    ours: list[tuple[float, float, float]] = []  # bytes up and down, steps of `nsc_sl`'s ratios
    for name, cell in found.items():
        runs = cell.get("runs", [])  # none where the method was refused
        if not runs:
            continue
        steps = [steps_to(options.target, run["evals"], options.chance) for run in runs]
        if any(step is None for step in steps):
            rows[name] = {"steps": None, "seconds": dict.fromkeys(traces)}
            continue
        total = runs[0]["steps"]
        up, down = (
            jnp.int32(statistics.mean(run[f"total_{way}_bytes"] / run["steps"] for run in runs))
            for way in ("up", "down")
        )
        mean_steps = statistics.mean(step for step in steps if step is not None)
        if name.split()[0] == "nsc_sl":
            ours.append((float(up), float(down), mean_steps))
        limits = options.step_s, options.latency_ms / 1000, total
        seconds = {
            trace: float(np.interp(mean_steps, np.arange(total + 1), [0, *seconds_of(link, up, down, *limits)]))
            for trace, link in traces.items()
        }
        rows[name] = {"steps": mean_steps, "seconds": seconds}
        print(name, round(mean_steps), {trace: round(value) for trace, value in seconds.items()}, flush=True)
    if "none" in rows and rows["none"]["steps"]:
        least = rows["none"]["steps"] * 2 * (options.step_s + options.latency_ms / 1000)
        rows["no_bytes"] = {"steps": rows["none"]["steps"], "seconds": dict.fromkeys(traces, least)}
    if ours:
        arrays, most_steps = tuple(map(jnp.float32, zip(*ours))), int(max(steps for *_, steps in ours)) + 1
        limits = options.step_s, options.latency_ms / 1000, most_steps
        fixed = [row["seconds"] for name, row in rows.items() if name.split()[0] == "nsc_sl" and row["steps"]]
        seconds = {
            trace: min(float(hindsight_seconds(link, arrays, *limits)), *(cell[trace] for cell in fixed))
            for trace, link in traces.items()
        }
        rows["nsc_sl_hindsight"] = {"steps": None, "seconds": seconds}
    path = RESULTS / f"adaptive_{options.config}.json"
    if path.exists():
        cells = json.loads(path.read_text())["rows"]["cells"]
        limits = options.target, options.chance, options.step_s
        seconds = {trace: [adaptive_seconds(run, *limits) for run in cell["runs"]] for trace, cell in cells.items()}
        steps = [steps_to(options.target, run["evals"], options.chance) for c in cells.values() for run in c["runs"]]
        reached = [step for step in steps if step is not None]
        rows["nsc_sl_adaptive"] = {
            "steps": statistics.mean(reached) if reached else None,
            "seconds": {
                trace: None if None in seconds[trace] else statistics.mean(seconds[trace])
                for trace in traces
                if trace in seconds  # the runs are made trace by trace
            },
        }
    facts = {
        "config": options.config,
        "target": options.target,
        "step_s": options.step_s,
        "latency_ms": options.latency_ms,
        "made_from": made_from(options.config),
        "cells": rows,
    }
    seeds = sorted({run["seed"] for cell in found.values() for run in cell.get("runs", [])})
    write(f"time_to_target_{options.config}", facts, seeds=seeds)


if __name__ == "__main__":
    main()

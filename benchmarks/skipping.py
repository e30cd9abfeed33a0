"""A gradient in every few steps alone, so much larger: NSC-RD at equal bytes, in training.

    python benchmarks/skipping.py --data_dir DIR [--config cifar10_bench] [--ratio 1024] [--every 2] [--seeds 2]

The settings are those of the grid (`accuracy_vs_bytes.py`), whose cell of the same ratio is the run in which every
gradient crosses. Here the downlink has room in every few steps only, for frames so many times as large; in the others
the server alone makes a step. It writes `benchmarks/results/skipping.json`.
"""

import argparse
import tempfile
from typing import Any
from unittest import mock

import jax.numpy as jnp
from accuracy_vs_bytes import EVAL_EVERY, cut_shape, overrides
from record import write
from runs import KEPT, cell, config_of

from nscjax.types import Array
from train import data, loop
from train import state as states
from train import step as train_step


def skipping(every: int) -> Any:
    """Returns a step of training whose gradient has no room but in one of `every` steps."""
    plain = train_step.train_step

    def step(
        parts: train_step.Programs, state: states.TrainState, x: Array, y: Array, sample_ids: Array
    ) -> tuple[states.TrainState, states.Metrics]:
        up, down = parts.budgets(state.link)
        down = jnp.where(state.step % every == 0, down, 0)
        return plain(parts._replace(budgets=lambda _: (up, down)), state, x, y, sample_ids)

    return step


def trained(name: str, ratio: int, every: int, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Returns what is kept of a run's summary."""
    values = overrides("nsc_rd", ratio, cut_shape(name))
    values |= {"compress.down.ratio": ratio / every, "seed": seed, "train.eval_every": EVAL_EVERY}
    with tempfile.TemporaryDirectory() as folder:
        values |= {"run_dir": folder} | ({"data.dir": data_dir} if data_dir else {})
        config = config_of(name, values)
        with mock.patch.object(train_step, "train_step", skipping(every)):
            summary = loop.fit(config, data.load(config.data)).summary
    return {key: summary[key] for key in KEPT}


def main() -> None:
    """Trains seed by seed and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar10_bench", help="name of a file in configs/")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--ratio", type=int, default=1024, help="of both directions together")
    parser.add_argument("--every", type=int, default=2, help="steps from one gradient to the next")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0 to N-1")
    options = parser.parse_args()
    seeds = range(options.seeds)
    found = {seed: trained(options.config, options.ratio, options.every, seed, options.data_dir) for seed in seeds}
    name = f"{options.ratio}x, a gradient in every {options.every} steps"
    write("skipping", {"config": options.config, "cells": {name: cell(found)}}, seeds=list(seeds))


if __name__ == "__main__":
    main()

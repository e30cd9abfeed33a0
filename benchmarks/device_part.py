"""The time that every method's device part takes of a training step: one message each way, compressed and decompressed.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/device_part.py [--config configs/cifar10_bench.toml] [--rounds 10]

With the settings of the grid (`accuracy_vs_bytes.py`) at 32x, or where a method has no such frame or sends less, at
128x, 8x or 1x. The gradient is compressed as in training, with what the uplink has fixed. Captured tensors, warm, by
turns with the uncompressed step; the median of the rounds' ratios counts. Beside it, how often a method was compiled in
all rounds, whose budgets differ. It writes `benchmarks/results/device_part.json`.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from accuracy_vs_bytes import SETTINGS, directions, has_more_to_send
from capture import FOLDER
from record import write
from step import made_data, split_step
from threadpoolctl import threadpool_limits

from nscjax import compress
from nscjax.check import InputError
from nscjax.compress import view as views
from train import compression
from train import config as configs

TIMED_RATIOS = (32, 128, 8, 1)
WARM = 3


def duplex(
    method: str, ratio: int, spec: jax.ShapeDtypeStruct, num_samples: int
) -> tuple[compress.Duplex, tuple[int, int]]:
    """Returns (both directions of a method, their budgets); raises an `InputError` where no frame is so small."""
    made = []
    for name, settings in zip(("up", "down"), directions(method, ratio, spec.shape[1:])):
        config = configs.DirectionConfig(**settings)
        made.append(compression.build(name, config, views.resolve(config.view, spec.shape), spec, num_samples, 1 << 30))
    up, down = made
    return compress.Duplex(up.compressor, down.compressor), (up.cap_bytes, down.cap_bytes)


def exchange(both: compress.Duplex) -> Callable:
    """Returns `(x, x_grad, states, ids, budgets) -> (what arrived, states)`: a message up and its answer."""

    def crossed(x, x_grad, states, ids, budgets):
        (up_enc, up_dec), (down_enc, down_dec) = states
        up_side, down_side = (compress.SideInfo(jax.random.key(way), budgets[way], ids) for way in (0, 1))
        payload, up_enc = both.up.compress(x, up_enc, up_side)
        x_hat, up_dec = both.up.decompress(payload, up_dec, up_side)
        # The support is made twice, as by two parties.
        sender, receiver = (both.side_down(payload, down_side, state) for state in (up_dec, up_enc))
        answer, down_enc = both.down.compress(x_grad, down_enc, sender)
        grad_hat, down_dec = both.down.decompress(answer, down_dec, receiver)
        return (x_hat, grad_hat), ((up_enc, up_dec), (down_enc, down_dec))

    return jax.jit(crossed)


def share_of_step(
    method: str, series: dict[str, np.ndarray], spec: jax.ShapeDtypeStruct, step: Callable[[], None], rounds: int
) -> dict[str, Any]:
    """Returns what share of a step a method takes, at which ratio, and how often it was compiled."""
    for ratio in TIMED_RATIOS:
        if method != "fp16" and not has_more_to_send(method, ratio, spec.shape[1:]):
            continue
        try:
            both, caps = duplex(method, ratio, spec, spec.shape[0])
        except InputError:
            continue
        break
    run = exchange(both)
    states = both.up.init(jax.random.key(0), spec), both.down.init(jax.random.key(0), spec)
    ids = jnp.arange(spec.shape[0], dtype=jnp.int32)
    xs, x_grads = (series[f"{way}_250"] for way in ("up", "down"))
    shares = []
    for number in range(rounds + WARM):
        message = number % len(xs)
        # Less than it may have, by turns: the rank changes, and nothing is to be compiled for it.
        budgets = tuple(np.int32(cap if number % 2 else cap - cap // 8) for cap in caps)
        started = time.perf_counter()
        step()
        middle = time.perf_counter()
        _, states = jax.block_until_ready(run(xs[message], x_grads[message], states, ids, budgets))
        shares.append((time.perf_counter() - middle) / (middle - started))
    return {
        "ratio": ratio,
        "device_part_over_step": statistics.median(shares[WARM:]),
        "compilations": run._cache_size(),
    }


def main() -> None:
    """Times every method and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_bench.toml")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    config = configs.from_toml(Path(options.config))
    rows: dict[str, Any] = {}
    with np.load(FOLDER / f"{Path(options.config).stem}.npz") as file, threadpool_limits(limits=1, user_api="blas"):
        series = {name: file[name] for name in ("up_250", "down_250")}
        spec = jax.ShapeDtypeStruct(series["up_250"].shape[1:], series["up_250"].dtype)
        alone = configs.CompressConfig(*[configs.DirectionConfig(method="identity")] * 2)
        advance, state, _, _ = split_step(dataclasses.replace(config, compress=alone), made_data((32, 32, 3), 10))

        def step() -> None:
            nonlocal state
            state, out = advance(state)
            jax.block_until_ready(out)

        for method in SETTINGS:
            rows[method] = share_of_step(method, series, spec, step, options.rounds)
            print(method, rows[method], flush=True)
    write("device_part", {"config": Path(options.config).name, "methods": rows}, seeds=[0])


if __name__ == "__main__":
    main()

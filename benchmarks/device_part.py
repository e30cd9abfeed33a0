"""The time that every method's device part takes of a training step: one message each way, compressed and decompressed.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/device_part.py [--config configs/cifar10_bench.toml] [--rounds 10]

With the settings of the grid (`accuracy_vs_bytes.py`) at 32x, or where a method has no such frame or sends less, at
128x, 8x or 1x. Three programs, as of two parties: the client's message, the server's answer, what the client makes of
it; the gradient is compressed as in training, with what the uplink has fixed. Captured tensors, warm, by turns with the
uncompressed step; the median of the rounds' ratios counts. Beside it, the time of making both frames and reading them
(an entropy coder's is there), and how often a method was compiled in all rounds, whose budgets differ. It writes
`benchmarks/results/device_part.json`.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from accuracy_vs_bytes import SETTINGS, built, directions, has_more_to_send
from capture import FOLDER
from record import write
from step import made_data, split_step
from threadpoolctl import threadpool_limits

from nscjax import compress, wire
from nscjax.check import InputError
from train import config as configs

TIMED_RATIOS = (32, 128, 8, 1)
WARM = 3


def duplex(
    method: str, ratio: int, spec: jax.ShapeDtypeStruct, num_samples: int
) -> tuple[compress.Duplex, tuple[int, int]]:
    """Returns (both directions of a method, their budgets); raises an `InputError` where no frame is so small."""
    ways = zip(("up", "down"), directions(method, ratio, spec.shape[1:]))
    up, down = (built(way, settings, spec, num_samples) for way, settings in ways)
    return compress.Duplex(up.compressor, down.compressor), (up.cap_bytes, down.cap_bytes)


class Programs(NamedTuple):
    """What the parties compute for one message each way; states are (sender's, receiver's) of a direction."""

    send: Callable
    answer: Callable
    receive: Callable


def programs(both: compress.Duplex) -> Programs:
    """Returns the three programs of an exchange."""

    def side(way, budget, ids):
        return compress.SideInfo(jax.random.key(way), budget, ids)

    def send(x, up_enc, ids, budget):
        return both.up.compress(x, up_enc, side(0, budget, ids))

    def answer(payload, x_grad, up_dec, down_enc, ids, budgets):
        x_hat, up_dec = both.up.decompress(payload, up_dec, side(0, budgets[0], ids))
        reply, down_enc = both.down.compress(
            x_grad, down_enc, both.side_down(payload, side(1, budgets[1], ids), up_dec)
        )
        return x_hat, reply, up_dec, down_enc

    def receive(payload, reply, up_enc, down_dec, ids, budget):
        return both.down.decompress(reply, down_dec, both.side_down(payload, side(1, budget, ids), up_enc))

    return Programs(*map(jax.jit, (send, answer, receive)))


def share_of_step(
    method: str,
    series: dict[str, jax.Array],
    spec: jax.ShapeDtypeStruct,
    num_samples: int,
    step: Callable[[], None],
    rounds: int,
) -> dict[str, Any]:
    """Returns what share of a step a method takes, at which ratio, and how often it was compiled."""
    for ratio in TIMED_RATIOS:
        if method != "fp16" and not has_more_to_send(method, ratio, spec.shape[1:]):
            continue
        try:
            both, caps = duplex(method, ratio, spec, num_samples)
        except InputError:
            continue
        break
    run = programs(both)
    (up_enc, up_dec), (down_enc, down_dec) = (way.init(jax.random.key(0), spec) for way in both[:2])
    ids = jnp.arange(spec.shape[0], dtype=jnp.int32)
    xs, x_grads = (series[f"{way}_250"] for way in ("up", "down"))
    shares, frame_shares = [], []
    for number in range(rounds + WARM):
        x, x_grad = (tensors[number % len(xs)] for tensors in (xs, x_grads))
        # Less than it may have, by turns: the rank changes, and nothing is to be compiled for it.
        budgets = tuple(np.int32(cap if number % 2 else cap - cap // 8) for cap in caps)
        started = time.perf_counter()
        step()
        stepped = time.perf_counter()
        payload, up_enc = run.send(x, up_enc, ids, budgets[0])
        _, reply, up_dec, down_enc = run.answer(payload, x_grad, up_dec, down_enc, ids, budgets)
        grad_hat, down_dec = run.receive(payload, reply, up_enc, down_dec, ids, budgets[1])
        jax.block_until_ready((grad_hat, up_dec, down_enc, down_dec))
        computed = time.perf_counter()
        for message in (payload, reply):
            wire.decode(wire.encode(jax.device_get(message)), like=message)
        framed = time.perf_counter()
        shares.append((computed - stepped) / (stepped - started))
        frame_shares.append((framed - computed) / (stepped - started))
    return {
        "ratio": ratio,
        "device_part_over_step": statistics.median(shares[WARM:]),
        "frames_over_step": statistics.median(frame_shares[WARM:]),
        "compilations": max(program._cache_size() for program in run),
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
        series = {name: jnp.asarray(file[name]) for name in ("up_250", "down_250")}
        spec = jax.ShapeDtypeStruct(series["up_250"].shape[1:], series["up_250"].dtype)
        alone = configs.CompressConfig(*[configs.DirectionConfig(method="identity")] * 2)
        advance, state, _, _ = split_step(dataclasses.replace(config, compress=alone), made_data((32, 32, 3), 10))

        num_samples = config.data.num_train or spec.shape[0]  # that a cache a sample has to hold

        def step() -> None:
            nonlocal state
            state, out = advance(state)
            jax.block_until_ready(out)

        for method in SETTINGS:
            rows[method] = share_of_step(method, series, spec, num_samples, step, options.rounds)
            print(method, rows[method], flush=True)
    write("device_part", {"config": Path(options.config).name, "methods": rows}, seeds=[0])


if __name__ == "__main__":
    main()

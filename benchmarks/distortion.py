"""What each mechanism of the low-rank compressor is worth: distortion of real cut tensors, one change at a time.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/distortion.py [--ratio 40] [--rounds 10]

The captured tensors of each point in training are sent one after the other, as a run sends them; what counts is the
mean over the warm messages (all but the first two). Times are medians of each round's ratio to the default. It writes
`benchmarks/results/distortion.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from capture import FOLDER
from record import write
from threadpoolctl import threadpool_limits

from nscjax import compress, measure
from nscjax.compress import quantise, rank, water_filling
from nscjax.compress import view as views
from nscjax.compress.low_rank import low_rank

DEFAULT: dict[str, Any] = {"view": "BC,HW", "factor_bits": 8, "iterations": 1}
SAME_BITS = 4


def same_bits(energies: jax.Array, most: int) -> water_filling.BitsRule:
    """Gives every component `SAME_BITS`, as many components as the budget affords: what water-filling replaces."""
    del most
    position = jnp.arange(len(energies))
    return lambda t: jnp.where(position < (t + 1) / 2 * (len(energies) + 1), SAME_BITS, 0)


CONSTANTS: dict[str, tuple[Any, str, Any]] = {
    "same bits for all": (water_filling, "by_energy", same_bits),
    "a quarter a bit": (water_filling, "GAINS", tuple(0.75 / 4**bit for bit in range(8))),
    "uniform levels": (quantise, "FLATNESS", 1.0),
    **{f"flatness {flatness}": (quantise, "FLATNESS", flatness) for flatness in (0.6, 0.25)},
    "one clipping point": (quantise, "CLIPS", (1.0,)),
}
"""Variants by what is put in another's place in a module."""

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{name: {} for name in CONSTANTS},
    "no compensation": {"compensates": False},
    **{f"iterations {iterations}": {"iterations": iterations} for iterations in (2, 3)},
    **{f"oversample {columns}": {"oversample": columns} for columns in (0, 2, 8)},
    **{f"at most {bits} bits": {"factor_bits": bits} for bits in (4, 16)},
    **{f"view {view}": {"view": view} for view in ("BHW,C", "B,HWC", "BH,WC")},
}
"""Changes from the default, by name."""
COLD_MESSAGES = 2


def replaced(name: str) -> AbstractContextManager[Any]:
    """Lets what is traced inside use the variant's constant."""
    return mock.patch.object(*CONSTANTS[name]) if name in CONSTANTS else nullcontext()


def sender(spec: jax.ShapeDtypeStruct, budget: int, name: str) -> tuple[Callable, Any]:
    """Returns (jitted (x, state) -> (distortion, rank, state), first state) of a variant."""
    settings = {**DEFAULT, **VARIANTS[name]}
    top = min(views.matrix_shape(settings["view"], spec.shape))
    build = lambda top: low_rank(rank.by_energy(1.0), max_rank=top, **settings)  # noqa: E731
    compressor = build(compress.reachable_rank(build(top), spec, budget))
    enc, dec = compressor.init(jax.random.key(0), spec)
    side = compress.SideInfo(key=jax.random.key(1), budget_bytes=budget)

    def send(x, enc):
        payload, enc = compressor.compress(x, enc, side)
        return measure.distortion(x, compressor.decompress(payload, dec, side)[0]), payload.rank, enc

    with replaced(name):
        return jax.jit(send).lower(spec, enc).compile(), enc


def row(tensors: np.ndarray, budget: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns distortion, rank and time of every variant on one series of cut tensors [messages, B, ...]."""
    spec = jax.ShapeDtypeStruct(tensors.shape[1:], tensors.dtype)
    senders = {name: sender(spec, budget, name) for name in VARIANTS}
    found = {}
    for name, (send, enc) in senders.items():
        distortions = []
        for x in tensors:
            distortion, components, enc = send(x, enc)
            distortions.append(float(distortion))
        found[name] = {"distortion": statistics.mean(distortions[COLD_MESSAGES:]), "rank": int(components)}
    seconds: dict[str, list[float]] = {name: [] for name in senders}
    x = jax.device_put(tensors[-1])
    for number in range(rounds):
        order = list(senders.items())
        turn = number % len(order)  # what was before it makes one a few per cent slower or faster
        for name, (send, enc) in order[turn:] + order[:turn]:
            started = time.perf_counter()
            jax.block_until_ready(send(x, enc))
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        found[name]["time_over_default"] = statistics.median(a / b for a, b in zip(times, seconds["default"]))
    return found


def main() -> None:
    """Measures every series and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", default="cifar10_bench", help="name of a file in runs/captures/")
    parser.add_argument("--ratio", type=float, default=40.0, help="raw float32 bytes over the largest frame")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with np.load(FOLDER / f"{options.captures}.npz") as file, threadpool_limits(limits=1, user_api="blas"):
        for series in file.files:
            tensors = file[series]
            budget = int(measure.raw_bytes(tensors.shape[1:]) / options.ratio)
            rows[series] = row(tensors, budget, options.rounds)
            print(series, {name: round(values["distortion"], 4) for name, values in rows[series].items()}, flush=True)
    write("distortion", {"captures": options.captures, "ratio": options.ratio, "series": rows}, seeds=[0])


if __name__ == "__main__":
    main()

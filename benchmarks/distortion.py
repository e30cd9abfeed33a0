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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from capture import FOLDER
from record import write
from threadpoolctl import threadpool_limits

from nscjax import compress, measure
from nscjax.compress import quantise, rank
from nscjax.compress import view as views
from nscjax.compress.low_rank import low_rank

DEFAULT: dict[str, Any] = {"view": "BH,WC", "factor_bits": 4, "iterations": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"refits {refits}": {"refits": refits} for refits in (0, 1, 3)},
    **{f"iterations {iterations}": {"iterations": iterations} for iterations in (2, 3)},
    **{f"oversample {columns}": {"oversample": columns} for columns in (0, 2, 8)},
    "uniform levels": {"flatness": 1.0},
    **{f"flatness {flatness}": {"flatness": flatness} for flatness in (0.6, 0.25)},
    "one clipping point": {"clips": (1.0,)},
    **{f"{bits} bits": {"factor_bits": bits} for bits in (8, 16)},
    **{f"view {view}": {"view": view} for view in ("BHW,C", "B,HWC", "BC,HW")},
}
"""Changes from the default, by name; `flatness` and `clips` are the quantiser's."""
COLD_MESSAGES = 2


@contextmanager
def quantiser(bits: int, flatness: float | None, clips: tuple[float, ...] | None) -> Iterator[None]:
    """Lets what is traced inside use other constants of the quantiser."""
    before = quantise.FLATNESS, dict(quantise.CLIPS)
    quantise.FLATNESS = before[0] if flatness is None else flatness
    if clips is not None:
        quantise.CLIPS[bits] = clips
    try:
        yield
    finally:
        quantise.FLATNESS = before[0]
        quantise.CLIPS.update(before[1])


def sender(spec: jax.ShapeDtypeStruct, budget: int, changes: dict[str, Any]) -> tuple[Callable, Any]:
    """Returns (jitted (x, state) -> (distortion, rank, state), first state) of a variant."""
    settings = {**DEFAULT, **changes}
    flatness, clips = settings.pop("flatness", None), settings.pop("clips", None)
    top = min(views.matrix_shape(settings["view"], spec.shape))
    build = lambda top: low_rank(rank.energy_within_budget(1.0), max_rank=top, **settings)  # noqa: E731
    compressor = build(compress.reachable_rank(build(top), spec, budget))
    enc, dec = compressor.init(jax.random.key(0), spec)
    side = compress.SideInfo(key=jax.random.key(1), budget_bytes=budget)

    def send(x, enc):
        payload, enc = compressor.compress(x, enc, side)
        return measure.distortion(x, compressor.decompress(payload, dec, side)[0]), payload.rank, enc

    with quantiser(settings["factor_bits"], flatness, clips):
        return jax.jit(send).lower(spec, enc).compile(), enc


def row(tensors: np.ndarray, budget: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns distortion, rank and time of every variant on one series of cut tensors [messages, B, ...]."""
    spec = jax.ShapeDtypeStruct(tensors.shape[1:], tensors.dtype)
    senders = {name: sender(spec, budget, changes) for name, changes in VARIANTS.items()}
    found = {}
    for name, (send, enc) in senders.items():
        distortions = []
        for x in tensors:
            distortion, components, enc = send(x, enc)
            distortions.append(float(distortion))
        found[name] = {"distortion": statistics.mean(distortions[COLD_MESSAGES:]), "rank": int(components)}
    seconds: dict[str, list[float]] = {name: [] for name in senders}
    x = jax.device_put(tensors[-1])
    for _ in range(rounds):
        for name, (send, enc) in senders.items():
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

"""Every method on captured cut tensors: distortion at equal bytes.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/peers.py [--captures cifar10_bench] [--methods NAME ...] [--ratios R ...]
    python benchmarks/peers.py --search

The captured tensors of each point in training are sent one after the other at every ratio; what counts is the mean over
the warm messages. Every direction is alone, at the ratio that is said: what an uplink fixes for the gradient in
training (a mask, a subspace) is not in it, and every message holds other samples, so that AQ-SGD never meets one again.
Methods have all the components that earn a bit: for the least distortion, and not, as in the grid, for accuracy. It
writes `benchmarks/results/peers_CAPTURES.json`, and keeps what that file says of other methods, each of the commit that
measured it. With `--search` it measures the distortion of every candidate setting instead, into
`peers_CAPTURES_search.json`: from these the grid's settings were chosen. What methods take of a step's time is told by
`device_part.py`.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from accuracy_vs_bytes import RATIOS, SETTINGS, UNLIMITED_RANK, built, directions
from capture import FOLDER
from record import RESULTS, commit, write
from threadpoolctl import threadpool_limits

from nscjax import compress, measure
from nscjax.check import InputError
from nscjax.compress import view as views
from train import compression

EVERY_COMPONENT: dict[str, dict[str, int]] = {
    "nsc_rd": {"max_rank": UNLIMITED_RANK, "mean_bits": 0},
    **{key: {"max_rank": UNLIMITED_RANK} for key in ("nsc_sl", "truncated_svd", "powersgd")},
}
"""Settings with which nothing limits a method's components but the budget."""

COLD_MESSAGES = 2
CANDIDATES: dict[str, tuple[dict[str, Any], ...]] = {
    "nsc_sl": tuple({"factor_bits": bits} for bits in (4, 8)),
    "powersgd": tuple({"view": view} for view in views.names((1, 1, 1, 1))),
    "truncated_svd": tuple({"factor_bits": bits} for bits in (4, 8)),
    "sl_acc": tuple({"groups": groups} for groups in (2, 4, 8, 16)),
    "sl_fac": tuple({"threshold": threshold} for threshold in (0.3, 0.5, 0.6, 0.7, 0.9)),
    "splitfc": tuple({"bits": bits} for bits in (1, 2, 3, 4)),
    "fedlite": tuple({"subvector": length, "most_bits": bits} for bits in (8, 10) for length in (2, 4, 8, 16, 32, 64)),
    "rand_top_k": tuple({"alpha": alpha} for alpha in (0.05, 0.1, 0.2)),
}
"""Settings tried, by method."""


def direction(
    method: str, way: int, ratio: int, spec: jax.ShapeDtypeStruct, changes: dict[str, Any], num_messages: int
) -> compression.Direction:
    """Returns one direction of a method with all its components; raises an `InputError` where no frame is so small."""
    settings = directions(method, ratio, spec.shape[1:], EVERY_COMPONENT.get(method, {}))[way]
    return built(("up", "down")[way], settings | {"ratio": ratio} | changes, spec, num_messages * spec.shape[0])


def sender(made: compression.Direction, spec: jax.ShapeDtypeStruct) -> tuple[Callable, Any]:
    """Returns (jitted (x, first sample, states) -> (distortion, states), first states)."""
    batch = jnp.arange(spec.shape[0], dtype=jnp.int32)

    def send(x, first, states):
        # Every message holds other samples, as those that were captured do.
        side = compress.SideInfo(jax.random.key(1), made.cap_bytes, first + batch)
        payload, enc = made.compressor.compress(x, states[0], side)
        x_hat, dec = made.compressor.decompress(payload, states[1], side)
        return measure.distortion(x, x_hat), (enc, dec)

    states = made.compressor.init(jax.random.key(0), spec)
    return jax.jit(send).lower(spec, jnp.int32(0), states).compile(), states


def distortions(
    method: str,
    series: dict[str, np.ndarray],
    spec: jax.ShapeDtypeStruct,
    changes: dict[str, Any],
    ratios: Sequence[int] = RATIOS,
) -> dict[str, Any]:
    """Returns direction -> ratio -> mean distortion over its series, null where the method has no such frame."""
    found: dict[str, Any] = {}
    for way, name in enumerate(("up", "down")):
        found[name] = {}
        for ratio in ratios:
            try:
                messages = max(len(tensors) for tensors in series.values())
                send, first = sender(direction(method, way, ratio, spec, changes, messages), spec)
            except InputError:
                found[name][str(ratio)] = None
                continue
            lost = []
            for tensors in (tensors for key, tensors in series.items() if key.startswith(name)):
                states = first
                for i, x in enumerate(tensors):
                    distortion, states = send(x, jnp.int32(i * len(x)), states)
                    lost += [float(distortion)] if i >= COLD_MESSAGES else []
            found[name][str(ratio)] = statistics.mean(lost)
    return found


def main() -> None:
    """Measures every method and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", default="cifar10_bench", help="name of a file in runs/captures/")
    parser.add_argument("--ratios", nargs="*", type=int, choices=RATIOS, default=RATIOS, help="only these")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--methods", nargs="*", choices=SETTINGS, metavar="NAME", help="only these; by default all")
    what.add_argument("--search", action="store_true", help="distortion of every candidate setting")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    table = f"peers_{options.captures}"
    results = RESULTS / f"{table}.json"
    if options.methods and results.exists():
        before = json.loads(results.read_text())
        rows = {method: {"commit": before["commit"]} | row for method, row in before["rows"]["methods"].items()}
    with np.load(FOLDER / f"{options.captures}.npz") as file, threadpool_limits(limits=1, user_api="blas"):
        series = {name: file[name] for name in file.files}
        tensors = next(iter(series.values()))
        spec = jax.ShapeDtypeStruct(tensors.shape[1:], tensors.dtype)
        if options.search:
            for method, candidates in CANDIDATES.items():
                for changes in candidates:
                    name = " ".join([method, *(f"{key}={value}" for key, value in changes.items())])
                    rows[name] = distortions(method, series, spec, changes, options.ratios)
                    print(name, rows[name], flush=True)
            write(f"{table}_search", {"captures": options.captures, "methods": rows}, seeds=[0])
            return
        for method in options.methods or SETTINGS:
            rows[method] = distortions(method, series, spec, {}, options.ratios) | {"commit": commit()}
            print(method, rows[method], flush=True)
    rows = {method: rows[method] for method in SETTINGS if method in rows}
    write(table, {"captures": options.captures, "methods": rows}, seeds=[0])


if __name__ == "__main__":
    main()

"""Frames of NSC-RD at random budgets, and the speed of its entropy coder, on captured cut tensors.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/coding.py [--captures cifar10_bench] [--frames 10000] [--rounds 10]

A conversation: random batches of captured samples, times random powers of two, go up, and their gradients come down in
the subspace of the uplink. Every exchange has a budget of its own, the same both ways, from the least that carries
something to 1/16 of the raw bytes, all octaves alike. Nothing but the budget limits what is sent (`mean_bits` 0).
Slack is what was set aside in jit for the coder and not needed: zeros at the end of a frame. Then
frames of whole captured batches are coded and decoded; speed is told in coefficients of the cut tensor and of the
frame, over the time of one core. It writes `benchmarks/results/coding.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from capture import FOLDER
from record import write
from rich.progress import track

from nscjax import compress, measure, wire
from nscjax.compress import entropy
from nscjax.compress.nsc_rd import coder_parts

BATCH = 16
SEED = 0
LARGEST_FRAME = 1 / 16
RATIOS = (32, 128, 512)


def compressor() -> compress.Compressor:
    """Returns the method, limited by budgets alone."""
    return compress.nsc_rd(max_rank=1 << 20, max_features=1 << 20, mean_bits=0)


def budgets(series: dict[str, np.ndarray], num_frames: int) -> dict[str, Any]:
    """Returns how frames at random budgets keep to them, by direction."""
    rng = np.random.default_rng(SEED)
    made, shape = compressor(), (BATCH, *next(iter(series.values())).shape[2:])
    spec = jax.ShapeDtypeStruct(shape, np.float32)
    send = jax.jit(made.compress)
    states = {way: made.init(jax.random.key(SEED), spec)[0] for way in ("up", "down")}
    receiver = made.init(jax.random.key(SEED), spec)[1]
    receive = jax.jit(made.decompress)
    least, most = np.log2(made.min_bytes(spec)), np.log2(measure.raw_bytes(shape) * LARGEST_FRAME)
    points = sorted({int(name.split("_")[1]) for name in series})
    found: dict[str, dict[str, list[float]]] = {way: {"used": [], "slack": []} for way in states}
    over = dict.fromkeys(states, 0)
    for number in track(range(num_frames // 2), description="frames"):
        point, message = rng.choice(points), rng.integers(len(series[f"up_{points[0]}"]))
        samples = rng.choice(series[f"up_{point}"].shape[1], BATCH, replace=False)
        support, budget = None, int(2 ** rng.uniform(least, most))
        for way in states:
            x = series[f"{way}_{point}"][message, samples] * np.float32(2.0 ** rng.integers(-20, 21))
            side = compress.SideInfo(jax.random.key(number), np.int32(budget), support=support)
            payload, states[way] = send(x, states[way], side)
            frame = wire.encode(jax.device_get(payload))
            over[way] += len(frame) > budget
            found[way]["used"].append(len(frame) / budget)
            coded = entropy.encode(*coder_parts(np.asarray(payload.groups)))
            found[way]["slack"].append((int(payload.size) - len(coded)) / len(frame))
            if way == "up":
                _, receiver = receive(payload, receiver, side)
                support = made.support(payload, receiver)
    return {
        way: {
            "frames": len(seen["used"]),
            "over_budget": int(over[way]),
            "mean_share_used": statistics.mean(seen["used"]),
            "mean_slack_over_frame": statistics.mean(seen["slack"]),
            "largest_slack_over_frame": max(seen["slack"]),
        }
        for way, seen in found.items()
    }


def seconds_of(call: Callable[[], Any], rounds: int) -> float:
    """Returns the median time that a call takes of one core."""
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return statistics.median(times)


def coder(tensors: np.ndarray, ratio: int, rounds: int) -> dict[str, Any]:
    """Returns the coder's speed on the frame of the last of a series of cut tensors, both ways.

    Args:
        tensors: [messages, B, ...].
        ratio: raw bytes over the frame's.
        rounds: of which the median counts.
    """
    made, spec = compressor(), jax.ShapeDtypeStruct(tensors.shape[1:], tensors.dtype)
    state, send = made.init(jax.random.key(SEED), spec)[0], jax.jit(made.compress)
    budget = measure.raw_bytes(spec.shape) // ratio
    for x in tensors:
        payload, state = send(x, state, compress.SideInfo(jax.random.key(SEED), np.int32(budget)))
    classes, spreads, symbols = coder_parts(np.asarray(payload.groups))
    data = entropy.encode(classes, spreads, symbols)
    assert np.array_equal(entropy.decode(data, *symbols.shape)[2], symbols)
    coded = int(np.count_nonzero(classes)) * symbols.shape[2]
    encode_s = seconds_of(lambda: entropy.encode(classes, spreads, symbols), rounds)
    decode_s = seconds_of(lambda: entropy.decode(data, *symbols.shape), rounds)
    return {
        "ratio": ratio,
        "coefficients": int(np.prod(spec.shape)),
        "coded_coefficients": coded,
        "encode_seconds": encode_s,
        "decode_seconds": decode_s,
    }


def main() -> None:
    """Measures budgets and speed and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", default="cifar10_bench", help="name of a file in runs/captures/")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with np.load(FOLDER / f"{options.captures}.npz") as file:
        series = {name: file[name] for name in file.files}
    rows: dict[str, Any] = {"captures": options.captures, "budgets": budgets(series, options.frames)}
    last = max(int(name.split("_")[1]) for name in series)
    rows["coder"] = [coder(series[f"up_{last}"], ratio, options.rounds) for ratio in RATIOS]
    write("coding", rows, seeds=[SEED])
    print(rows)


if __name__ == "__main__":
    main()

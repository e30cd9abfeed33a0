"""Accuracy over bytes: every method at every ratio in one harness, both directions compressed.

    python benchmarks/accuracy_vs_bytes.py CONFIG --data_dir DIR [--methods NAME ...] [--ratios R ...] [--seeds N]
        [--jobs N] [--out DIR]

It writes `benchmarks/results/accuracy_vs_bytes_CONFIG.json` after every run; a run that is in it is never made again:
stop at any time and start the same command. A ratio R caps the frames of both directions together at 2 / R of their
float32 bytes; a method that has no frame so small is noted as refused.
"""

import argparse
from pathlib import Path
from typing import Any

import runs

RATIOS = (8, 16, 32, 64, 128, 256, 512)
EVAL_EVERY = 100

UNLIMITED_RANK = 1 << 20
"""`max_rank` out of the way: the trainer clips it to what the budget can reach."""

UP_SHARES = {"top_k": 29 / 45, "rand_top_k": 29 / 45, "nsc_sl": 0.65}
"""Share of both directions' bytes that goes up where the gradient has the activations' support. Of the sparse methods:
values of 16 bits both ways, and indices of 13 bits on the way up alone. Of `nsc_sl` by accuracy at 512x."""

SETTINGS: dict[str, dict[str, Any]] = {
    "nsc_sl": {},
    "truncated_svd": {},
    "powersgd": {"error_feedback": False},
    "dct": {},
    "sl_acc": {"groups": 8},
    "sl_fac": {"threshold": 0.6},
    "splitfc": {"bits": 2},
    "fedlite": {},
    "top_k": {},
    "rand_top_k": {"alpha": 0.1},
    "ef21_top_k": {},
    "power_quant": {},
    "uniform": {},
    "aq_sgd": {},
    "c3_sl": {},
    "fp16": {},
}
"""What is not default, by method: by distortion on captured tensors (`benchmarks/peers.py --search`)."""

METHODS = ("none", *SETTINGS, "bottlenet")
"""All that the grid compares."""

CHANNELS = 32
"""Of the configs' cut."""

SUBVECTORS = {8: (2, 2), 16: (4, 4), 32: (32, 64), 64: (32, 64), 128: (64, 64), 256: (64, 64), 512: (64, 64)}
"""FedLite's length of a subvector by ratio, up and down."""


def directions(method: str, ratio: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the uplink and of the downlink whose frames together keep to the ratio."""
    common = {"method": method, "ratio": ratio, "max_rank": UNLIMITED_RANK} | SETTINGS[method]
    if method in UP_SHARES:
        shares = UP_SHARES[method], 1 - UP_SHARES[method]
        up, down = (common | {"ratio": round(ratio / (2 * share), 3)} for share in shares)
        return up, down
    if method == "fedlite":
        up, down = (common | {"subvector": length} for length in SUBVECTORS[ratio])
        return up, down
    if method == "aq_sgd":  # the source compresses gradients as they are
        return common, common | {"method": "uniform"}
    if method == "splitfc" and ratio == min(RATIOS):
        common |= {"bits": 3}
    return common, common


def cells(ratios: tuple[int, ...] = RATIOS) -> dict[str, dict[str, Any]]:
    """Returns the grid: overrides by cell, of every method at every ratio, and of training without compression."""
    grid: dict[str, dict[str, Any]] = {"none": {"compress.up.method": "identity", "compress.down.method": "identity"}}
    for method in SETTINGS:
        for ratio in (1,) if method == "fp16" else ratios:  # half precision has but one rate
            grid[f"{method} {ratio}x"] = {
                f"compress.{way}.{key}": value
                for way, settings in zip(("up", "down"), directions(method, ratio))
                for key, value in settings.items()
            }
    for ratio in ratios:
        # Half the height and width, half precision: 8 times fewer bytes with all channels.
        half = {f"compress.{way}.method": "fp16" for way in ("up", "down")}
        grid[f"bottlenet {ratio}x"] = half | {"model.bottleneck": CHANNELS * 8 // ratio}
    return {name: {"train.eval_every": EVAL_EVERY} | overrides for name, overrides in grid.items()}


def main() -> None:
    """Runs what is asked for of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a config in configs/, such as cifar10_bench")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these; by default all")
    parser.add_argument("--ratios", nargs="*", type=int, choices=RATIOS, default=RATIOS, help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=runs.RUNS, help="where the runs are kept")
    options = parser.parse_args()
    methods = options.methods or METHODS
    chosen = [name for name in cells(tuple(options.ratios)) if name.split()[0] in methods]
    runs.make(
        f"accuracy_vs_bytes_{options.config}",
        options.config,
        cells(),
        dict.fromkeys(chosen, options.seeds),
        data_dir=options.data_dir,
        jobs=options.jobs,
        out=options.out,
    )


if __name__ == "__main__":
    main()

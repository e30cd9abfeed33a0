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

RATIOS = (8, 16, 32, 64, 128)
SETTINGS: dict[str, dict[str, Any]] = {
    "nsc_sl": {},
}
"""What is not default, by method, found by the same small search (`docs/results.md`)."""

UNLIMITED_RANK = 1 << 20
"""`max_rank` out of the way: the trainer clips it to what the budget can reach."""


def cells(ratios: tuple[int, ...] = RATIOS) -> dict[str, dict[str, Any]]:
    """Returns the grid: overrides by cell, of every method at every ratio, and of training without compression."""
    common = {"train.eval_every": 100}
    grid = {"none": common | {"compress.up.method": "identity", "compress.down.method": "identity"}}
    for method, settings in SETTINGS.items():
        for ratio in ratios:
            both = {"method": method, "ratio": ratio, "max_rank": UNLIMITED_RANK} | settings
            grid[f"{method} {ratio}x"] = common | {
                f"compress.{way}.{key}": value for way in ("up", "down") for key, value in both.items()
            }
    return grid


def main() -> None:
    """Runs what is asked for of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a config in configs/, such as cifar10_bench")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--methods", nargs="*", choices=("none", *SETTINGS), help="only these; by default all")
    parser.add_argument("--ratios", nargs="*", type=int, choices=RATIOS, default=RATIOS, help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=runs.RUNS, help="where the runs are kept")
    options = parser.parse_args()
    methods = options.methods or ("none", *SETTINGS)
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

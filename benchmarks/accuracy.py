"""Accuracy at a byte budget: trains the cells of a table, one process a run.

    python benchmarks/accuracy.py TABLE --data_dir DIR [--seeds N] [--cells NAME ...] [--jobs N] [--out DIR]

It writes `benchmarks/results/TABLE.json` after every run, and keeps what that file says of other cells. A finished run
is never made again, and tells the commit that made it: stop at any time and start the same command. With `--jobs 2` two
runs share the cores, one half each: together faster than one after the other on all of them, for much of a run is not
parallel.
"""

import argparse
from pathlib import Path
from typing import Any

import runs

NONE = {"compress.up.method": "identity", "compress.down.method": "identity"}


def both(**settings: Any) -> dict[str, Any]:
    """Returns the overrides that give both directions the same settings."""
    return {f"compress.{way}.{key}": value for way in ("up", "down") for key, value in settings.items()}


def one(way: str, **settings: Any) -> dict[str, Any]:
    """Returns the overrides that compress one direction alone."""
    other = "down" if way == "up" else "up"
    return {
        f"compress.{other}.method": "identity",
        **{f"compress.{way}.{key}": value for key, value in settings.items()},
    }


FEEDBACK = {"none": {}, "across_steps_0.9": {"feedback": "across_steps", "feedback_decay": 0.9},
            "across_steps_1": {"feedback": "across_steps", "feedback_decay": 1.0},
            "per_sample": {"feedback": "per_sample"}}  # fmt: skip

TABLES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    **{
        config: (config, {"none": NONE, "nsc_sl": {}})
        for config in (
            "quickstart",
            "fashion_mnist",
            "cifar10_bench",
            "cifar10_small",
            "cifar10_lte",
            "cifar10_resnet18",
        )
    },
    **{
        f"{config}_views": (
            config,
            {
                f"{view}, at most {rank}": both(view=view, max_rank=rank)
                for view, rank in (("BC,hw", 16), ("BC,HW", 16), ("BC,HW", 32), ("BC,HW", 64))
            },
        )
        for config in ("cifar10_small", "fashion_mnist")
    },
    "fashion_mnist_rows": (
        "fashion_mnist",
        {
            "nsc_rd 150x": both(method="nsc_rd", ratio=150, max_rank=196, mean_bits=0),
            "nsc_rd 150x up alone": one("up", method="nsc_rd", ratio=150, max_rank=196, mean_bits=0),
        },
    ),
    "feedback": (
        "cifar10_bench",
        {
            f"{way} {ratio}x {name}": one(way, ratio=ratio, **settings) | {"train.eval_every": 500}
            for ratio in (40, 100)
            for way in ("up", "down")
            for name, settings in FEEDBACK.items()
        },
    ),
    "rate": (
        "cifar10_bench",
        {
            f"{at}{f' weight {weight}' if weight else ''}": both(
                method="nsc_rd", max_rank=16, places="slow", **settings
            )
            | ({"compress.up.weight": weight} if weight else {})
            for at, settings, weights in (
                ("1024x", {"ratio": 1024}, (0, 0.01, 0.03)),
                ("energy 0.8, at least 256x", {"ratio": 256, "energy": 0.8}, (0, 0.03)),
                ("energy 0.92, at least 256x", {"ratio": 256, "energy": 0.92}, (0, 0.03)),
            )
            for weight in weights
        },
    ),
    "feedback_nsc_rd": (
        "cifar10_bench",
        {
            f"{way} {name}": both(method="nsc_rd", ratio=1024, max_rank=16, places="slow")
            | {f"compress.{way}.{key}": value for key, value in FEEDBACK[name].items()}
            for way in ("up", "down")
            for name in ("across_steps_0.9", "per_sample")
        },
    ),
    "settings": (
        "cifar10_bench",
        {
            **{
                f"ratio {ratio} view {view}": both(ratio=ratio, view=view, max_rank=128)
                for ratio in (32, 128)
                for view in ("BC,HW", "BH,WC")
            },
            **{
                f"ratio {ratio} at most {rank} components": both(ratio=ratio, max_rank=rank, view="auto")
                for ratio, ranks in {
                    16: (8, 16, 32),
                    64: (8, 16, 32),
                    128: (16,),
                    256: (4, 6, 8, 16, 32),
                    512: (2, 4),
                }.items()
                for rank in ranks
            },
            **{
                f"ratio {ratio} dct, {bands} bands": both(method="dct", ratio=ratio, bands=bands)
                for ratio, choices in {16: (5, 8), 64: (4, 5, 6, 8), 256: (3, 4, 5)}.items()
                for bands in choices
            },
            **{
                f"ratio {ratio} nsc_rd, {places}": both(method="nsc_rd", ratio=ratio, max_rank=16, places=places)
                for ratio in (256, 512, 1024)
                for places in ("learned", "slow", "cosines")
            },
            **{
                f"ratio 256 nsc_rd, {places}, 6 rows": both(
                    method="nsc_rd", ratio=256, max_rank=6, places=places, mean_bits=0
                )
                for places in ("learned", "cosines")
            },
            **{
                f"ratio {ratio} powersgd{name}": both(method="powersgd", ratio=ratio, max_rank=1 << 20, **settings)
                for ratio in (32, 64, 128)
                for name, settings in {
                    "": {"view": "auto", "error_feedback": False},
                    " slow": {"view": "BC,hw", "error_feedback": False},
                    " with error feedback": {"view": "auto", "error_feedback": True},
                }.items()
            },
            **{
                f"ratio {ratio} {method}, {share} up": {
                    f"compress.{way}.{key}": value
                    for way, part in (("up", share), ("down", 1 - share))
                    for key, value in {"method": method, "ratio": round(ratio / (2 * part), 3), **settings}.items()
                }
                for method, ratio, settings in (
                    ("nsc_sl", 256, {}),
                    ("nsc_rd", 1024, {"max_rank": 16, "places": "slow"}),
                )
                for share in (0.3, 0.7)
            },
            "at most 4 bits": both(factor_bits=4, view="auto"),
            "energy 0.9": both(energy=0.9, view="auto", max_rank=128),
        },
    ),
}
"""Tables by name: the config file and the cells, each a set of overrides."""


def main() -> None:
    """Runs a table, seed by seed, and writes what there is after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--cells", nargs="*", help="only these cells")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=runs.RUNS, help="where the runs are kept")
    options = parser.parse_args()
    config, cells = TABLES[options.table]
    runs.make(
        options.table,
        config,
        cells,
        dict.fromkeys(options.cells or cells, options.seeds),
        data_dir=options.data_dir,
        jobs=options.jobs,
        out=options.out,
    )


if __name__ == "__main__":
    main()

"""Accuracy over bytes: every method at every ratio in one harness, both directions compressed.

    python benchmarks/accuracy_vs_bytes.py CONFIG --data_dir DIR [--methods NAME ...] [--ratios R ...] [--seeds N]
        [--epochs N] [--jobs N] [--out DIR]

Without options it is the whole grid: five seeds of the leaders, one of the rest. It writes
`benchmarks/results/accuracy_vs_bytes_CONFIG.json` after every run; a run that is in it is never made again: stop at any
time and start the same command. A ratio R caps the frames of both directions together at 2 / R of their
float32 bytes; a method that has no frame so small is noted as refused, and one that has nothing more to send at a ratio
is not run there.
"""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import runs

from nscjax import models
from nscjax.compress import view as views
from nscjax.layout import MAX_BYTES
from train import compression
from train import config as configs

RATIOS = (8, 16, 32, 64, 128, 256, 512, 1024)
EVAL_EVERY = 100

UNLIMITED_RANK = 1 << 20
"""`max_rank` out of the way: the trainer clips it to what the budget can reach."""

FEW = {"nsc_sl": 8, "nsc_rd": 4, "truncated_svd": 8, "dct": 8, "powersgd": 16}
"""Methods that send at most a sixteenth of an image's places, by accuracy (table of settings), and the most bits of a
number: an entropy coder's on average."""

SLOW = {"nsc_sl": {"view": "BC,hw"}, "powersgd": {"view": "BC,hw"}, "nsc_rd": {"places": "slow"}}
"""How a method's components are among slow cosines."""

SETTINGS: dict[str, dict[str, Any]] = {
    "nsc_sl": {},
    "nsc_rd": {},
    "truncated_svd": {"view": "auto"},
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
"""What is not default, by method: by distortion on captured tensors (`benchmarks/peers.py --search`); views, and that
PowerSGD has no error feedback here, by accuracy (table of settings)."""

METHODS = ("none", *SETTINGS, "bottlenet")
"""All that the grid compares."""

LEADERS = {"none", "nsc_sl", "nsc_rd", "powersgd", "dct"}
"""Methods so close to one another that one seed decides nothing: they have five by default."""

CODEBOOKS = {
    8: ((2, 8), (2, 8)),
    16: ((4, 8), (4, 8)),
    32: ((16, 10), (32, 10)),
    64: ((32, 10), (64, 10)),
    **dict.fromkeys(RATIOS[4:], ((64, 8), (64, 8))),
}
"""FedLite's (length of a subvector, most bits of its code) by ratio, up and down."""

IMAGES = {"cifar10": ((32, 32, 3), 10), "fashion_mnist": ((28, 28, 1), 10)}
"""Shape of an input and number of classes, by data set."""


def cut_shape(config: str) -> tuple[int, ...]:
    """Returns the shape of one sample's activations at the cut of a config, known by its name."""
    settings = configs.from_toml(runs.ROOT / "configs" / f"{config}.toml")
    image, num_classes = IMAGES[settings.data.name]
    architecture = dataclasses.asdict(settings.model) | {"num_classes": num_classes}
    x, key = jax.ShapeDtypeStruct((1, *image), jnp.float32), jax.random.key(0)
    client = models.build(**architecture).client

    def forward(x, key):
        return client(*models.init(key=key, x_spec=x, **architecture)[0], x, False)[0]

    return jax.eval_shape(forward, x, key).shape[1:]


def most_components(method: str, ratio: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns how a method's components are limited: of images to a sixteenth of the places.

    Those of low rank are among slow cosines (`truncated_svd`, the bound of the factorisation, in the whole view). The
    bands of `dct` are those of so many frequencies, and of no more than the budget affords at 4 bits an entry: by what
    `nsc_sl` does itself, and as its own best (table of settings).
    """
    if method not in FEW or len(shape) != 3:
        return {"max_rank": UNLIMITED_RANK}
    places = shape[0] * shape[1]
    most = max(places // 16, 1)
    if method != "dct":
        return {"max_rank": most} | SLOW.get(method, {})
    most = max(min(most, places * 32 // (4 * ratio)), 1)
    return {"bands": (math.isqrt(8 * most + 1) - 1) // 2}  # n diagonals of a square hold n (n + 1) / 2 of it


def has_more_to_send(method: str, ratio: int, shape: tuple[int, ...]) -> bool:
    """Whether a frame of this ratio is smaller than all that a method may send."""
    return method not in FEW or len(shape) != 3 or ratio >= 16 * 32 // FEW[method]


def up_share(method: str, shape: tuple[int, ...]) -> float:
    """Returns the share of both directions' bytes that goes up: more where the gradient has the uplink's support."""
    if method in ("top_k", "rand_top_k"):  # values of 16 bits both ways, indices on the way up alone
        index_bits = (math.prod(shape) - 1).bit_length()
        return (16 + index_bits) / (32 + index_bits)
    return 0.5


def directions(
    method: str, ratio: int, shape: tuple[int, ...], limits: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the uplink and of the downlink whose frames together keep to the ratio.

    Args:
        method: its name.
        ratio: of both directions together.
        shape: of one sample at the cut.
        limits: of the components, in the place of `most_components`.
    """
    limits = most_components(method, ratio, shape) if limits is None else limits
    common = {"method": method, "ratio": ratio} | limits | SETTINGS[method]
    share = up_share(method, shape)
    if share != 0.5:
        up, down = (common | {"ratio": round(ratio / (2 * part), 3)} for part in (share, 1 - share))
        return up, down
    if method == "fedlite":
        up, down = (
            common | {"subvector": min(length, math.prod(shape)), "most_bits": bits}
            for length, bits in CODEBOOKS[ratio]
        )
        return up, down
    if method == "sl_fac":  # with the uplink's the gradient is noise (its product with the activations, on captures)
        return common, common | {"threshold": 0.3}
    if method == "splitfc" and ratio == min(RATIOS):
        common |= {"bits": 3}
    return common, common


def built(way: str, settings: dict[str, Any], spec: jax.ShapeDtypeStruct, num_samples: int) -> compression.Direction:
    """Returns one direction as the trainer builds it, on a link without limits.

    Args:
        way: "up" or "down".
        settings: of the direction, as those of `directions`.
        spec: of a cut tensor.
        num_samples: of the training set.

    Raises:
        InputError: no frame of the method is so small.
    """
    config = configs.DirectionConfig(**settings)
    return compression.build(way, config, views.resolve(config.view, spec.shape), spec, num_samples, MAX_BYTES)


def overrides(method: str, ratio: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what `directions` returns, as overrides of a config."""
    ways = zip(("up", "down"), directions(method, ratio, shape))
    return {f"compress.{way}.{key}": value for way, settings in ways for key, value in settings.items()}


def cells(
    shape: tuple[int, ...], ratios: tuple[int, ...] = RATIOS, epochs: int | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the grid: overrides by cell, of every method at every ratio, and of training without compression.

    Args:
        shape: of one sample at the cut.
        ratios: of both directions together.
        epochs: instead of the config's.
    """
    common: dict[str, Any] = {"train.eval_every": EVAL_EVERY} if epochs is None else {"train.epochs": epochs}
    grid: dict[str, dict[str, Any]] = {"none": {"compress.up.method": "identity", "compress.down.method": "identity"}}
    for method in SETTINGS:
        for ratio in (1,) if method == "fp16" else ratios:  # half precision has but one rate
            if has_more_to_send(method, ratio, shape):
                grid[f"{method} {ratio}x"] = overrides(method, ratio, shape)
    for ratio in ratios if len(shape) == 3 else ():  # it is made for images
        # Half the height and width, half precision: 8 times fewer bytes with all channels.
        if channels := shape[-1] * 8 // ratio:
            half = {f"compress.{way}.{key}": value for way in ("up", "down") for key, value in
                    (("method", "fp16"), ("ratio", 1))}  # fmt: skip
            grid[f"bottlenet {ratio}x"] = half | {"model.bottleneck": channels}
    return {name: common | changes for name, changes in grid.items()}


def main() -> None:
    """Runs what is asked for of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a config in configs/, such as cifar10_bench")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these; by default all")
    parser.add_argument("--ratios", nargs="*", type=int, choices=RATIOS, default=RATIOS, help="only these")
    parser.add_argument("--seeds", type=int, help="seeds 0 to N-1; by default 5 of the leaders, 1 of the rest")
    parser.add_argument("--epochs", type=int, help="instead of the config's, with an evaluation after each")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=runs.RUNS, help="where the runs are kept")
    options = parser.parse_args()
    methods, shape = options.methods or METHODS, cut_shape(options.config)
    chosen = [name for name in cells(shape, tuple(options.ratios), options.epochs) if name.split()[0] in methods]
    runs.make(
        f"accuracy_vs_bytes_{options.config}" + (f"_{options.epochs}_epochs" if options.epochs else ""),
        options.config,
        cells(shape, epochs=options.epochs),
        {name: options.seeds or (5 if name.split()[0] in LEADERS else 1) for name in chosen},
        data_dir=options.data_dir,
        jobs=options.jobs,
        out=options.out,
    )


if __name__ == "__main__":
    main()

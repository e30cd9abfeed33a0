"""What each mechanism of a compressor is worth: distortion of real cut tensors, one change at a time.

    python benchmarks/capture.py --data_dir DIR
    python benchmarks/distortion.py [--method low_rank] [--ratio 40] [--rounds 10]

The captured tensors of each point in training are sent one after the other, as a run sends them; what counts is the
mean over the warm messages (all but the first two). Every direction is alone, with all the components that earn a bit.
Times are medians of each round's ratio to the default. It writes `benchmarks/results/distortion_METHOD.json`.
"""

import argparse
import contextlib
import importlib
import math
import statistics
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from capture import FOLDER
from record import write
from threadpoolctl import threadpool_limits

from nscjax import compress, measure
from nscjax.compress import entropy, quantise, rank, water_filling
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.low_rank import low_rank

nsc_rd = importlib.import_module("nscjax.compress.nsc_rd")
"""The module: in its package the factory has its name."""

COLD_MESSAGES = 2
SAME_BITS = 4


class Variant(NamedTuple):
    """One change from the default.

    Attributes:
        settings: arguments of the factory.
        instead: (module, name, value) of what is put in another's place.
    """

    settings: Mapping[str, Any] = types.MappingProxyType({})
    instead: tuple[tuple[Any, str, Any], ...] = ()


def same_bits(energies: jax.Array, most: int) -> water_filling.BitsRule:
    """Gives every component `SAME_BITS`, as many components as the budget affords: what water-filling replaces."""
    del most
    position = jnp.arange(len(energies))
    return lambda t: jnp.where(position < (t + 1) / 2 * (len(energies) + 1), SAME_BITS, 0)


def same_samples(unit_kjb: jax.Array) -> jax.Array:
    """Gives no sample a spread of its own."""
    return jnp.zeros(unit_kjb.shape[-1], jnp.int32)


def same_classes() -> np.ndarray:
    """Gives every class the same cost, whatever its neighbour's is."""
    most = entropy.NUM_CLASSES
    return np.full((most, most), np.ceil(entropy.COST_UNIT * np.log2(most)), np.int32)


def zones(change: float) -> tuple[str, ...]:
    """Returns the dead zones made wider, between plain rounding and the whole step."""
    return tuple(str(min(max(float(zone) + change, 0.5), 1.0)) for zone in entropy.DEAD_ZONES)


LOW_RANK = {
    "default": Variant(),
    "same bits for all": Variant(instead=((water_filling, "by_energy", same_bits),)),
    "a quarter a bit": Variant(instead=((water_filling, "GAINS", tuple(0.75 / 4**bit for bit in range(8))),)),
    "uniform levels": Variant(instead=((quantise, "FLATNESS", 1.0),)),
    **{f"flatness {flatness}": Variant(instead=((quantise, "FLATNESS", flatness),)) for flatness in (0.6, 0.25)},
    "one clipping point": Variant(instead=((quantise, "CLIPS", (1.0,)),)),
    "no compensation": Variant({"compensates": False}),
    **{f"iterations {iterations}": Variant({"iterations": iterations}) for iterations in (2, 3)},
    **{f"oversample {columns}": Variant({"oversample": columns}) for columns in (0, 2, 8)},
    **{f"at most {bits} bits": Variant({"factor_bits": bits}) for bits in (4, 16)},
    **{f"view {view}": Variant({"view": view}) for view in ("BHW,C", "B,HWC", "BH,WC")},
}

NSC_RD = {
    "default": Variant(),
    "no basis is sent": Variant(instead=((nsc_rd, "AFFORDABLE", -1.0),)),
    **{
        f"patience {patience}": Variant(instead=((nsc_rd, "PATIENCE", float(patience)),)) for patience in (0, 0.5, 2)
    },  # with 0 a basis crosses in every message
    "all rows of a basis": Variant(instead=((nsc_rd, "WHILE", 1e30),)),
    "samples alike": Variant(instead=((nsc_rd, "_spreads", same_samples),)),
    "classes alike": Variant(instead=((entropy, "class_bits", same_classes),)),
    "no dead zone": Variant(instead=((entropy, "DEAD_ZONES", zones(-1.0)),)),
    **{f"dead zone {change:+}": Variant(instead=((entropy, "DEAD_ZONES", zones(change)),)) for change in (-0.1, 0.1)},
    "no centroids": Variant(
        instead=((entropy, "centroids", lambda: np.asarray(entropy.dead_zones() - 0.5, np.float32)),)
    ),
    "4 steps an octave": Variant(instead=((nsc_rd, "STEPS_AN_OCTAVE", 4), (nsc_rd, "NUM_STEPS", 44))),
    **{f"rows at {bits} bits": Variant({"mean_bits": bits}) for bits in (1, 2)},
    "16 rows": Variant({"max_rank": 16}),
    "16 rows, oversample 0": Variant({"max_rank": 16}, ((nsc_rd, "OVERSAMPLE", 0),)),
    **{f"places {places}": Variant({"places": places}) for places in ("slow", "cosines")},
}


class Method(NamedTuple):
    """A method's ablation.

    Attributes:
        build: (spec, largest frame, settings) -> compressor.
        variants: changes from the default, by name.
    """

    build: Callable[..., Compressor]
    variants: dict[str, Variant]


def of_low_rank(spec: jax.ShapeDtypeStruct, budget: int, view: str = "BC,HW", **settings: Any) -> Compressor:
    """Returns the low-rank compressor with as many components as are of use."""

    def build(top: int) -> Compressor:
        return low_rank(rank.by_energy(1.0), view=view, max_rank=top, **settings)

    most = min(views.matrix_shape(view, spec.shape))
    return build(compress.reachable_rank(build(most), spec, budget))


def of_nsc_rd(spec: jax.ShapeDtypeStruct, budget: int, **settings: Any) -> Compressor:
    """Returns NSC-RD with all rows that earn a bit."""
    del budget
    return compress.nsc_rd(**{"max_rank": math.prod(spec.shape), "mean_bits": 0} | settings)


METHODS = {"low_rank": Method(of_low_rank, LOW_RANK), "nsc_rd": Method(of_nsc_rd, NSC_RD)}


@contextlib.contextmanager
def replaced(variant: Variant) -> Iterator[None]:
    """Lets what is traced inside use what the variant puts in another's place."""
    with contextlib.ExitStack() as stack:
        for what in variant.instead:
            stack.enter_context(mock.patch.object(*what))
        stack.callback(forget_tables)  # before the constants are there again: nothing is traced in between
        forget_tables()
        yield


def forget_tables() -> None:
    """Lets the entropy coder's tables be made anew."""
    for function in vars(entropy).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def sender(method: Method, variant: Variant, spec: jax.ShapeDtypeStruct, budget: int) -> tuple[Callable, Any]:
    """Returns (jitted (x, states) -> (distortion, rank, states), first states) of a variant."""
    side = compress.SideInfo(key=jax.random.key(1), budget_bytes=budget)
    with replaced(variant):
        compressor = method.build(spec, budget, **variant.settings)

        def send(x, states):
            payload, enc = compressor.compress(x, states[0], side)
            x_hat, dec = compressor.decompress(payload, states[1], side)
            return measure.distortion(x, x_hat), payload.rank, (enc, dec)

        states = compressor.init(jax.random.key(0), spec)
        return jax.jit(send).lower(spec, states).compile(), states


def row(method: Method, tensors: np.ndarray, budget: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns distortion, rank and time of every variant on one series of cut tensors [messages, B, ...]."""
    spec = jax.ShapeDtypeStruct(tensors.shape[1:], tensors.dtype)
    senders = {name: sender(method, variant, spec, budget) for name, variant in method.variants.items()}
    found = {}
    for name, (send, states) in senders.items():
        distortions = []
        for x in tensors:
            distortion, components, states = send(x, states)
            distortions.append(float(distortion))
        found[name] = {"distortion": statistics.mean(distortions[COLD_MESSAGES:]), "rank": int(components)}
    seconds: dict[str, list[float]] = {name: [] for name in senders}
    x = jax.device_put(tensors[-1])
    for number in range(rounds):
        order = list(senders.items())
        turn = number % len(order)  # what was before it makes one a few per cent slower or faster
        for name, (send, states) in order[turn:] + order[:turn]:
            started = time.perf_counter()
            jax.block_until_ready(send(x, states))
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        found[name]["time_over_default"] = statistics.median(a / b for a, b in zip(times, seconds["default"]))
    return found


def main() -> None:
    """Measures every series and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="low_rank")
    parser.add_argument("--captures", default="cifar10_bench", help="name of a file in runs/captures/")
    parser.add_argument("--ratio", type=float, default=40.0, help="raw float32 bytes over the largest frame")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with np.load(FOLDER / f"{options.captures}.npz") as file, threadpool_limits(limits=1, user_api="blas"):
        for series in file.files:
            tensors = file[series]
            budget = int(measure.raw_bytes(tensors.shape[1:]) / options.ratio)
            rows[series] = row(METHODS[options.method], tensors, budget, options.rounds)
            print(series, {name: round(values["distortion"], 4) for name, values in rows[series].items()}, flush=True)
    write(
        f"distortion_{options.method}",
        {"captures": options.captures, "ratio": options.ratio, "series": rows},
        seeds=[0],
    )


if __name__ == "__main__":
    main()

"""From past transfers to a byte budget: estimators of the next transfer's rate; none sees the future."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array, PyTree

MIN_SECONDS = 1e-3
SLOWEST_MBIT_PER_S = 1e-6


class Estimator(NamedTuple):
    """Pure functions that follow the rate of one direction of a link.

    `init` takes the rate to reckon with until the first transfer is seen, which replaces it. `update` takes
    what was seen of one transfer: its size [] int32 and its seconds [] float32 without latency. What tells
    nothing is left out: a transfer of zero bytes, and one shorter than `min_seconds`. The latter says only
    that the link carries at least that many bytes in `min_seconds`; this bound counts where it is above the
    estimate. Otherwise an estimate that is far too low would stay so: the messages that it allows are all too
    short to tell.
    """

    init: Callable[[Array | float], PyTree]  # (initial_mbit_per_s) -> state
    update: Callable[[PyTree, Array | int, Array | float], PyTree]  # (state, num_bytes, seconds) -> state
    mbit_per_s: Callable[[PyTree], Array]  # (state) -> [] float32: rate to reckon with for the next transfer


class EstimatorState(NamedTuple):
    """State of every estimator here."""

    is_initial: Array  # [] bool: no transfer seen yet
    rates: PyTree  # what the estimator keeps of the rates seen


def ewma(*, fast: float = 1.0, slow: float = 0.1, min_seconds: float = MIN_SECONDS) -> Estimator:
    """Returns the smaller of two exponentially weighted averages: quick to fall, slow to rise.

    Args:
        fast: weight of the newest transfer in one of them, in (0, 1].
        slow: its weight in the other, in (0, 1].
        min_seconds: transfers shorter than this are too short to tell; >= 1e-9.

    Source: the throughput rule of dash.js and Shaka Player.
    """
    gains = (check.fraction("fast", fast), check.fraction("slow", slow))

    def keep(rate: Array) -> tuple[Array, Array]:
        return rate, rate

    def observe(averages: tuple[Array, Array], rate: Array) -> tuple[Array, ...]:
        return tuple((1 - gain) * average + gain * rate for average, gain in zip(averages, gains))

    return _estimator(keep, observe, lambda averages: jnp.minimum(*averages), min_seconds)


def harmonic(*, window: int = 5, min_seconds: float = MIN_SECONDS) -> Estimator:
    """Returns the harmonic mean of the last `window` >= 1 rates, which a single burst hardly lifts.

    Source: Jiang, Sekar and Zhang, "Improving Fairness, Efficiency, and Stability in HTTP-based Adaptive
    Video Streaming with FESTIVE", CoNEXT 2012.
    """
    check.count("window", window, 1)

    def keep(rate: Array) -> Array:
        return jnp.full(int(window), rate)

    def observe(rates: Array, rate: Array) -> Array:
        return jnp.roll(rates, 1).at[0].set(rate)

    return _estimator(keep, observe, lambda rates: 1 / jnp.mean(1 / rates), min_seconds)


class QuantileState(NamedTuple):
    """What `quantile` keeps."""

    last_mbit_per_s: Array  # [] float32: rate of the last transfer
    log_margin: Array  # [] float32, <= 0: log of the share of it to reckon with


def quantile(*, miss: float = 0.1, gain: float = 0.05, min_seconds: float = MIN_SECONDS) -> Estimator:
    """Returns the rate that all but a share `miss` of transfers reach: the last rate times a steered margin.

    After each transfer the log margin falls by `gain` (1 - miss) if the transfer was slower than the
    estimate, and rises by `gain` miss if not, up to 0. So the share of misses tends to `miss` or less,
    whatever the link does, and a steady link's whole rate is used.

    Args:
        miss: share of transfers that may be slower than the estimate, in (0, 1].
        gain: how fast the margin follows, in (0, 1].
        min_seconds: transfers shorter than this are too short to tell; >= 1e-9.

    Source: own; the update of Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift",
    NeurIPS 2021, on the log ratio of successive rates.
    """
    check.fraction("miss", miss)
    check.fraction("gain", gain)
    # A steady link's rates differ by the rounding of bytes and seconds; that is no miss.
    rounding = 1e-5

    def keep(rate: Array) -> QuantileState:
        return QuantileState(rate, jnp.zeros_like(rate))

    def observe(state: QuantileState, rate: Array) -> QuantileState:
        is_miss = rate < estimate(state) * (1 - rounding)
        log_margin = state.log_margin + gain * jnp.where(is_miss, miss - 1.0, miss)
        return QuantileState(rate, jnp.minimum(log_margin, 0.0))

    def estimate(state: QuantileState) -> Array:
        return state.last_mbit_per_s * jnp.exp(state.log_margin)

    return _estimator(keep, observe, estimate, min_seconds)


ESTIMATORS: dict[str, Callable[..., Estimator]] = {"ewma": ewma, "harmonic": harmonic, "quantile": quantile}


def budget_bytes(mbit_per_s: Array | float, deadline_s: Array | float, latency_s: Array | float) -> Array:
    """Returns how many bytes may leave so that they arrive within the deadline.

    Args:
        mbit_per_s: [] float32: rate to reckon with.
        deadline_s: [] float32: from the first bit sent to the last bit received.
        latency_s: [] float32: what of that every bit spends on its way.

    Returns:
        [] int32 from 0 to 2**31 - 1.
    """
    transfer_s = jnp.asarray(deadline_s, jnp.float32) - latency_s
    num_bytes = jnp.floor(mbit_per_s * transfer_s * 125_000)
    # A float32 beyond int32 must not be converted; 2**31 - 128 is the largest within.
    fitting = jnp.clip(num_bytes, 0, 2**31 - 128).astype(jnp.int32)
    return jnp.where(num_bytes < 2.0**31, fitting, 2**31 - 1)


def _estimator(
    keep: Callable[[Array], Any],
    observe: Callable[[Any, Array], Any],
    mbit_per_s: Callable[[Any], Array],
    min_seconds: float,
) -> Estimator:
    """Returns an estimator from its rule: what to keep of the first rate, of each next, and the estimate."""
    check.at_least("min_seconds", min_seconds, 1e-9)

    def init(initial_mbit_per_s: Array | float) -> EstimatorState:
        return EstimatorState(jnp.bool_(True), keep(jnp.asarray(initial_mbit_per_s, jnp.float32)))

    def update(state: EstimatorState, num_bytes: Array | int, seconds: Array | float) -> EstimatorState:
        mbit = jnp.asarray(num_bytes).astype(jnp.float32) * 8e-6
        seconds = jnp.asarray(seconds, jnp.float32)
        rate = jnp.maximum(mbit / jnp.maximum(seconds, min_seconds), SLOWEST_MBIT_PER_S)
        tells = (mbit > 0) & ((seconds >= min_seconds) | (rate > mbit_per_s(state.rates)))
        seen = _where(state.is_initial, keep(rate), observe(state.rates, rate))
        return EstimatorState(state.is_initial & ~tells, _where(tells, seen, state.rates))

    return Estimator(init, update, lambda state: mbit_per_s(state.rates))


def _where(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)

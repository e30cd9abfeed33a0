"""A position in a trace, and how time and bytes move it on.

All in float32 inside a compiled step, and yet exact to rounding: the clock is a segment and an offset in it
(a float32 sum of all seconds so far would lose whole messages), whole laps are divided out, and sums over
thousands of segments carry their own rounding error.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from nscjax.link.trace import UNLIMITED_MBIT_PER_S, Trace
from nscjax.types import Array


class Clock(NamedTuple):
    """A position in a periodic trace."""

    segment: Array  # [] int32: index of the segment, 0 <= segment < K
    offset_s: Array  # [] float32: seconds into it, 0 <= offset_s < its length


class _Sum(NamedTuple):
    """A running float32 sum and what its roundings have lost so far."""

    value: Array  # [] float32
    lost: Array  # [] float32


def start() -> Clock:
    """Returns the clock at the beginning of a trace."""
    return Clock(jnp.int32(0), jnp.float32(0))


def advance(trace: Trace, clock: Clock, seconds: Array | float) -> Clock:
    """Returns the clock after `seconds` >= 0 ([] float32) have passed, however many laps that is."""
    clock, _ = _walk(trace, clock, jnp.asarray(seconds, jnp.float32), jnp.ones_like(trace.seconds))
    return clock


def transfer(trace: Trace, clock: Clock, num_bytes: Array | int) -> tuple[Clock, Array]:
    """Sends `num_bytes` through the link from `clock` on, waiting through segments of rate zero.

    Args:
        trace: the link; it must carry something (the makers of traces see to that).
        clock: when the first bit leaves.
        num_bytes: [] int32, >= 0.

    Returns:
        The clock when the last bit is through, and the seconds [] float32 from the first to the last bit: 0
        for no bytes, and for any number of them on an unlimited link.
    """
    mbit = jnp.asarray(num_bytes).astype(jnp.float32) * 8e-6
    unlimited = trace.mbit_per_s[clock.segment] >= UNLIMITED_MBIT_PER_S
    clock, seconds = _walk(trace, clock, mbit, trace.mbit_per_s)
    return clock, jnp.where(unlimited, 0.0, seconds)


def _walk(trace: Trace, clock: Clock, amount: Array, pace: Array) -> tuple[Clock, Array]:
    """Walks until `amount` is through, at `pace` [K] per second; returns clock and seconds it took."""
    num_segments = len(trace.seconds)
    lap_amount, lap_seconds = _fold(pace * trace.seconds), _fold(trace.seconds)
    rest = lax.rem(amount, lap_amount)
    # Just whole laps are through when the last of the amount is, not after an outage that follows it.
    rest = jnp.where((rest == 0) & (amount > 0), lap_amount, rest)
    laps = jnp.round((amount - rest) / lap_amount)

    def segment_left(clock: Clock) -> tuple[Array, Array]:
        seconds = trace.seconds[clock.segment] - clock.offset_s
        return seconds, seconds * pace[clock.segment]

    def goes_on(state: tuple[Clock, _Sum, _Sum]) -> Array:
        clock, left, _ = state
        return left.value + left.lost > segment_left(clock)[1]

    def next_segment(state: tuple[Clock, _Sum, _Sum]) -> tuple[Clock, _Sum, _Sum]:
        clock, left, elapsed = state
        seconds, carried = segment_left(clock)
        clock = Clock((clock.segment + 1) % num_segments, jnp.zeros_like(clock.offset_s))
        return clock, _add(left, -carried), _add(elapsed, seconds)

    zero = jnp.zeros_like(rest)
    clock, left, elapsed = lax.while_loop(goes_on, next_segment, (clock, _Sum(rest, zero), _Sum(zero, zero)))
    pace_here = pace[clock.segment]
    last_s = jnp.where(pace_here > 0, jnp.maximum(left.value + left.lost, 0) / pace_here, 0.0)
    elapsed = _add(elapsed, last_s)
    at_end = clock.offset_s + last_s >= trace.seconds[clock.segment]
    clock = Clock(
        jnp.where(at_end, (clock.segment + 1) % num_segments, clock.segment),
        jnp.where(at_end, 0.0, clock.offset_s + last_s),
    )
    return clock, laps * lap_seconds + (elapsed.value + elapsed.lost)


def _add(total: _Sum, term: Array) -> _Sum:
    """Adds and keeps the rounding error (Knuth's TwoSum)."""
    value = total.value + term
    added = value - total.value
    return _Sum(value, total.lost + ((total.value - (value - added)) + (term - added)))


def _fold(x: Array) -> Array:
    """Returns the sum of x [K] with a rounding error that grows with log K, not with K, on every device."""
    while len(x) > 1:
        x = jnp.sum(jnp.pad(x, (0, -len(x) % 16)).reshape(-1, 16), axis=1)
    return x[0]

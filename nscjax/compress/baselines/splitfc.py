"""SplitFC: columns of the batch matrix dropped at random by their spread, the rest quantised by their range.

Source: Oh et al. 2023, "Communication-efficient split learning via adaptive feature-wise compression", arXiv
2307.10805, of which the abstract was read: columns (features) are dropped with probabilities set by their standard
deviation, the chain rule drops the same columns of the gradient; those kept are quantised, the number of levels by the
column's range, optimal under a bit budget. The rest is ours or from memory: keep probabilities in proportion to the
standard deviation, capped at 1; survivors are divided by their probability; log2 of the levels rises with log2 of the
range up to a common level (the closed-form optimum), whole bits, `bits` a column on average; a column of 0 bits is sent
as the middle of its range. Departures: exactly as many columns as the budget affords are drawn (systematic sampling,
which has these probabilities), when a network is evaluated as well: batch normalisation behind the cut has learned from
columns that are divided. The gradient's frame holds mask and weights again (a bit and two bytes a column), though its
receiver has them: a few per cent more than the method needs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress import planes, water_filling
from nscjax.compress.base import Compressor, no_state
from nscjax.compress.planes import MOST_BITS
from nscjax.types import Array, Shape


@layout.payload(tag=10)
class Columns:
    """The kept columns of a cut tensor read as [B, d].

    Attributes:
        rank: int32 scalar, how many columns are sent.
        scale: float32 scalar, the largest magnitude.
        is_kept: uint8 [ceil(d / 8)], one bit a column.
        limits: float16 [d, 2], least and largest entry of every column, over the scale.
        weights: float16 [d], one over the probability with which the column was kept.
        column_bits: uint8 [d], bits of an entry.
        planes: uint8 [d, bits, ceil(B / 8)], `bits` planes a column on average, one column's after the other's.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    scale: Array = layout.array()
    is_kept: Array = layout.array()
    limits: Array = layout.ranked()
    weights: Array = layout.ranked()
    column_bits: Array = layout.ranked()
    planes: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        if len(self.planes.shape) != 3 or not 1 <= self.planes.shape[1] <= MOST_BITS:
            return f"its planes have shape {self.planes.shape}"
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self), self.planes.shape[1]))


def splitfc(*, bits: int = 2) -> Compressor:
    """Returns the SplitFC compressor; its frames decode alone, or with the other direction's support.

    Args:
        bits: of an entry of a kept column on average, 1 to 8.

    Raises:
        InputError: `bits` out of range.
    """
    check.one_of("bits", bits, range(1, MOST_BITS + 1))

    def compress(x, enc_state, side):
        template = _empty(x, bits)
        rows = x.reshape(x.shape[0], -1).astype(jnp.float32).T  # a row is a column of the source
        scale = jnp.max(jnp.abs(rows))
        rows = rows / jnp.where(scale > 0, scale, 1.0)
        rank = layout.affordable_rank(template, side.budget_bytes)
        if side.support is None:
            is_kept, weights = _drawn(jnp.std(rows, axis=1), rank, side)
        else:
            weights = side.support.astype(jnp.float32)
            is_kept = (weights > 0) & (jnp.cumsum(weights > 0, dtype=jnp.int32) <= rank)
            rank = jnp.sum(is_kept, dtype=jnp.int32)
        place = jnp.where(is_kept, jnp.cumsum(is_kept, dtype=jnp.int32) - 1, rows.shape[0])
        weights = jnp.where(is_kept, weights, 0.0).astype(jnp.float16)
        rows = rows * weights.astype(jnp.float32)[:, None]
        limits = jnp.stack([jnp.min(rows, axis=1), jnp.max(rows, axis=1)], axis=1).astype(jnp.float16)
        span = (limits[:, 1] - limits[:, 0]).astype(jnp.float32)
        column_bits = water_filling.most_that_fit(
            _bits_by_range(jnp.where(is_kept, span, 0.0)),
            lambda bits_n: jnp.sum(bits_n, dtype=jnp.int32) <= rank * bits,
        )
        last = planes.last_code(column_bits)[:, None]
        unit = (rows - limits[:, :1].astype(jnp.float32)) / jnp.where(span > 0, span, 1.0)[:, None]
        codes = jnp.clip(jnp.round(unit * last), 0, last).astype(jnp.uint8)
        packed = planes.pack(codes, column_bits, MOST_BITS)[: bits * len(rows)]
        fields = {
            "rank": rank,
            "scale": scale,
            "is_kept": jnp.packbits(is_kept),
            "limits": _moved(limits, place),
            "weights": _moved(weights, place),
            "column_bits": _moved(column_bits.astype(jnp.uint8), place),
            "planes": packed.reshape(template.planes.shape),
        }
        return Columns(**fields, shape=template.shape, dtype=template.dtype), enc_state

    def decompress(payload, dec_state, side):
        del side
        batch, width = payload.shape[0], math.prod(payload.shape[1:])
        is_sent = jnp.arange(width) < payload.rank
        bits_n = jnp.where(is_sent, payload.column_bits.astype(jnp.int32), 0)
        packed = payload.planes.reshape(-1, payload.planes.shape[-1])
        codes = planes.unpack(packed, bits_n, MOST_BITS, batch).astype(jnp.float32)
        low, high = (payload.limits[:, i].astype(jnp.float32)[:, None] for i in (0, 1))
        last = planes.last_code(bits_n)[:, None]
        rows = jnp.where(bits_n[:, None] > 0, low + (high - low) * (codes / last), (low + high) / 2)
        x_hat = jnp.where(_is_kept(payload)[:, None], rows[_order(payload)], 0.0) * payload.scale
        return x_hat.T.reshape(payload.shape).astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec, bits), rank=1)

    def support(payload, _state):
        """Returns float32 [d]: by what the gradient of every column is multiplied, 0 for those that were dropped."""
        return jnp.where(_is_kept(payload), payload.weights[_order(payload)].astype(jnp.float32), 0.0)

    return Compressor(no_state, compress, decompress, layout.num_bytes, min_bytes, support=support)


def _drawn(spread: Array, rank: Array, side: Any) -> tuple[Array, Array]:
    """Returns (is kept, one over the probability), [d]: `rank` columns drawn by their spread."""
    probability = _keep_probabilities(spread, rank)
    total = jnp.cumsum(probability)
    # The last sum is the rank but for rounding; with one offset for all, every column is hit with its probability.
    total = total * rank.astype(jnp.float32) / jnp.maximum(total[-1], 1e-30)
    offset = jax.random.uniform(side.key, dtype=jnp.float32, minval=1e-3, maxval=1 - 1e-3)
    hits = jnp.floor(total + offset)
    is_kept = jnp.diff(hits, prepend=jnp.floor(offset)) > 0
    # Rounding may draw one too many; the budget has no room for it.
    is_kept = is_kept & (jnp.cumsum(is_kept, dtype=jnp.int32) <= rank)
    return is_kept, 1 / jnp.clip(probability, 1e-3, 1.0)


def _keep_probabilities(spread: Array, rank: Array) -> Array:
    """Returns min(1, c spread), [d], with the c for which they add up to `rank`."""
    # A little is added, so that columns without spread are drawn before none is left.
    unit = spread / jnp.maximum(jnp.max(spread), jnp.finfo(jnp.float32).tiny) + 1e-6

    def halve(_, limits):
        low, high = limits
        middle = jnp.sqrt(low * high)
        is_few = jnp.sum(jnp.minimum(1.0, middle * unit)) < rank.astype(jnp.float32)
        return jnp.where(is_few, middle, low), jnp.where(is_few, high, middle)

    _, factor = jax.lax.fori_loop(0, 40, halve, (jnp.float32(1e-6), jnp.float32(1e7)))
    return jnp.minimum(1.0, factor * unit)


def _bits_by_range(span: Array) -> Any:
    """Returns t -> bits of every column, 0 to 8: log2 of its range up to a common level; none for a range of 0."""
    unit = span / jnp.maximum(jnp.max(span), jnp.finfo(jnp.float32).tiny)
    score = jnp.log2(jnp.maximum(unit, 2.0**-30))

    def bits_of(t):
        # From 0 for all, at t = -1, to 8 for all that have a range, at 1.
        level = (t + 1) / 2 * (MOST_BITS + 32) - 2
        return jnp.where(span > 0, jnp.clip(jnp.floor(score + level), 0, MOST_BITS).astype(jnp.int32), 0)

    return bits_of


def _moved(values: Array, place: Array) -> Array:
    return jnp.zeros_like(values).at[place].set(values, mode="drop")


def _is_kept(payload: Columns) -> Array:
    return jnp.unpackbits(payload.is_kept, count=math.prod(payload.shape[1:])).astype(bool)


def _order(payload: Columns) -> Array:
    """Returns int32 [d]: the place of every kept column in the payload."""
    return jnp.maximum(jnp.cumsum(_is_kept(payload), dtype=jnp.int32) - 1, 0)


def _empty(spec: jax.ShapeDtypeStruct | Array, bits: int) -> Columns:
    batch, width = spec.shape[0], math.prod(spec.shape[1:])
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "is_kept": jax.ShapeDtypeStruct((-(-width // 8),), jnp.uint8),
        "limits": jax.ShapeDtypeStruct((width, 2), jnp.float16),
        "weights": jax.ShapeDtypeStruct((width,), jnp.float16),
        "column_bits": jax.ShapeDtypeStruct((width,), jnp.uint8),
        "planes": jax.ShapeDtypeStruct((width, bits, -(-batch // 8)), jnp.uint8),
    }
    return Columns(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype))

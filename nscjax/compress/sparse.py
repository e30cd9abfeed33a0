"""Sparsification: of every sample the same number k of entries, in float16, with their positions bit by bit.

Which entries is the method's affair: a score for every entry, of which the k largest are kept. The rate knob is k. If
the other direction's payload has fixed the entries (`SideInfo.support`), only values cross: the gradient of what was
not sent is not sent either.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress.base import Compressor, SideInfo, no_state
from nscjax.types import Array, Shape


@layout.payload(tag=4)
class Sparse:
    """The kept entries of a cut tensor and their positions, in the order of their positions.

    Attributes:
        rank: int32 scalar, k: how many entries of every sample are sent.
        scale: float32 scalar, the largest magnitude.
        values: float16 [d, B], over the scale.
        indices: uint8 [d, bits of an index, ceil(B / 8)], one bit plane of the batch after the other.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    scale: Array = layout.array()
    values: Array = layout.ranked()
    indices: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self)))


@layout.payload(tag=5)
class SparseValues:
    """The kept entries of a cut tensor whose positions the other end knows.

    Attributes:
        rank: int32 scalar, k: how many entries of every sample are sent.
        scale: float32 scalar, the largest magnitude.
        values: float16 [d, B], over the scale.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    scale: Array = layout.array()
    values: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        return layout.arrays_problem(self, _empty_values(layout.tensor_spec(self)))


def sparse(score: Callable[[Array, Array, SideInfo], Array], k: int | None) -> Compressor:
    """Returns the compressor that keeps the k entries of every sample with the largest scores.

    Args:
        score: `(x [B, d] float32, k, side) -> scores [B, d]`; `k` is traced.
        k: entries kept of every sample where the budget affords them, >= 1, or None for as many as it affords.

    Raises:
        InputError: `k` out of range.
    """
    if k is not None:
        check.count("k", k, 1)

    def compress(x, enc_state, side):
        batch = x.shape[0]
        rows = x.reshape(batch, -1).astype(jnp.float32)
        template: Any = _empty(x) if side.support is None else _empty_values(x)
        rank = layout.affordable_rank(template, side.budget_bytes)
        rank = rank if k is None else jnp.minimum(rank, k)
        if side.support is None:
            is_kept = largest(score(rows, rank, side), rank)
        else:
            is_kept = side.support.reshape(batch, -1)
            # What was not sent up is not missed: an empty message in answer to an empty one.
            rank = jnp.minimum(rank, jnp.max(jnp.sum(is_kept, axis=1, dtype=jnp.int32)))
        places = _places(is_kept, rank)
        sent = jnp.where(places < rows.shape[1], rows, 0.0)
        scale = jnp.max(jnp.abs(sent))
        values = _gathered(sent / jnp.where(scale > 0, scale, 1.0), places).astype(jnp.float16)
        fields = {"rank": rank, "scale": scale, "values": values}
        if side.support is None:
            positions = jnp.broadcast_to(jnp.arange(rows.shape[1], dtype=jnp.int32), rows.shape)
            fields["indices"] = _packed(_gathered(positions, places), template.indices.shape[1])
        return type(template)(**fields, shape=template.shape, dtype=template.dtype), enc_state

    def decompress(payload, dec_state, side):
        batch, width = payload.shape[0], math.prod(payload.shape[1:])
        values = payload.scale * payload.values.astype(jnp.float32)
        if isinstance(payload, Sparse):
            rows = _scattered(values, _unpacked(payload.indices, batch), payload.rank, width)
        else:
            places = _places(side.support.reshape(batch, -1), payload.rank)
            padded = jnp.concatenate([values, jnp.zeros((1, batch), jnp.float32)])
            rows = padded[places, jnp.arange(batch)[:, None]]
        return rows.reshape(payload.shape).astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec), rank=k or 1)

    def support(payload, _state):
        """Returns bool, the cut tensor's shape: the entries that were sent."""
        batch, width = payload.shape[0], math.prod(payload.shape[1:])
        ones = jnp.ones(payload.values.shape, bool)
        return _scattered(ones, _unpacked(payload.indices, batch), payload.rank, width).reshape(payload.shape)

    return Compressor(no_state, compress, decompress, layout.num_bytes, min_bytes, support=support)


def largest(scores: Array, k: Array) -> Array:
    """Returns bool [B, d], the `k` largest of every row, of equal ones the first; `k` may be traced.

    The k-th largest is found bit by bit on the scores' order-preserving integers: 32 counts, where a sort would take
    several times longer.

    Args:
        scores: float32 [B, d].
        k: int32 scalar, 0 to d.
    """
    raw = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(raw & sign > 0, ~raw, raw | sign)

    def refine(i, threshold):
        candidate = threshold | (sign >> i.astype(jnp.uint32))
        count = jnp.sum(ordered >= candidate, axis=1, keepdims=True, dtype=jnp.int32)
        return jnp.where(count >= k, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros((scores.shape[0], 1), jnp.uint32))
    is_above, is_level = ordered > threshold, ordered == threshold
    room = k - jnp.sum(is_above, axis=1, keepdims=True, dtype=jnp.int32)
    return is_above | (is_level & (jnp.cumsum(is_level, axis=1, dtype=jnp.int32) <= room))


def _places(is_kept: Array, rank: Array) -> Array:
    """Returns int32 [B, d]: which place of the payload an entry takes, d for none."""
    order = jnp.cumsum(is_kept, axis=1, dtype=jnp.int32) - 1
    return jnp.where(is_kept & (order < rank), order, is_kept.shape[1])


def _gathered(rows: Array, places: Array) -> Array:
    """Returns [d, B]: the entries at their places, zeros where there are none."""
    batch, width = rows.shape
    return jnp.zeros((width, batch), rows.dtype).at[places, jnp.arange(batch)[:, None]].set(rows, mode="drop")


def _scattered(values: Array, indices: Array, rank: Array, width: int) -> Array:
    """Returns [B, d]: the first `rank` of the values [d, B] at their indices, zeros elsewhere."""
    batch = values.shape[1]
    indices = jnp.where(jnp.arange(values.shape[0])[:, None] < rank, indices, width)
    return jnp.zeros((batch, width), values.dtype).at[jnp.arange(batch)[None, :], indices].set(values, mode="drop")


def _packed(indices: Array, num_bits: int) -> Array:
    """Returns uint8 [d, num_bits, ceil(B / 8)] of indices [d, B]."""
    bits = (indices[:, None, :] >> jnp.arange(num_bits)[None, :, None]) & 1
    return jnp.packbits(bits.astype(bool), axis=-1)


def _unpacked(packed: Array, batch: int) -> Array:
    """Returns the indices int32 [d, B]: the inverse of `_packed`."""
    bits = jnp.unpackbits(packed, axis=-1, count=batch).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(packed.shape[1])[None, :, None], axis=1)


def _sizes(spec: jax.ShapeDtypeStruct | Array) -> tuple[int, int]:
    return spec.shape[0], math.prod(spec.shape[1:])


def _empty(spec: jax.ShapeDtypeStruct | Array) -> Sparse:
    batch, width = _sizes(spec)
    num_bits = max(1, (width - 1).bit_length())
    indices: Any = jax.ShapeDtypeStruct((width, num_bits, -(-batch // 8)), jnp.uint8)
    return Sparse(**vars(_empty_values(spec)), indices=indices)


def _empty_values(spec: jax.ShapeDtypeStruct | Array) -> SparseValues:
    batch, width = _sizes(spec)
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "values": jax.ShapeDtypeStruct((width, batch), jnp.float16),
    }
    return SparseValues(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype))

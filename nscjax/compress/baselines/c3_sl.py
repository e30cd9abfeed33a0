"""C3-SL: samples bound to keys by circular convolution and summed, several samples in one vector.

Source: Hsieh et al. 2022, arXiv 2207.12397, and WesleyHsieh0806/C3-SL (`CIFAR100/C3-SL/model.py`): fixed keys, Gaussian
of variance 1 / d, then of unit length; s = sum of key_j * x_j (circular convolution) over a group, the receiver
correlates s with each key. Correlation is the adjoint of convolution: with the same keys in both directions the
gradient that arrives is the exact one. Departures: the number of groups follows the budget, and where it does not
divide the batch some sums hold one sample more than others; sums in float16 (float32
there); every position in the batch has a key of its own (there one a place in the group).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress.base import Compressor
from nscjax.types import Array, Shape

KEYS_SEED = 0
"""Both ends and both directions draw the same keys."""


@layout.payload(tag=8)
class Superposed:
    """Sums of bound samples.

    Attributes:
        rank: int32 scalar, the number of groups; sample i is in group i modulo it.
        scale: float32 [B], the largest magnitude of every sum.
        sums: float16 [B, d], over the scale.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    scale: Array = layout.ranked()
    sums: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self)))


def c3_sl(*, groups: int | None = None) -> Compressor:
    """Returns the C3-SL compressor.

    Args:
        groups: sums sent a batch, >= 1, clipped to the batch; by default as many as the budget affords.

    Raises:
        InputError: `groups` out of range.
    """
    if groups is not None:
        check.count("groups", groups, 1)

    def init(key, spec):
        del key
        batch, width = spec.shape[0], math.prod(spec.shape[1:])
        keys = jax.random.normal(jax.random.key(KEYS_SEED), (batch, width), jnp.float32)
        keys = keys / jnp.linalg.norm(keys, axis=1, keepdims=True)
        return keys, jnp.copy(keys)

    def compress(x, enc_state, side):
        template = _empty(x)
        batch = x.shape[0]
        affordable = layout.affordable_rank(template, side.budget_bytes)
        rank = affordable if groups is None else jnp.minimum(affordable, groups)
        if side.support is not None:
            rank = jnp.where(affordable >= side.support, side.support, 0)
        rows = x.reshape(batch, -1).astype(jnp.float32)
        bound = jnp.fft.irfft(jnp.fft.rfft(enc_state) * jnp.fft.rfft(rows), n=rows.shape[1])
        sums = jax.ops.segment_sum(bound, jnp.arange(batch) % jnp.maximum(rank, 1), batch)
        scale = jnp.max(jnp.abs(sums), axis=1)
        sums = (sums / jnp.where(scale > 0, scale, 1.0)[:, None]).astype(jnp.float16)
        return Superposed(rank, scale, sums, template.shape, template.dtype), enc_state

    def decompress(payload, dec_state, side):
        del side
        batch = payload.shape[0]
        sums = payload.scale[:, None] * payload.sums.astype(jnp.float32)
        mine = sums[jnp.arange(batch) % jnp.maximum(payload.rank, 1)]
        rows = jnp.fft.irfft(jnp.conj(jnp.fft.rfft(dec_state)) * jnp.fft.rfft(mine), n=sums.shape[1])
        x_hat = jnp.where(payload.rank > 0, rows, 0.0).reshape(payload.shape)
        return x_hat.astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec), rank=1)

    def support(payload, _state):
        """Returns the number of groups: with another one the gradient would not be the exact one."""
        return payload.rank

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes, support=support)


def _empty(spec: jax.ShapeDtypeStruct | Array) -> Superposed:
    batch, width = spec.shape[0], math.prod(spec.shape[1:])
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((batch,), jnp.float32),
        "sums": jax.ShapeDtypeStruct((batch, width), jnp.float16),
    }
    return Superposed(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype))

"""Half precision: every entry in float16, over the largest magnitude, so that gradients of 1e-7 keep their digits."""

from typing import Any

import jax
import jax.numpy as jnp

from nscjax import layout
from nscjax.compress.base import Compressor, no_state
from nscjax.types import Array, Shape


@layout.payload(tag=7)
class Half:
    """A tensor in half precision.

    Attributes:
        rank: int32 scalar, 1, or 0 where the budget does not afford it.
        scale: float32 [1], the largest magnitude.
        values: float16 [1, *shape], over the scale.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    scale: Array = layout.ranked()
    values: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self)))


def fp16() -> Compressor:
    """Returns the compressor to half precision: ratio 2, whatever the budget beyond that."""

    def compress(x, enc_state, side):
        template = _empty(x)
        peak = jnp.max(jnp.abs(x.astype(jnp.float32)))
        values = (x.astype(jnp.float32) / jnp.where(peak > 0, peak, 1.0)).astype(jnp.float16)
        rank = layout.affordable_rank(template, side.budget_bytes)
        return Half(rank, peak[None], values[None], template.shape, template.dtype), enc_state

    def decompress(payload, dec_state, side):
        del side
        x_hat = jnp.where(payload.rank > 0, payload.scale[0] * payload.values[0].astype(jnp.float32), 0.0)
        return x_hat.astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec), rank=1)

    return Compressor(no_state, compress, decompress, layout.num_bytes, min_bytes)


def _empty(spec: jax.ShapeDtypeStruct | Array) -> Half:
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((1,), jnp.float32),
        "values": jax.ShapeDtypeStruct((1, *spec.shape), jnp.float16),
    }
    return Half(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype))

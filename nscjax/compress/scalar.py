"""Scalar quantisation: every entry of the cut tensor by itself, in as many bits as the budget affords.

A quantiser maps the tensor into [0, 1], cuts that into 2**b cells and sends each entry's cell, b bits. The number of
bits is the rate knob: the budget is dealt out in bit planes of single samples, so that two samples of a batch differ by
at most one bit, and every sample gets at least one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress import planes
from nscjax.compress.base import Compressor, no_state
from nscjax.compress.planes import MOST_BITS
from nscjax.types import Array, Shape

NUM_PARAMS = 2
"""Numbers that describe a quantiser's map, unless it has one for every feature."""

CENTRES, WITH_ZERO = 0.5, 0.0
"""Where in its cell the value lies that stands for it: in the middle, or at its lower end, which has one at 1 / 2."""


@layout.payload(tag=3)
class Quantised:
    """The cells of a cut tensor's entries.

    Attributes:
        rank: int32 scalar, how many planes are sent.
        params: float32 [2] or [C], the quantiser's map, or one number for every feature.
        planes: uint8 [8 B, ceil(d / 8)], bit planes of the samples (`nscjax.compress.planes`).
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
    """

    rank: Array = layout.array()
    params: Array = layout.array()
    planes: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        num_params = self.params.shape[0] if len(self.params.shape) == 1 else 0
        if num_params not in (NUM_PARAMS, self.shape[-1]):
            return f"its map has shape {self.params.shape}"
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self), num_params))


def scalar(
    fit: Callable[[Array, Array], Array],
    to_unit: Callable[[Array, Array], Array],
    from_unit: Callable[[Array, Array], Array],
    bits: int | None,
    *,
    place: float = CENTRES,
    by_feature: bool = False,
) -> Compressor:
    """Returns the compressor of a scalar quantiser; its frames decode alone.

    Args:
        fit: `(x [B, d] float32, bits) -> params` float32 [2], the map for this tensor; `bits` is traced.
        to_unit: `(x, params)` -> values in [0, 1].
        from_unit: `(values, params) -> x`, its inverse.
        bits: of every entry, 1 to 8, or None for as many as the budget affords, 1 at least.
        place: `CENTRES` or `WITH_ZERO`; an entry's cell is the one whose value is nearest.
        by_feature: whether the three functions see [B, d / C, C] and the map is [C].

    Raises:
        InputError: `bits` out of range.
    """
    if bits is not None:
        check.one_of("bits", bits, range(1, MOST_BITS + 1))

    def num_params(spec):
        return spec.shape[-1] if by_feature else NUM_PARAMS

    def seen(x):
        return x.reshape((x.shape[0], -1, x.shape[-1]) if by_feature else (x.shape[0], -1))

    def compress(x, enc_state, side):
        template = _empty(x, num_params(x))
        batch = x.shape[0]
        affordable = layout.affordable_rank(template, side.budget_bytes)
        least, most = (1, MOST_BITS) if bits is None else (bits, bits)
        rank = jnp.where(affordable >= least * batch, jnp.minimum(affordable, most * batch), 0)
        rows = seen(x.astype(jnp.float32))
        # For the bits that most samples get: a header takes the budget just below a whole number of planes a sample.
        params = fit(rows, jnp.maximum((rank + batch // 2) // batch, 1))
        bits_b = planes.spread(rank, batch, MOST_BITS)
        cells = num_cells(bits_b)[:, None]
        unit = to_unit(rows, params).reshape(batch, -1)
        codes = jnp.clip(jnp.floor(unit * cells + (0.5 - place)), 0, cells - 1).astype(jnp.uint8)
        packed = planes.pack(codes, bits_b, MOST_BITS)
        return Quantised(rank, params, packed, template.shape, template.dtype), enc_state

    def decompress(payload, dec_state, side):
        del side
        batch = payload.shape[0]
        bits_b = planes.spread(payload.rank, batch, MOST_BITS)
        codes = planes.unpack(payload.planes, bits_b, MOST_BITS, math.prod(payload.shape[1:]))
        values = (codes.astype(jnp.float32) + place) / num_cells(bits_b)[:, None]
        x_hat = from_unit(seen(values.reshape(payload.shape)), payload.params)
        x_hat = jnp.where(payload.rank > 0, x_hat, 0.0)
        return x_hat.reshape(payload.shape).astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec, num_params(spec)), rank=(bits or 1) * spec.shape[0])

    return Compressor(no_state, compress, decompress, layout.num_bytes, min_bytes)


def num_cells(bits: Array) -> Array:
    """Returns 2**bits, as float32."""
    return jnp.left_shift(1, bits).astype(jnp.float32)


def _empty(spec: jax.ShapeDtypeStruct | Array, num_params: int) -> Quantised:
    batch, width = spec.shape[0], math.prod(spec.shape[1:])
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "params": jax.ShapeDtypeStruct((num_params,), jnp.float32),
        "planes": jax.ShapeDtypeStruct((MOST_BITS * batch, -(-width // 8)), jnp.uint8),
    }
    return Quantised(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype))

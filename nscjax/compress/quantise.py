"""Quantised rows: every row of a factor in 16, 8 or 4 bits with one scale.

4 and 8 bits are companded levels, none of them spent on zero: with t = (2 code + 1) / 2^bits - 1 in (-1, 1), the value
is t (FLATNESS + (1 - FLATNESS) |t|) times the row's scale. Factors of activations, and still more of gradients, have
heavy tails: levels that are dense near zero halve the error of uniform ones on gradients (`docs/results.md`). The scale
is the one of a few clipping points with the least squared error, row by row. 16 bits are float16 of the row scaled to
at most 1, so that gradients of 1e-7 keep their precision.
"""

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array

BITS = (4, 8, 16)
CLIPS = {8: (1.0, 0.7), 4: (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)}
"""Clipping points tried, as shares of a row's largest magnitude."""

FLATNESS = 0.4
"""Slope of the companding curve at zero: 1 would be uniform levels."""


def packed_width(width: int, bits: int) -> int:
    """Returns how many array elements hold a row of `width` codes: two codes a byte at 4 bits."""
    return -(-width // 2) if bits == 4 else width


def packed_dtype(bits: int) -> jnp.dtype:
    """Returns the dtype of packed codes: float16 for 16 bits, uint8 else."""
    check.one_of("factor_bits", bits, BITS)
    return jnp.dtype(jnp.float16 if bits == 16 else jnp.uint8)


def quantise_rows(rows_kn: Array, bits: int) -> tuple[Array, Array]:
    """Returns (codes_kn, scale_k): the rows in `bits` bits each, rows ~ levels(codes) * scale.

    Args:
        rows_kn: [k, n] float32. A zero row has scale 0.
        bits: 4, 8 or 16.

    Returns:
        codes_kn: [k, n] uint8, or float16 for 16 bits. scale_k: [k] float32.
    """
    peak_k = jnp.max(jnp.abs(rows_kn), axis=1)
    if bits == 16:
        return (rows_kn / _nonzero(peak_k)[:, None]).astype(jnp.float16), peak_k

    def encode(scale_k):
        magnitude = jnp.minimum(jnp.abs(rows_kn) / _nonzero(scale_k)[:, None], 1.0)
        # The root of t (f + (1 - f) t) = magnitude.
        t = (jnp.sqrt(FLATNESS**2 + 4 * (1 - FLATNESS) * magnitude) - FLATNESS) / (2 * (1 - FLATNESS))
        return jnp.clip(jnp.floor((jnp.sign(rows_kn) * t + 1) * 2 ** (bits - 1)), 0, 2**bits - 1)

    def squared_error(scale_k):
        return jnp.sum(jnp.square(levels(encode(scale_k), bits) * scale_k[:, None] - rows_kn), axis=1)

    # The outermost level stands on the clipping point, so that a row of one magnitude is exact.
    outermost = levels(jnp.full((1, 1), 2**bits - 1, jnp.uint8), bits)[0]
    scales_ck = jnp.stack([clip * peak_k / outermost for clip in CLIPS[bits]])
    best_k = jnp.argmin(jnp.stack([squared_error(scale_k) for scale_k in scales_ck]), axis=0)
    # Chosen before the codes are made: fused, XLA on CPU would choose again for every entry.
    scale_k = jax.lax.optimization_barrier(jnp.take_along_axis(scales_ck, best_k[None], axis=0)[0])
    return encode(scale_k).astype(jnp.uint8), scale_k


def levels(codes_kn: Array, bits: int) -> Array:
    """Returns the float32 values in [-1, 1] that the codes stand for, before scaling."""
    codes_kn = codes_kn.astype(jnp.float32)
    if bits == 16:
        return codes_kn
    t = (2 * codes_kn + 1) / 2**bits - 1
    return t * (FLATNESS + (1 - FLATNESS) * jnp.abs(t))


def pack(codes_kn: Array, bits: int) -> Array:
    """Returns the codes as they cross: at 4 bits the row's first half sits in the low, the rest in the high nibbles."""
    if bits != 4:
        return codes_kn
    k, n = codes_kn.shape
    half = packed_width(n, bits)
    high = jnp.concatenate([codes_kn[:, half:], jnp.zeros((k, 2 * half - n), jnp.uint8)], axis=1)
    return codes_kn[:, :half] | (high << 4)


def unpack(packed: Array, bits: int, width: int) -> Array:
    """Returns the codes [k, width]: the inverse of `pack`."""
    if bits != 4:
        return packed
    return jnp.concatenate([packed & 0xF, packed >> 4], axis=1)[:, :width]


def _nonzero(x: Array) -> Array:
    return jnp.where(x > 0, x, 1.0)

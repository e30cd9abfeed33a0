"""Quantised rows: every row of a factor in 16, 8 or 4 bits with one scale.

4 and 8 bits are uniform mid-rise levels (no level is spent on zero): value = (code - (2^bits - 1) / 2) * step. The
step is the one of a few clipping points with the least squared error, row by row. 16 bits are float16 of the row
scaled to at most 1, so that gradients of 1e-7 keep their precision.
"""

import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array

BITS = (4, 8, 16)
CLIPS = {8: (1.0, 0.8, 0.6), 4: (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)}
"""Clipping points tried, as shares of a row's largest magnitude."""


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
    half = (2**bits - 1) / 2

    def encode(scale_k):
        return jnp.clip(jnp.round(rows_kn / _nonzero(scale_k)[:, None] + half), 0, 2 * half)

    def squared_error(scale_k):
        return jnp.sum(jnp.square((encode(scale_k) - half) * scale_k[:, None] - rows_kn), axis=1)

    scales_ck = jnp.stack([clip * peak_k / half for clip in CLIPS[bits]])
    best_k = jnp.argmin(jnp.stack([squared_error(scale_k) for scale_k in scales_ck]), axis=0)
    scale_k = jnp.take_along_axis(scales_ck, best_k[None], axis=0)[0]
    return encode(scale_k).astype(jnp.uint8), scale_k


def levels(codes_kn: Array, bits: int) -> Array:
    """Returns the float32 values that the codes stand for, before scaling."""
    values = codes_kn.astype(jnp.float32)
    return values if bits == 16 else values - (2**bits - 1) / 2


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

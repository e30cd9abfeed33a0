"""Quantised rows: every row of a factor in 16, 8 or 4 bits with one scale.

4 and 8 bits are companded levels: with t = code / 2^(bits - 1) - 1, in [-1, 1), the value is t (f + (1 - f) |t|) times
the row's scale, f = FLATNESS. Factors of activations, and still more of gradients, have heavy tails: levels that are
dense near zero lose less than uniform ones. Zero is a level, so that a sparse row stays sparse. The one level more on
the negative side goes to the side on which the row reaches farther: the scale is negative where that is the positive
one. Its size is the one of a few clipping points with the least squared error, row by row. 16 bits are float16 of the
row scaled to at most 1, so that gradients of 1e-7 keep their precision. What each of these is worth:
`benchmarks/distortion.py`.
"""

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array

BITS = (4, 8, 16)
CLIPS = {8: (1.0, 0.7), 4: (1.0, 0.85, 0.72, 0.6, 0.5, 0.4, 0.3)}
"""Clipping points tried, as shares of a row's largest magnitude, beside the one at which both ends are levels."""

FLATNESS = 0.4
"""Slope of the companding curve at zero: 1 is uniform levels."""


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
    high_k, low_k = jnp.max(rows_kn, axis=1), -jnp.min(rows_kn, axis=1)
    peak_k = jnp.maximum(high_k, low_k)
    if bits == 16:
        return (rows_kn / _nonzero(peak_k)[:, None]).astype(jnp.float16), peak_k

    def encode(scale_k):
        values = rows_kn / _nonzero(scale_k)[:, None]
        magnitude = jnp.minimum(jnp.abs(values), 1.0)
        # The root of t (f + (1 - f) t) = magnitude.
        t = 2 * magnitude / (FLATNESS + jnp.sqrt(FLATNESS**2 + 4 * (1 - FLATNESS) * magnitude))
        return jnp.clip(jnp.round((jnp.sign(values) * t + 1) * 2 ** (bits - 1)), 0, 2**bits - 1)

    def squared_error(scale_k):
        return jnp.sum(jnp.square(levels(encode(scale_k), bits) * scale_k[:, None] - rows_kn), axis=1)

    # With the last level on the peak, the level opposite is there too: a row of one magnitude is exact.
    last = levels(jnp.full((1, 1), 2**bits - 1, jnp.uint8), bits)[0]
    shares_c = jnp.concatenate([1 / last, jnp.asarray(CLIPS[bits])])
    scales_ck = shares_c[:, None] * jnp.where(high_k > low_k, -peak_k, peak_k)[None, :]
    # One clipping point after the other: fused into one loop over all of them, XLA on CPU takes 2 to 3 times longer.
    best_k = jnp.argmin(jax.lax.map(squared_error, scales_ck), axis=0)
    # Chosen before the codes are made: fused, XLA on CPU would choose again for every entry.
    scale_k = jax.lax.optimization_barrier(jnp.take_along_axis(scales_ck, best_k[None], axis=0)[0])
    return encode(scale_k).astype(jnp.uint8), scale_k


def levels(codes_kn: Array, bits: int) -> Array:
    """Returns the float32 values in [-1, 1] that the codes stand for, before scaling."""
    codes_kn = codes_kn.astype(jnp.float32)
    if bits == 16:
        return codes_kn
    t = codes_kn / 2 ** (bits - 1) - 1
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
    return jnp.where(x == 0, 1.0, x)

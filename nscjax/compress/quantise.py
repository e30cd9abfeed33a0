"""Quantised rows: every row of a factor in its own number of bits, with one scale.

With t = (2 code + 1) / 2^bits - 1, in (-1, 1), the value is t (f + (1 - f) |t|) times the row's scale, f = FLATNESS:
companded levels. Factors of activations, and still more of gradients, have heavy tails: levels that are dense near zero
lose less than uniform ones. The codes are those of the best of a few clipping points, row by row, and the scale is the
best one for the codes.
The number of bits is traced; a row of 0 bits is zero. What each of these is worth: `benchmarks/distortion.py`.
"""

import jax
import jax.numpy as jnp

from nscjax.types import Array

CLIPS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)
"""Clipping points tried, as shares of a row's largest magnitude, beside the one at which the last level is on it."""

FLATNESS = 0.4
"""Slope of the companding curve at zero: 1 is uniform levels."""


def codes_dtype(most: int) -> jnp.dtype:
    """Returns the dtype of codes of at most `most` bits, up to 16."""
    return jnp.dtype(jnp.uint8 if most <= 8 else jnp.uint16)


def quantise_rows(rows_kn: Array, bits_k: Array, most: int) -> tuple[Array, Array]:
    """Returns (codes_kn, scale_k): the rows in `bits_k` bits each, rows ~ levels(codes, bits) * scale.

    Args:
        rows_kn: [k, n] float32. A zero row has scale 0.
        bits_k: int32 [k], 0 to `most`.
        most: the largest number of bits, at most 16.

    Returns:
        codes_kn: [k, n] uint8, or uint16 for more than 8 bits, below 2**bits. scale_k: [k] float32.
    """
    peak_k = jnp.max(jnp.abs(rows_kn), axis=1)
    # With the last level on the peak a row of one magnitude is exact.
    last_k = jnp.where(bits_k > 0, levels(jnp.left_shift(1, bits_k)[:, None] - 1, bits_k)[:, 0], 1.0)
    clips_ck = jnp.broadcast_to(jnp.asarray(CLIPS, jnp.float32)[:, None], (len(CLIPS), len(bits_k)))
    scales_ck = jnp.concatenate([1 / last_k[None], clips_ck]) * peak_k[None]

    def squared_error(scale_k):
        values_kn = levels(_encode(rows_kn, scale_k, bits_k), bits_k) * scale_k[:, None]
        return jnp.sum(jnp.square(values_kn - rows_kn), axis=1)

    # One clipping point after the other: fused into one loop over all of them, XLA on CPU takes 2 to 3 times longer.
    best_k = jnp.argmin(jax.lax.map(squared_error, scales_ck), axis=0)
    # Chosen before the codes are made: fused, XLA on CPU would choose again for every entry.
    scale_k = jax.lax.optimization_barrier(jnp.take_along_axis(scales_ck, best_k[None], axis=0)[0])
    codes_kn = _encode(rows_kn, scale_k, bits_k).astype(codes_dtype(most))
    # The best scale of these codes, by least squares: no row is worse than a zero one.
    levels_kn = levels(codes_kn, bits_k)
    energy_k = jnp.sum(jnp.square(levels_kn), axis=1)
    return codes_kn, jnp.sum(levels_kn * rows_kn, axis=1) / jnp.where(energy_k > 0, energy_k, 1.0)


def levels(codes_kn: Array, bits_k: Array) -> Array:
    """Returns the float32 values in (-1, 1) that the codes stand for, before scaling; 0 for a row of 0 bits."""
    steps_k1 = jnp.left_shift(1, bits_k)[:, None].astype(jnp.float32)
    # A small whole number over a power of two is exact: both ends have the same level to the last bit.
    t = (2 * codes_kn.astype(jnp.float32) + 1 - steps_k1) / steps_k1
    return t * (FLATNESS + (1 - FLATNESS) * jnp.abs(t))


def _encode(rows_kn: Array, scale_k: Array, bits_k: Array) -> Array:
    """Returns the codes of the levels next to the rows over their scale, float32."""
    values = rows_kn / jnp.where(scale_k == 0, 1.0, scale_k)[:, None]
    magnitude = jnp.minimum(jnp.abs(values), 1.0)
    # The root of t (f + (1 - f) t) = magnitude.
    t = 2 * magnitude / (FLATNESS + jnp.sqrt(FLATNESS**2 + 4 * (1 - FLATNESS) * magnitude))
    steps_k1 = jnp.left_shift(1, bits_k)[:, None].astype(jnp.float32)
    return jnp.clip(jnp.floor((jnp.sign(values) * t + 1) / 2 * steps_k1), 0, steps_k1 - 1)

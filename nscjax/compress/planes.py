"""Bit planes: rows of codes with any number of bits a row, packed densely, whatever the numbers are.

A row of w codes with b bits is b planes of ceil(w / 8) bytes, most significant first. The planes of all rows stand one
after the other, those that are sent in front, so that a frame cut to their count holds exactly them and the number of
bits may be traced: it moves where planes go, never a shape.
"""

import jax.numpy as jnp

from nscjax.types import Array

MOST_BITS = 8
"""The most bits of an entry, of the methods whose codes are bytes; `low_rank` has a choice of its own."""


def last_code(bits_n: Array) -> Array:
    """Returns the largest code of every row, 2**bits - 1, as float32; at least 1, so that it can be divided by."""
    return jnp.maximum(jnp.left_shift(1, bits_n) - 1, 1).astype(jnp.float32)


def pack(codes_nw: Array, bits_n: Array, most: int) -> Array:
    """Returns the planes [n * most, ceil(w / 8)] uint8 of the rows, the sum of `bits_n` of them in front, zeros behind.

    Args:
        codes_nw: [n, w] unsigned integers below 2**bits.
        bits_n: int32 [n], bits of each row, 0 to `most`.
        most: the largest number of bits.
    """
    n = codes_nw.shape[0]
    place_1p = jnp.arange(most)[None, :]
    shifts_np = jnp.maximum(bits_n[:, None] - 1 - place_1p, 0)
    bits_npw = (codes_nw[:, None, :] >> shifts_np[:, :, None].astype(codes_nw.dtype)) & 1
    planes = jnp.packbits(bits_npw.astype(bool), axis=-1)
    position_np = (jnp.cumsum(bits_n) - bits_n)[:, None] + place_1p
    # What is not sent has no place.
    position_np = jnp.where(place_1p < bits_n[:, None], position_np, n * most)
    empty = jnp.zeros((n * most, planes.shape[-1]), jnp.uint8)
    return empty.at[position_np.reshape(-1)].set(planes.reshape(n * most, -1), mode="drop")


def unpack(planes: Array, bits_n: Array, most: int, width: int) -> Array:
    """Returns the codes [n, width] uint16: the inverse of `pack`. A row of 0 bits has codes 0."""
    place_1p = jnp.arange(most)[None, :]
    position_np = (jnp.cumsum(bits_n) - bits_n)[:, None] + place_1p
    planes_npb = jnp.take(planes, position_np, axis=0, mode="clip")
    bits_npw = jnp.unpackbits(planes_npb, axis=-1, count=width).astype(jnp.uint16)
    is_sent_np = place_1p < bits_n[:, None]
    weights_np = jnp.where(is_sent_np, 1 << jnp.maximum(bits_n[:, None] - 1 - place_1p, 0), 0).astype(jnp.uint16)
    return jnp.sum(bits_npw * weights_np[:, :, None], axis=1, dtype=jnp.uint16)


def spread(num_planes: Array, n: int, most: int) -> Array:
    """Returns int32 [n], 0 to `most`: `num_planes` dealt out over n rows as evenly as can be, the first rows first."""
    return jnp.clip((num_planes + n - 1 - jnp.arange(n)) // n, 0, most)

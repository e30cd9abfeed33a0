"""Uniform quantisation between the tensor's least and largest entry.

Source: the quantiser that zfscgy/SplitLearning (`split_learn/modifiers.py`, the code of RandTopK, arXiv 2305.18469)
compares with: bins over the batch's [min, max], an entry is its bin's centre, gradients likewise. Departure: the number
of bits follows the budget, sample by sample.
"""

import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.scalar import scalar


def uniform(*, bits: int | None = None) -> Compressor:
    """Returns the uniform quantiser.

    Args:
        bits: of every entry, 1 to 8; by default as many as the budget affords.

    Raises:
        InputError: `bits` out of range.
    """

    def fit(x, bits):
        del bits
        return jnp.stack([jnp.min(x), jnp.max(x)])

    def to_unit(x, limits):
        low, high = limits
        return (x - low) / jnp.where(high > low, high - low, 1.0)

    def from_unit(values, limits):
        low, high = limits
        return low + values * (high - low)

    return scalar(fit, to_unit, from_unit, bits)

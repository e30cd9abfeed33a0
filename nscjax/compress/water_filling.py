"""How many bits every row gets: reverse water-filling, solved by bisection so that a budget is met to the last bit.

Source: Cover and Thomas, "Elements of Information Theory", section 10.3.3: a rate is spent best where a further bit
takes off most of the error. For real quantisers the gain of a bit is a little less than the factor 4 of the theory at
first, so that the thresholds come from measured ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nscjax.types import Array

BitsRule = Callable[[Array], Array]
"""t -> int32 [n] bits, rising with the scalar t in [-1, 1], all 0 at -1."""

GAINS = (0.55, 0.275, 0.121, 0.038, 0.011, 0.0033, 0.00097, 0.00025)
"""What the first, second, ... bit takes off the squared error of a row, as a share of its energy; each further one a
quarter of the one before. Measured on factors of captured tensors with the levels of `quantise`."""

LOWEST_LOG2 = -60.0
"""Rows with less than 2**-60 of the largest energy count as having that."""


def by_energy(energies: Array, most: int) -> BitsRule:
    """Returns t -> bits by reverse water-filling, 0 to `most` of them as t goes from -1 to 1.

    Of rows with equal energies the first get the next bit first. A row without energy gets none.

    Args:
        energies: float32 [n], mean square of every row or of its group, >= 0.
        most: the most bits of a row.
    """
    n, peak = energies.shape[0], jnp.max(energies)
    gains_b = np.log2([GAINS[min(bit, len(GAINS) - 1)] / 4.0 ** max(bit - len(GAINS) + 1, 0) for bit in range(most)])
    score_n = jnp.log2(energies / jnp.where(peak > 0, peak, 1.0))
    score_n = jnp.maximum(score_n, LOWEST_LOG2) - jnp.arange(n, dtype=jnp.float32) * (0.1 / n)
    # At the highest level the last bit of the row with the least energy is worth it.
    highest = 1.0 - gains_b[-1] - jnp.min(jnp.where(energies > 0, score_n, 0.0))

    def bits_of(t):
        level = (t + 1) / 2 * highest
        is_worth_nb = score_n[:, None] + gains_b.astype(np.float32)[None] + level >= 0
        return jnp.sum(is_worth_nb & (energies > 0)[:, None], axis=1, dtype=jnp.int32)

    return bits_of


def most_that_fit(bits_of: BitsRule, fits: Callable[[Array], Array]) -> Array:
    """Returns the largest `bits_of(t)` that fits, int32 [n]; t is bisected.

    Args:
        bits_of: rising with t; its value at t = -1 is the answer where nothing else fits.
        fits: from int32 [n] to a boolean scalar, falling with the bits.
    """

    def halve(_, carry):
        low, high, bits = carry
        middle = (low + high) / 2
        # Made once, then counted and kept: fused into both, rounding could count other bits than are kept.
        tried = jax.lax.optimization_barrier(bits_of(middle))
        is_small = fits(tried)
        return jnp.where(is_small, middle, low), jnp.where(is_small, high, middle), jnp.where(is_small, tried, bits)

    # A little beyond 1, so that 1 itself is tried, as good as.
    limits = jnp.float32(-1.0), jnp.float32(1.0 + 2.0**-12)
    *_, bits = jax.lax.fori_loop(0, 26, halve, (*limits, jnp.zeros_like(bits_of(limits[0]))))
    return bits

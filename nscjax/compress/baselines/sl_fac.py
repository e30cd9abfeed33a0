"""SL-FAC: low frequencies in many bits, high ones in few; where low ends is a share of the energy.

Source: arXiv 2604.07316, of which the abstract is public: DCT of the smashed data, an energy threshold separates
spectral components, bits by spectral energy, for activations and gradients. The rest is ours: the two-dimensional DCT
of every channel, frequencies in zigzag order, the first group ends where it holds `threshold` of the energy; half a
bit more for twice the mean energy, clipped to 8, at the highest level that fits the budget; the quantiser is
`nscjax.compress.banded`'s.
"""

import jax.numpy as jnp

from nscjax import check
from nscjax.compress import water_filling
from nscjax.compress.banded import Bands, banded, by_group, frequencies, mean_squares
from nscjax.compress.base import Compressor
from nscjax.compress.planes import MOST_BITS


def sl_fac(*, threshold: float = 0.9) -> Compressor:
    """Returns the SL-FAC compressor.

    Args:
        threshold: share of the squared norm that the low frequencies hold, in (0, 1].

    Raises:
        InputError: `threshold` out of range.
    """
    check.fraction("threshold", threshold)

    def see(shape):
        forward, inverse, _, size = frequencies(shape)

        def group(rows, state):
            energies = mean_squares(rows)
            before = jnp.cumsum(energies) - energies
            return (before >= threshold * jnp.sum(energies)).astype(jnp.int32), state

        def bits(rows, group):
            return water_filling.by_energy(by_group(mean_squares(rows), group, 2)[group], MOST_BITS)

        return Bands(size, 2, forward, inverse, group, bits)

    return banded(see)

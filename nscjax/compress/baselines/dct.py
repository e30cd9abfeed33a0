"""Transform coding as an engineer would do it: DCT, bits by the energy of every frequency band, no entropy coder.

The two-dimensional DCT of every channel (as JPEG's, over the whole plane); frequencies with the same sum of indices are
a band; bits by reverse water-filling over the bands at the highest level that fits the budget; a uniform quantiser
whose range is the best for a Laplace distribution of the band's energy at that number of bits. Source: Jayant and Noll
1984, "Digital coding of waveforms", chapters 4 and 12 (uniform quantisers; zonal coding).
"""

import jax.numpy as jnp

from nscjax import check
from nscjax.compress import water_filling
from nscjax.compress.banded import MOST_GROUPS, Bands, banded, by_group, frequencies, mean_squares
from nscjax.compress.base import Compressor
from nscjax.compress.planes import MOST_BITS


def dct(*, bands: int = MOST_GROUPS) -> Compressor:
    """Returns the zonal DCT coder.

    Args:
        bands: the most that get bits, >= 1, the lowest frequencies first.

    Raises:
        InputError: `bands` out of range.
    """
    check.count("bands", bands, 1)

    def see(shape):
        forward, inverse, order, size = frequencies(shape)
        num_groups = min(int(sum(shape[1:3])) if len(shape) == 4 else shape[1], MOST_GROUPS)
        band = jnp.minimum(order, num_groups - 1).astype(jnp.int32)

        def bits(rows, group):
            energies = by_group(mean_squares(rows), group, num_groups)
            sent = jnp.where(jnp.arange(num_groups) < bands, energies, 0.0)
            return water_filling.by_energy(sent[group], MOST_BITS)

        return Bands(size, num_groups, forward, inverse, lambda _rows, state: (band, state), bits)

    return banded(see)

"""Transform coding as an engineer would do it: DCT, bits by the energy of every frequency band, no entropy coder.

The two-dimensional DCT of every channel (as JPEG's, over the whole plane); frequencies with the same sum of indices are
a band; bits by reverse water-filling over the bands at the highest level that fits the budget; a uniform quantiser
whose range is the best for a Laplace distribution of the band's energy at that number of bits. Source: Jayant and Noll
1984, "Digital coding of waveforms", chapters 4 and 12 (uniform quantisers; zonal coding).
"""

import numpy as np

from nscjax import check
from nscjax.compress import water_filling
from nscjax.compress.banded import MOST_GROUPS, Bands, banded, by_group, frequencies, mean_squares
from nscjax.compress.base import Compressor
from nscjax.compress.planes import MOST_BITS


def dct(*, bands: int = MOST_GROUPS) -> Compressor:
    """Returns the zonal DCT coder.

    Args:
        bands: the most that cross, >= 1, the lowest frequencies first.

    Raises:
        InputError: `bands` out of range.
    """
    check.count("bands", bands, 1)

    def see(shape):
        forward, inverse, order, size = frequencies(shape, bands)
        num_groups = min(int(order[-1]) + 1, MOST_GROUPS)

        def bits(rows, group):
            return water_filling.by_energy(by_group(mean_squares(rows), group, num_groups)[group], MOST_BITS)

        return Bands(size, num_groups, forward, inverse, np.minimum(order, num_groups - 1), bits)

    return banded(see)

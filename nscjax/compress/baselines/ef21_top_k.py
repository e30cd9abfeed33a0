"""EF21 on Top-K: both ends keep h, the k largest entries of x - h cross, h moves by them.

Source: Richtarik et al. 2021, "EF21", arXiv 2106.05203, on activations as in Rudakov et al. 2023, arXiv 2401.07788: h
belongs to a position in the batch, whatever sample is there. Departures: as Top-K's, and h begins at zero. Error
feedback proper on Top-K is `error_feedback(top_k())`.
"""

import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.feedback import ef21
from nscjax.compress.sparse import sparse


def ef21_top_k(*, k: int | None = None) -> Compressor:
    """Returns EF21 on the Top-K sparsifier.

    Args:
        k: entries sent of every sample; by default as many as the budget affords.

    Raises:
        InputError: `k` below 1.
    """
    return ef21(sparse(lambda x, _k, _side: jnp.abs(x), k))

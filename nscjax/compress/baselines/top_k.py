"""Top-K: of every sample the k entries of largest magnitude.

Source: zfscgy/SplitLearning, `split_learn/modifiers.py` (the code of RandTopK, arXiv 2305.18469): positions cross with
the values on the way up; the gradient has the same support, so that only its values cross. Departures: values in
float16 (float32 there); of equal magnitudes exactly k are kept (there all); k follows the budget.
"""

import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.sparse import sparse


def top_k(*, k: int | None = None) -> Compressor:
    """Returns the Top-K sparsifier.

    Args:
        k: entries kept of every sample; by default as many as the budget affords.

    Raises:
        InputError: `k` below 1.
    """
    return sparse(lambda x, _k, _side: jnp.abs(x), k)

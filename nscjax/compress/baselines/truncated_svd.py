"""Truncated SVD: the best matrix of its rank (Eckart and Young 1936), the bound of every method of low rank.

It is here to be compared with: a full SVD of the cut tensor takes longer than the rest of the step. Its factors get the
bits of `nscjax.compress.low_rank`, each quantised for itself.
"""

import jax.numpy as jnp

from nscjax import check
from nscjax.compress import rank as ranks
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.low_rank import BITS, factorised


def truncated_svd(
    *, rank: int | None = None, max_rank: int = 16, factor_bits: int = 8, view: str = "auto"
) -> Compressor:
    """Returns the compressor by truncated SVD; its frames decode alone.

    Args:
        rank: the most components, >= 1; by default `max_rank`.
        max_rank: the most components, if `rank` is not given.
        factor_bits: the most bits of a factor entry, 4, 8 or 16.
        view: a view's name or "auto", see `nscjax.compress.view`.

    Raises:
        InputError: an argument out of range.
    """
    top = check.count("rank", rank, 1) if rank is not None else check.count("max_rank", max_rank, 1)
    check.one_of("factor_bits", factor_bits, BITS)

    def init(key, spec):
        del key
        views.resolve(view, spec.shape)
        return (), ()

    def find(matrix, state, key):
        del state, key
        left, lengths, right = jnp.linalg.svd(matrix, full_matrices=False)
        return (right if matrix.shape[0] < matrix.shape[1] else left.T), jnp.square(lengths)

    def carry(images, key):
        del images, key
        return ()

    return factorised(
        init,
        find,
        carry,
        ranks.fixed(top),
        max_rank=top,
        factor_bits=factor_bits,
        view=view,
        compensates=False,
        shares=False,
    )

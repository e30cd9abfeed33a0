"""RandTopK: Top-K in which a few of the kept entries are drawn from outside the top.

Source: Zheng et al. 2023, "Reducing communication for split learning by randomized top-k sparsification", arXiv
2305.18469, and zfscgy/SplitLearning, `split_learn/modifiers.py`: in training k entries are drawn without replacement,
each of the top k with probability (1 - alpha) / k, each other one with alpha / (d - k); values are not rescaled, the
gradient has the same support; evaluation is Top-K. Departures: as Top-K's. Samples whose id is below 0 are evaluated.
"""

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.compress.base import Compressor
from nscjax.compress.sparse import largest, sparse


def rand_top_k(*, alpha: float = 0.1, k: int | None = None) -> Compressor:
    """Returns the RandTopK sparsifier.

    Args:
        alpha: probability that a draw falls outside the top, in (0, 1].
        k: entries kept of every sample; by default as many as the budget affords.

    Raises:
        InputError: an argument out of range.
    """
    check.fraction("alpha", alpha)

    def score(x, k, side):
        batch, width = x.shape
        magnitude = jnp.abs(x)
        is_training = jnp.ones(batch, bool) if side.sample_ids is None else side.sample_ids >= 0
        inside, outside = (jnp.maximum(count, 1).astype(jnp.float32) for count in (k, width - k))
        inside, outside = jnp.log((1 - alpha) / inside), jnp.log(alpha / outside)
        # The k largest of log p + Gumbel noise are k draws without replacement (Efraimidis and Spirakis 2006).
        noise = jax.random.gumbel(side.key, x.shape)
        drawn = jnp.where(largest(magnitude, k), inside, outside) + noise
        return jnp.where(is_training[:, None], drawn, magnitude)

    return sparse(score, k)

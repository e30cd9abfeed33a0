"""Commitment: the client's own loss counts what its messages lose, so that less is lost in them.

No byte crosses for it. A network without it learns to do without what never crosses, and keeps it all the same; with
it, activations come to lie where messages can tell them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.compress.base import Compressor
from nscjax.types import Array


def commitment(weight: float) -> Callable[[Array, Array], Array]:
    """Returns the penalty (x, x_hat) -> weight / 2 ||x - x_hat||^2, mean over the batch; x_hat is taken as given.

    Args:
        weight: > 0.

    Source: van den Oord et al. 2017, "Neural discrete representation learning"; in split learning Wang et al. 2022,
    "FedLite", arXiv 2201.11865.
    """
    if not check.at_least("weight", weight, 0):
        raise check.error("weight", weight, "a number > 0")

    def penalty(x, x_hat):
        lost = x.astype(jnp.float32) - jax.lax.stop_gradient(x_hat).astype(jnp.float32)
        return weight / 2 * jnp.sum(jnp.square(lost)) / x.shape[0]

    return penalty


def committed(compressor: Compressor, weight: float) -> Compressor:
    """Returns an uplink's `compressor` whose client adds `commitment(weight)` to its loss."""
    return compressor._replace(penalty=commitment(weight))

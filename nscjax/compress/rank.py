"""Rank rules: the most components worth sending, from their energies.

A rule is a pure function (energies [k] falling, total energy) -> int32 rank, traced: a change of rank never recompiles.
What the budget affords is not its affair (`nscjax.compress.low_rank`).
"""

from collections.abc import Callable

import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array

RankRule = Callable[[Array, Array], Array]


def fixed(rank: int) -> RankRule:
    """Returns the rule of a given rank."""
    check.count("rank", rank, 1)

    def rule(energies_k, total):
        del total
        return jnp.minimum(rank, energies_k.shape[0])

    return rule


def by_energy(energy: float) -> RankRule:
    """Returns the rule r_E = min {r : sum_{i<=r} sigma_i^2 >= energy ||M||_F^2}: the fewest that hold the energy.

    With energy = 1 every component that carries anything is worth sending.

    Args:
        energy: share of the squared Frobenius norm to keep, in (0, 1].
    """
    check.fraction("energy", energy)

    def rule(energies_k, total):
        is_short_k = jnp.cumsum(energies_k) < energy * total
        return 1 + jnp.sum(is_short_k[:-1] & (energies_k > 0)[1:], dtype=jnp.int32)

    return rule

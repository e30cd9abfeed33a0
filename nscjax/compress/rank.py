"""Rank rules: how many components to send, from their energies and from what the budget affords.

A rule is a pure function (energies [k] falling, total energy, affordable rank) -> int32 rank, traced: a change of rank
never recompiles. Every rule keeps to what is affordable.
"""

from collections.abc import Callable

import jax.numpy as jnp

from nscjax import check
from nscjax.types import Array

RankRule = Callable[[Array, Array, Array], Array]


def fixed(rank: int) -> RankRule:
    """Returns the rule that sends `rank` components where the budget affords them."""
    check.at_least("rank", rank, 1)

    def rule(energies_k, total, affordable):
        del energies_k, total
        return jnp.minimum(rank, affordable)

    return rule


def budget() -> RankRule:
    """Returns the rule that sends all that the budget affords."""

    def rule(energies_k, total, affordable):
        del energies_k, total
        return affordable

    return rule


def energy_within_budget(energy: float) -> RankRule:
    """Returns the rule r = min(r_E, r_B): fewest components that hold `energy` of the total, if affordable.

    r_E = min {r >= 1 : sum_{i<=r} sigma_i^2 >= energy * ||M||_F^2}. At least one component is sent, so that a zero
    tensor is a message like any other; with energy = 1 every component that carries anything is worth sending.

    Args:
        energy: share of the squared Frobenius norm to keep, in (0, 1].
    """
    check.fraction("energy", energy)

    def rule(energies_k, total, affordable):
        is_short_k = jnp.cumsum(energies_k) < energy * total
        is_worth_k = energies_k > 0
        needed = 1 + jnp.sum(is_short_k[:-1] & is_worth_k[1:], dtype=jnp.int32)
        return jnp.minimum(needed, affordable)

    return rule

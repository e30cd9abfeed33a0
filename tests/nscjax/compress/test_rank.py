import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nscjax import check
from nscjax.compress import rank

ENERGIES = jnp.float32([8, 4, 2, 1, 1])
SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
RULES = {"fixed": rank.fixed(3)} | {f"energy {share}": rank.by_energy(share) for share in SHARES}
TRACED = {name: jax.jit(rule) for name, rule in RULES.items()}


def applied(rule, energies=ENERGIES, total=None):
    total = jnp.sum(energies) if total is None else jnp.float32(total)
    return int(rule(energies, total))


@pytest.mark.parametrize(("given", "expected"), [(1, 1), (3, 3), (5, 5), (9, 5)])
def test_fixed_is_its_rank_as_far_as_there_are_components(given, expected):
    assert applied(rank.fixed(given)) == expected


@pytest.mark.parametrize(
    ("energy", "expected"),
    [(0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9, 4), (0.9375, 4), (0.95, 5), (1.0, 5)],
)
def test_energy_sends_the_fewest_components_that_hold_it(energy, expected):
    assert applied(rank.by_energy(energy)) == expected


def test_energy_that_the_components_lack_takes_them_all():
    assert applied(rank.by_energy(0.9), total=100) == 5


def test_components_without_energy_are_not_worth_sending():
    assert applied(rank.by_energy(1.0), energies=jnp.float32([3, 2, 0, 0, 0])) == 2
    assert applied(rank.by_energy(1.0), energies=jnp.float32([3, 2, 0, 0, 0]), total=5.001) == 2


def test_a_zero_tensor_is_sent_as_one_component():
    assert applied(rank.by_energy(0.95), energies=jnp.zeros(5)) == 1


@pytest.mark.parametrize("name", RULES)
def test_the_rank_is_a_traced_int32(name):
    result = TRACED[name](ENERGIES, jnp.float32(16))
    assert result.dtype == jnp.int32
    assert result.shape == ()
    assert result == applied(RULES[name])


@given(st.lists(st.integers(0, 1000), min_size=5, max_size=5), st.sampled_from(SHARES), st.integers(0, 500))
def test_energy_agrees_with_its_definition(energies, share, beyond):
    energies = np.sort(np.float32(energies))[::-1]
    total = energies.sum() + np.float32(beyond)
    enough = [r for r in range(1, 6) if energies[:r].sum() >= np.float32(share) * total]
    needed = min([*enough, max(1, np.count_nonzero(energies))])
    rule = TRACED[f"energy {share}"]
    assert rule(jnp.asarray(energies), jnp.float32(total)) == needed


@pytest.mark.parametrize("energy", [0, 1.5, -1])
def test_energy_out_of_range_is_refused(energy):
    with pytest.raises(check.InputError, match=r"energy is .*; allowed: a number in \(0, 1\]"):
        rank.by_energy(energy)


def test_fixed_rank_below_1_is_refused():
    with pytest.raises(check.InputError, match="rank is 0; allowed: a whole number >= 1"):
        rank.fixed(0)

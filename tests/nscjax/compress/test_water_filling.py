import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nscjax.compress import water_filling
from nscjax.compress.water_filling import GAINS, by_energy, most_that_fit


@functools.partial(jax.jit, static_argnames="most")
def filled_at_once(energies, num_bits, most):
    return most_that_fit(by_energy(energies, most), lambda bits: jnp.sum(bits) <= num_bits)


def filled(energies, num_bits, most=8):
    """Returns the bits of rows of equal width when `num_bits` may be spent."""
    return filled_at_once(jnp.float32(energies), num_bits, most)


def greedy(energies, num_bits, most=8):
    """Returns the error left when every bit goes where it takes off most, one by one."""
    energies = np.asarray(energies, float)
    heap = [(-energy * GAINS[0], row, 0) for row, energy in enumerate(energies) if energy > 0]
    heapq.heapify(heap)
    left = energies.sum()
    for _ in range(num_bits):
        if not heap:
            break
        gain, row, bit = heapq.heappop(heap)
        left += gain
        if bit + 1 < most:
            heapq.heappush(heap, (-energies[row] * GAINS[bit + 1], row, bit + 1))
    return left


def left_over(energies, bits):
    return sum(energy * (1 - sum(GAINS[: int(b)])) for energy, b in zip(energies, bits))


def test_rows_with_more_energy_get_more_bits():
    energies = jnp.float32([64.0, 16.0, 4.0, 1.0, 0.0])
    bits_of = by_energy(energies, 8)
    before = np.zeros(5)
    for t in np.linspace(-1, 1, 41):
        bits = np.asarray(bits_of(jnp.float32(t)))
        assert bits[-1] == 0
        assert (np.diff(bits) <= 0).all()
        assert (bits >= before).all()
        before = bits
    assert list(bits_of(jnp.float32(1.0))) == [8, 8, 8, 8, 0]
    assert not np.any(bits_of(jnp.float32(-1.0)))


@pytest.mark.parametrize("num_bits", [0, 1, 5, 13, 39, 100])
def test_the_budget_is_used_and_kept(num_bits):
    bits = filled(np.full(10, 3.0), num_bits)
    assert bits.sum() == min(num_bits, 80)
    assert bits.max() - bits.min() <= 1


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=12), st.integers(0, 100))
def test_it_is_as_good_as_spending_bit_by_bit(energies, num_bits):
    bits = np.asarray(filled(energies, num_bits))
    assert bits.sum() <= num_bits
    # Ties apart, which are broken by the order of the rows.
    assert left_over(energies, bits) <= 1.1 * greedy(energies, max(num_bits - 1, 0)) + 1e-6 * sum(energies)


@pytest.mark.parametrize("most", [1, 4, 16])
def test_no_row_has_more_than_the_most(most):
    bits = filled([1e30, 1.0, 1e-30], 1000, most)
    assert list(bits) == [most] * 3


@pytest.mark.parametrize("energies", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_nothing_is_spent_on_what_has_no_energy(energies):
    bits = filled(energies, 7)
    assert 0 <= bits.sum() <= 7


def test_further_bits_take_off_a_quarter_each():
    assert water_filling.by_energy(jnp.ones(3), 16)(jnp.float32(1.0)).tolist() == [16] * 3

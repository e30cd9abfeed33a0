import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import linalg
from tests.nscjax.tensors import normal, of_rank, with_spectrum

WIDE, TALL = (9, 30), (30, 9)
KEY = jax.random.key(7)

orthonormal_rows = jax.jit(linalg.orthonormal_rows)
rayleigh_ritz = jax.jit(linalg.rayleigh_ritz)
subspace_iteration = jax.jit(linalg.subspace_iteration, static_argnums=3)


def assert_orthonormal(rows, atol=2e-6):
    rows = np.asarray(rows)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=atol)


def singular_energies(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2


@functools.cache
def basis(k, n):
    return orthonormal_rows(normal((k, n), seed=3), KEY)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_products_are_the_images_of_rows(shape):
    matrix = np.asarray(normal(shape))
    tall = matrix if shape[0] >= shape[1] else matrix.T
    short, long = np.asarray(normal((4, min(shape)))), np.asarray(normal((4, max(shape))))
    np.testing.assert_allclose(linalg.to_long(matrix, short), short @ tall.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(linalg.to_short(matrix, long), long @ tall, rtol=1e-4, atol=1e-5)


def test_energy_is_the_squared_norm_in_float32():
    # In bfloat16 a sum of ones stops at 256.
    total = linalg.energy(jnp.full((50, 50), 2, jnp.bfloat16))
    assert total.dtype == jnp.float32
    assert total == 10_000


def test_orthonormal_rows_are_orthonormal_and_span_the_rows():
    rows = np.asarray(normal((6, 40)))
    result = np.asarray(orthonormal_rows(rows, KEY))
    assert_orthonormal(result)
    np.testing.assert_allclose((rows @ result.T) @ result, rows, atol=1e-5)


def test_orthonormal_rows_of_any_lengths():
    """Rows of a warm basis have singular values for lengths, which span many orders of magnitude."""
    lengths = np.float32([1e5, 1e3, 1, 1e-1, 1.5e-1, 3])[:, None]
    result = orthonormal_rows(normal((6, 40)) * lengths, KEY)
    assert_orthonormal(result)


def test_orthonormal_rows_make_a_square_basis():
    assert_orthonormal(orthonormal_rows(normal((6, 6)), KEY))


@pytest.mark.parametrize("num_zero", [1, 5, 6])
def test_vanished_rows_are_drawn_anew(num_zero):
    rows = normal((6, 40)).at[:num_zero].set(0)
    result = np.asarray(orthonormal_rows(rows, KEY))
    assert_orthonormal(result)
    kept = np.asarray(rows[num_zero:])
    np.testing.assert_allclose((kept @ result.T) @ result, kept, atol=1e-5)


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3])
def test_nearly_parallel_rows_come_out_orthonormal(angle):
    rows = normal((6, 40))
    rows = rows.at[1].set(rows[0] + angle * rows[1])
    assert_orthonormal(orthonormal_rows(rows, KEY), atol=1e-5)


def test_equal_rows_do_not_break_the_basis():
    """One of them turns into rounding noise, which the next message makes good; but nothing into NaN."""
    rows = normal((6, 40))
    result = orthonormal_rows(rows.at[1].set(rows[0]), KEY)
    assert_orthonormal(result, atol=0.2)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_rayleigh_ritz_on_a_whole_basis_gives_the_singular_values(shape):
    matrix, k = normal(shape), min(shape)
    rows, energies = rayleigh_ritz(matrix, basis(k, k))
    assert rows.shape == (k, max(shape))
    assert_orthonormal(rows, atol=1e-4)
    np.testing.assert_allclose(energies, singular_energies(matrix), rtol=1e-4)


def test_ritz_energies_fall_and_estimate_from_below():
    matrix = with_spectrum(*TALL, decay=1.0)
    _, energies = rayleigh_ritz(matrix, basis(6, min(TALL)))
    assert (np.diff(energies) <= 0).all()
    assert (energies <= singular_energies(matrix)[:6] * (1 + 1e-5)).all()


def test_components_below_the_noise_floor_are_zero():
    matrix = of_rank(*WIDE, rank=2)
    left, energies = rayleigh_ritz(matrix, basis(6, min(WIDE)))
    assert (energies[:2] > 0).all()
    np.testing.assert_array_equal(energies[2:], 0)
    np.testing.assert_array_equal(left[2:], 0)
    assert_orthonormal(left[:2], atol=1e-4)


def test_a_zero_matrix_has_no_components():
    left, energies = subspace_iteration(jnp.zeros(WIDE), basis(6, min(WIDE)), KEY, 4)
    np.testing.assert_array_equal(energies, 0)
    np.testing.assert_array_equal(left, 0)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_iterations_converge_to_the_leading_singular_vectors(shape):
    matrix = with_spectrum(*shape, decay=1.5)
    left, energies = subspace_iteration(matrix, basis(6, min(shape)), KEY, 4)
    np.testing.assert_allclose(energies[:3], singular_energies(matrix)[:3], rtol=1e-2)
    tall = matrix if shape[0] >= shape[1] else matrix.T
    expected = np.linalg.svd(tall)[0][:, :3].T
    np.testing.assert_allclose(np.abs(np.sum(left[:3] * expected, axis=1)), 1, atol=1e-3)


def test_more_iterations_catch_more_energy():
    matrix = with_spectrum(*TALL, decay=0.7)
    caught = [np.sum(subspace_iteration(matrix, basis(6, min(TALL)), KEY, i)[1]) for i in (1, 2, 4)]
    assert caught[0] < caught[1] < caught[2] <= singular_energies(matrix)[:6].sum() * (1 + 1e-5)

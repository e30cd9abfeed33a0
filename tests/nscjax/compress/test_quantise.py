import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.compress import quantise
from tests.nscjax.tensors import distortion, normal

BITS = (1, 2, 4, 8, 16)
quantise_rows = jax.jit(quantise.quantise_rows, static_argnums=2)
levels = jax.jit(quantise.levels)


def coded(rows, bits):
    """Returns (codes, bits of every row, scale) of rows with the same bits."""
    bits_k = jnp.full(len(rows), bits, jnp.int32)
    codes, scale = quantise_rows(jnp.asarray(rows), bits_k, 8 if bits <= 8 else 16)
    return codes, bits_k, scale


def received(rows, bits):
    codes, bits_k, scale = coded(rows, bits)
    return np.asarray(levels(codes, bits_k)) * np.asarray(scale)[:, None]


def all_levels(bits):
    return np.asarray(levels(jnp.arange(2**bits)[None], jnp.int32([bits]))[0])


@pytest.mark.parametrize("bits", [0, *BITS])
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_codes_and_scales(bits, width):
    codes, _, scale = coded(normal((3, width)), bits)
    assert codes.shape == (3, width)
    assert codes.dtype == quantise.codes_dtype(bits)
    assert scale.shape == (3,)
    assert scale.dtype == jnp.float32
    assert int(codes.max()) < 2**bits


def test_every_row_has_its_own_bits():
    rows, bits_k = normal((4, 30)), jnp.int32([0, 1, 3, 8])
    codes, scale = quantise_rows(rows, bits_k, 8)
    values = levels(codes, bits_k) * scale[:, None]
    for row, bits in enumerate(bits_k):
        np.testing.assert_array_equal(values[row], received(rows[row : row + 1], int(bits))[0])
        assert len(np.unique(values[row])) <= 2**bits


@pytest.mark.parametrize("bits", BITS)
def test_levels_rise_symmetrically_about_zero(bits):
    values = all_levels(bits)
    assert (np.diff(values) > 0).all()
    np.testing.assert_allclose(values, -values[::-1], atol=1e-7)
    assert np.abs(values).max() < 1


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_are_densest_about_zero(bits):
    gaps = np.diff(all_levels(bits))[2 ** (bits - 1) :]
    assert (np.diff(gaps) > 0).all()


def test_a_row_of_0_bits_is_zero():
    assert not received(normal((3, 8)), 0).any()


@pytest.mark.parametrize("bits", BITS)
def test_a_row_and_its_negative_are_quantised_alike(bits):
    rows = np.asarray(normal((3, 50)))
    np.testing.assert_allclose(received(-rows, bits), -received(rows, bits), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_level_is_its_own_code(bits):
    """Values that stand on the levels come back as they were, up to the choice of the scale."""
    codes, _, _ = coded(all_levels(bits)[None].repeat(3, axis=0), bits)
    assert np.abs(np.asarray(codes, int) - np.arange(2**bits)).max() <= 2


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_error_is_within_the_widest_gap(bits):
    """The least error among the clipping points is no more than that of the point that clips nothing."""
    rows = np.asarray(normal((3, 8)).at[0, 0].set(40.0))
    widest = np.diff(all_levels(bits)).max() * np.abs(rows).max(axis=1)
    rms = np.sqrt(np.mean((received(rows, bits) - rows) ** 2, axis=1))
    assert (rms < widest / 2).all()


@pytest.mark.parametrize("tail", ["normal", "laplace", "student"])
@pytest.mark.parametrize(("bits", "bound"), [(1, 0.6), (2, 0.25), (4, 0.03), (8, 2e-4), (16, 1e-8)])
def test_what_the_bits_lose_whatever_the_tail(tail, bits, bound):
    rng = np.random.default_rng(0)
    draws = {"normal": rng.normal, "laplace": rng.laplace, "student": lambda size: rng.standard_t(4, size)}
    rows = np.float32(draws[tail](size=(16, 200)))
    assert distortion(rows, received(rows, bits)) < bound


@pytest.mark.parametrize("size", [1e-7, 1e-30, 1e30])
def test_precision_does_not_depend_on_the_size(size):
    rows = np.asarray(normal((3, 8)))
    np.testing.assert_allclose(received(rows * np.float32(size), 16), received(rows, 16) * np.float32(size), rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_a_zero_row_has_scale_0_and_harms_no_other(bits):
    rows = normal((3, 8)).at[1].set(0)
    codes, bits_k, scale = coded(rows, bits)
    assert scale[1] == 0
    assert np.isfinite(levels(codes, bits_k)).all()
    alone, _, _ = coded(rows[jnp.array([0, 0, 2])], bits)
    np.testing.assert_array_equal(codes[2], alone[2])


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_one_magnitude_is_exact(bits):
    """So that a constant tensor is."""
    rows = np.full((3, 8), -2.5, np.float32) * np.float32([1, 1, -1, 1, -1, 1, 1, -1])
    np.testing.assert_allclose(received(rows, bits), rows, rtol=1e-5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nscjax import check
from nscjax.compress import quantise
from tests.nscjax.tensors import distortion, normal

WIDTHS = (1, 2, 7, 8)
quantise_rows = jax.jit(quantise.quantise_rows, static_argnums=1)
pack = jax.jit(quantise.pack, static_argnums=1)
unpack = jax.jit(quantise.unpack, static_argnums=(1, 2))
levels = jax.jit(quantise.levels, static_argnums=1)


def received(rows, bits):
    codes, scale = quantise_rows(rows, bits)
    return np.asarray(levels(codes, bits)) * np.asarray(scale)[:, None]


@given(st.data(), st.sampled_from(WIDTHS), st.sampled_from([4, 8]))
def test_unpack_is_the_inverse_of_pack(data, width, bits):
    codes = data.draw(arrays.arrays(np.uint8, (3, width), elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    assert packed.shape == (3, quantise.packed_width(width, bits))
    assert packed.dtype == quantise.packed_dtype(bits)
    np.testing.assert_array_equal(unpack(packed, bits, width), codes)


def test_at_4_bits_the_first_half_sits_in_the_low_nibbles():
    packed = pack(np.uint8([[1, 2, 3, 4, 5]]), 4)
    np.testing.assert_array_equal(packed, np.uint8([[0x41, 0x52, 0x03]]))


@pytest.mark.parametrize(("bits", "width"), [(4, 4), (8, 7), (16, 7)])
def test_packed_width(bits, width):
    assert quantise.packed_width(7, bits) == width


@pytest.mark.parametrize("bits", quantise.BITS)
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_and_scales(bits, width):
    codes, scale = quantise_rows(normal((3, width)), bits)
    assert codes.shape == (3, width)
    assert codes.dtype == quantise.packed_dtype(bits)
    assert scale.shape == (3,)
    assert scale.dtype == jnp.float32
    assert bits == 16 or int(codes.max()) < 2**bits


def all_levels(bits):
    return np.asarray(levels(jnp.arange(2**bits, dtype=jnp.uint8)[None], bits)[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_rise_symmetrically_about_zero_but_for_the_first(bits):
    values = all_levels(bits)
    assert (np.diff(values) > 0).all()
    np.testing.assert_array_equal(values[1:], -values[:0:-1])
    assert values[2 ** (bits - 1)] == 0
    assert values[0] == -1


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_are_densest_about_zero(bits):
    gaps = np.diff(all_levels(bits))[2 ** (bits - 1) :]
    assert (np.diff(gaps) > 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_sparse_row_stays_sparse(bits):
    """A row with a single entry, on either side, comes back as it was: no level near zero stands in for zero."""
    rows = np.zeros((2, 1000), np.float32)
    rows[0, 3], rows[1, 5] = 2.5, -0.7
    np.testing.assert_allclose(received(rows, bits), rows, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_and_its_negative_are_quantised_alike(bits):
    rows = np.asarray(normal((3, 50)))
    np.testing.assert_array_equal(received(-rows, bits), -received(rows, bits))


@pytest.mark.parametrize("bits", [4, 8])
def test_every_level_is_its_own_code(bits):
    """Values that stand on the levels come back as they were, up to the choice of the scale."""
    values = all_levels(bits)[None].repeat(3, axis=0)
    codes, _ = quantise_rows(jnp.asarray(values), bits)
    assert np.abs(np.asarray(codes, int) - np.arange(2**bits)).max() <= 2


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_within_the_widest_gap(bits):
    """The least error among the clipping points is no more than that of the point that clips nothing."""
    rows = np.asarray(normal((3, 8)).at[0, 0].set(40.0))
    widest = np.diff(all_levels(bits)).max() * np.abs(rows).max(axis=1)
    rms = np.sqrt(np.mean((received(rows, bits) - rows) ** 2, axis=1))
    assert (rms < widest / 2).all()


@pytest.mark.parametrize("tail", ["normal", "laplace", "student"])
def test_4_bits_lose_a_few_percent_whatever_the_tail(tail):
    rng = np.random.default_rng(0)
    draws = {"normal": rng.normal, "laplace": rng.laplace, "student": lambda size: rng.standard_t(4, size)}
    rows = np.float32(draws[tail](size=(16, 200)))
    assert distortion(rows, received(rows, 4)) < 0.03
    assert distortion(rows, received(rows, 8)) < 2e-4


@pytest.mark.parametrize("size", [1, 1e-7, 1e-30, 1e30])
def test_at_16_bits_precision_does_not_depend_on_the_size(size):
    rows = np.asarray(normal((3, 8))) * np.float32(size)
    peak = np.abs(rows).max(axis=1, keepdims=True)
    assert (np.abs(received(rows, 16) - rows) <= 2**-11 * np.abs(rows) + 2**-24 * peak).all()


@pytest.mark.parametrize("bits", quantise.BITS)
def test_a_zero_row_has_scale_0_and_harms_no_other(bits):
    rows = normal((3, 8)).at[1].set(0)
    codes, scale = quantise_rows(rows, bits)
    assert scale[1] == 0
    assert np.isfinite(levels(codes, bits)).all()
    alone, _ = quantise_rows(rows[jnp.array([0, 0, 2])], bits)
    np.testing.assert_array_equal(codes[2], alone[2])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_one_magnitude_is_exact(bits):
    """So that a constant tensor is."""
    rows = np.full((3, 8), -2.5, np.float32) * np.float32([1, 1, -1, 1, -1, 1, 1, -1])
    np.testing.assert_allclose(received(rows, bits), rows, rtol=1e-6)


@pytest.mark.parametrize("bits", [0, 5, 32, "8"])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(check.InputError) as caught:
        quantise.packed_dtype(bits)
    assert str(caught.value) == f"factor_bits is {bits!r}; allowed: 4, 8, 16."

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax.compress import planes
from tests.nscjax.tensors import Counted

MOST = 5


def rows_of(bits, width, seed=0):
    """Codes of so many bits a row."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 1 << b, width) for b in bits]).astype(np.uint8)


@settings(max_examples=12)
@given(st.lists(st.integers(0, MOST), min_size=1, max_size=6), st.integers(1, 20))
def test_codes_come_back_from_the_planes_that_are_sent_alone(bits, width):
    codes, bits_n = rows_of(bits, width), jnp.asarray(bits, jnp.int32)
    packed = np.array(planes.pack(jnp.asarray(codes), bits_n, MOST))
    assert packed.shape == (len(bits) * MOST, -(-width // 8))
    assert not packed[sum(bits) :].any()
    packed[sum(bits) :] = 255  # what is not sent is not read
    np.testing.assert_array_equal(planes.unpack(jnp.asarray(packed), bits_n, MOST, width), codes)


def test_planes_are_most_significant_first():
    packed = planes.pack(jnp.asarray([[0b110, 0b001]], jnp.uint8), jnp.asarray([3]), 3)
    np.testing.assert_array_equal(packed[:, 0] >> 6, [0b10, 0b10, 0b01])


def test_bits_may_be_traced():
    counted = Counted(lambda codes, bits: planes.pack(codes, bits, 4))
    pack = jax.jit(counted)
    for bits in ([4, 0, 1], [1, 2, 3]):
        codes = rows_of(bits, 9)
        packed = pack(jnp.asarray(codes), jnp.asarray(bits))
        np.testing.assert_array_equal(planes.unpack(packed, jnp.asarray(bits), 4, 9), codes)
    assert counted.num_traces == 1


@pytest.mark.parametrize("num", [0, 1, 3, 4, 7, 12, 40])
def test_planes_are_dealt_out_evenly(num):
    bits = np.asarray(planes.spread(jnp.int32(num), 4, 3))
    assert bits.sum() == min(num, 12)
    assert bits.max() - bits.min() <= 1
    assert sorted(bits, reverse=True) == list(bits)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, measure
from nscjax.compress.base import Dense
from tests.nscjax.tensors import normal, side, spec


def test_distortion_is_the_relative_squared_error():
    assert measure.distortion(jnp.float32([3.0, 4.0]), jnp.float32([3.0, 3.0])) == pytest.approx(1 / 25)


def test_distortion_of_an_empty_message_is_1():
    x = normal((4, 6))
    assert measure.distortion(x, jnp.zeros_like(x)) == 1


def test_distortion_of_zero_received_as_zero_is_0():
    assert measure.distortion(jnp.zeros((3, 2)), jnp.zeros((3, 2))) == 0


@pytest.mark.parametrize("sent", [0.0, 1e-25])
def test_distortion_of_next_to_nothing_is_large_and_finite(sent):
    """A tensor of zeros received as residuals of earlier ones is no broken number."""
    measured = measure.distortion(jnp.full((3, 2), sent), jnp.ones((3, 2)))
    assert 1e30 < measured < np.inf


def test_distortion_of_bfloat16_is_reckoned_in_float32():
    x = jnp.ones((1000,), jnp.bfloat16)
    measured = measure.distortion(x, x.at[0].set(0))
    assert measured.dtype == jnp.float32
    assert measured == pytest.approx(1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("end", ["sent", "received"])
def test_distortion_does_not_hide_what_is_not_finite(value, end):
    x, broken = jnp.ones((4,)), jnp.ones((4,)).at[2].set(value)
    measured = measure.distortion(broken, x) if end == "sent" else measure.distortion(x, broken)
    assert not np.isfinite(measured)


@pytest.mark.parametrize("size", [1e20, 1e-20, 1e-30])
def test_distortion_does_not_depend_on_the_size_of_the_numbers(size):
    x, x_hat = normal((4, 6)), normal((4, 6), seed=1)
    expected = float(measure.distortion(x, x_hat))
    assert measure.distortion(size * x, size * x_hat) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def low_rank_payloads():
    x = normal((6, 8))
    compressor = compress.nsc_sl(max_rank=3)
    enc, _ = compressor.init(jax.random.key(1), spec(x))
    send = jax.jit(compressor.compress)
    return send(x, enc, side())[0], send(x, enc, side(budget_bytes=0))[0]


def test_rank_and_skipped_of_a_low_rank_payload(low_rank_payloads):
    sent, empty = low_rank_payloads
    assert (measure.rank(sent), measure.rank(empty)) == (3, 0)
    assert not measure.is_skipped(sent)
    assert measure.is_skipped(empty)


def test_a_payload_without_rank_is_never_skipped():
    dense = Dense(values=jnp.zeros((2, 3)))
    assert measure.rank(dense) is None
    assert not measure.is_skipped(dense)


def test_raw_bytes_are_those_of_float32():
    assert measure.raw_bytes((8, 4, 4, 16)) == 8192
    assert measure.raw_bytes(()) == 4

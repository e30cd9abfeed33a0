"""Every method in a program that has switched 64-bit numbers on: the same frames, the same dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, layout, wire
from tests.nscjax.tensors import Counted, normal, spec


@pytest.fixture
def x64():
    before = jax.numpy_dtype_promotion("standard")  # a user's program is not strict
    with jax.enable_x64(True), before:
        yield


@pytest.mark.parametrize("method", compress.METHODS)
def test_a_message_is_what_it_is_in_32_bits(method, x64):
    x = normal((8, 4, 4, 16))
    assert x.dtype == jnp.float32
    compressor = compress.METHODS[method]()
    enc, dec = compressor.init(jax.random.key(1), spec(x))
    budget_bytes = max(compressor.min_bytes(spec(x)), 1_500)
    side = compress.SideInfo(jax.random.key(2), budget_bytes, jnp.arange(8, dtype=jnp.int32))
    counted = Counted(compressor.compress)
    step = jax.jit(counted)
    payload, warm = step(x, enc, side)
    payload, again = step(x, warm, side)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (enc, warm, again)]
    assert dtypes[0] == dtypes[1] == dtypes[2]
    frame = wire.encode(payload)
    assert len(frame) == layout.num_bytes(payload) <= budget_bytes
    x_hat, _ = jax.jit(compressor.decompress)(wire.decode(frame), dec, side)
    assert x_hat.dtype == jnp.float32
    assert np.isfinite(x_hat).all()
    assert counted.num_traces == 1

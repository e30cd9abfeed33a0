import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, layout, wire
from nscjax.compress import base
from tests.nscjax.tensors import normal, side, spec


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
def test_identity_sends_every_bit_whatever_the_budget(dtype, budget_bytes):
    compressor = compress.identity()
    x = normal((3, 4, 5)).astype(dtype)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    payload, enc = compressor.compress(x, enc, side(budget_bytes))
    x_hat, dec = compressor.decompress(wire.decode(wire.encode(payload)), dec, side(budget_bytes))
    assert (enc, dec) == ((), ())
    assert x_hat.dtype == dtype
    np.testing.assert_array_equal(x_hat, x)


def test_identity_needs_its_whole_frame():
    compressor, struct = compress.identity(), jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)
    frame = wire.encode(base.Dense(values=jnp.ones((3, 4), jnp.bfloat16)))
    assert compressor.min_bytes(struct) == len(frame) == 24 + layout.frame_bytes(base.Dense(values=jnp.ones((0, 4))))


def test_side_info_needs_a_key_and_a_budget_alone():
    side = compress.SideInfo(key=jax.random.key(0), budget_bytes=50_000)
    assert side.sample_ids is None
    assert side.support is None


def test_a_duplex_shares_and_penalises_nothing_by_default():
    duplex = compress.Duplex(up=compress.identity(), down=compress.nsc_sl())
    side = compress.SideInfo(key=jax.random.key(0), budget_bytes=1)
    assert duplex.side_down("payload", side) is side
    assert duplex.client_penalty() is None


def test_methods_are_known_by_their_config_names():
    assert compress.METHODS["identity"] is compress.identity
    assert compress.METHODS["nsc_sl"] is compress.nsc_sl


def test_public_names_are_listed_and_there():
    assert len(set(compress.__all__)) == len(compress.__all__)
    assert all(hasattr(compress, name) for name in compress.__all__)

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, layout, wire
from nscjax.compress import view as views
from tests.nscjax.tensors import PLENTY, distortion, normal, side, spec, with_spectrum

MATRIX = with_spectrum(24, 40, decay=0.8)
ENERGY = 0.9


@functools.cache
def make():
    compressor = compress.nsc_sl(energy=ENERGY, max_rank=12, factor_bits=16)
    init, decompress = jax.jit(compressor.init, static_argnums=1), jax.jit(compressor.decompress)
    return compressor._replace(init=init, compress=jax.jit(compressor.compress), decompress=decompress)


def converged(budget_bytes=PLENTY):
    """Returns the payload of the fourth message."""
    compressor = make()
    enc, _ = compressor.init(jax.random.key(1), spec(MATRIX))
    for step in range(4):
        payload, enc = compressor.compress(MATRIX, enc, side(budget_bytes, step))
    return payload


def test_its_arguments_are_keywords_with_these_defaults():
    defaults = {name: p.default for name, p in inspect.signature(compress.nsc_sl).parameters.items()}
    assert defaults == {"max_rank": 16, "energy": 0.95, "factor_bits": 8, "iterations": 1, "view": "auto"}
    with pytest.raises(TypeError):
        compress.nsc_sl(16)


def test_a_message_from_tensor_to_tensor():
    x, key = normal((8, 4, 4, 16)), jax.random.key(0)
    c = compress.nsc_sl(max_rank=16, energy=0.95, factor_bits=8, iterations=1, view="auto")
    enc, dec = c.init(key, jax.ShapeDtypeStruct(x.shape, x.dtype))
    side = compress.SideInfo(key=key, budget_bytes=2_000)
    payload, enc = jax.jit(c.compress)(x, enc, side)
    x_hat, dec = jax.jit(c.decompress)(payload, dec, side)
    frame = wire.encode(payload)
    received = wire.decode(frame)
    assert len(frame) <= 2_000
    assert isinstance(received, compress.LowRank)
    np.testing.assert_allclose(c.decompress(received, dec, side)[0], x_hat, atol=1e-5)


def test_the_rank_is_the_least_that_holds_the_energy():
    energies = np.linalg.svd(np.asarray(MATRIX, np.float64), compute_uv=False) ** 2
    needed = 1 + int(np.argmax(np.cumsum(energies) >= ENERGY * energies.sum()))
    payload = converged()
    assert payload.rank == needed
    assert 1 < needed < 12
    assert distortion(MATRIX, make().decompress(payload, (), side())[0]) <= 1 - ENERGY + 1e-3


def test_the_budget_wins_over_the_energy():
    needed, budget_bytes = int(converged().rank), make().min_bytes(spec(MATRIX)) + 10
    assert 0 < converged(budget_bytes).rank < needed
    assert layout.num_bytes(converged(budget_bytes)) <= budget_bytes
    assert converged(budget_bytes=0).rank == 0


@pytest.mark.parametrize("energy", [0, 1.01, "0.9"])
def test_energy_out_of_range_is_refused(energy):
    with pytest.raises(check.InputError) as caught:
        compress.nsc_sl(energy=energy)
    assert str(caught.value) == f"energy is {energy!r}; allowed: a number in (0, 1]."


def test_gradients_of_1e_7_keep_their_precision():
    compressor = make()
    x = MATRIX * jnp.float32(1e-7)
    enc, dec = compressor.init(jax.random.key(1), spec(x))
    payload, _ = compressor.compress(x, enc, side())
    large, _ = compressor.compress(MATRIX, enc, side())
    assert payload.rank == large.rank
    lost = [distortion(y, compressor.decompress(p, dec, side())[0]) for y, p in ((x, payload), (MATRIX, large))]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_the_slow_view_both_ways():
    """What is slow crosses, up and down, in frames that decode alone; what is fast does not."""
    shape = (8, 8, 12, 5)
    slow = views.tensorise(
        normal(views.matrix_shape("BC,hw", shape), seed=1), "BC,hw", jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    gradient = normal(shape, seed=2)
    compressor = compress.nsc_sl(view="BC,hw", energy=1.0)
    send = jax.jit(compressor.compress)
    enc, dec = compressor.init(jax.random.key(1), spec(slow))
    for step in range(4):
        up, enc = send(slow + 5 * (gradient - low_pass(gradient)), enc, side(PLENTY, step))
    received = wire.decode(wire.encode(up))
    x_hat, _ = compressor.decompress(jax.tree.map(jnp.asarray, received), dec, side(PLENTY))
    assert distortion(slow, x_hat) < 1e-3
    known = side(PLENTY)._replace(support=compressor.support(up, enc))
    down, _ = send(gradient, enc, known)
    grad_hat, _ = compressor.decompress(down, dec, known)
    assert distortion(low_pass(gradient), grad_hat) < 1e-3


def low_pass(x):
    return views.tensorise(views.matricise(x, "BC,hw"), "BC,hw", spec(x))

"""The gradient in the subspace that its uplink has sent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, layout, wire
from nscjax.compress.low_rank import Coefficients, Subspace
from tests.nscjax.tensors import PLENTY, distortion, normal, side, spec, with_spectrum

SHAPE = (24, 40)
X, GRAD = with_spectrum(*SHAPE, 0.8), with_spectrum(*SHAPE, 0.8, seed=1)
UP = compress.nsc_sl(max_rank=6, energy=1.0)


@functools.cache
def jitted(compressor):
    return jax.jit(compressor.compress), jax.jit(compressor.decompress)


def uplink(x, budget_bytes=PLENTY, compressor=UP):
    """Returns (x_hat, the payload) of a first message."""
    enc, dec = compressor.init(jax.random.key(1), spec(x))
    payload, _ = jitted(compressor)[0](x, enc, side(budget_bytes))
    return jitted(compressor)[1](payload, dec, side())[0], payload


def downlink(grad, up_payload, budget_bytes=PLENTY, down=UP):
    """Returns (grad_hat, the payload, its side information)."""
    info = compress.Duplex(up=UP, down=down).side_down(up_payload, side(budget_bytes))
    enc, dec = down.init(jax.random.key(2), spec(grad))
    payload, after = jitted(down)[0](grad, enc, info)
    jax.tree.map(np.testing.assert_array_equal, after, enc)
    return jitted(down)[1](payload, dec, info)[0], payload, info


def test_the_gradient_is_projected_onto_what_the_server_saw():
    """The chain rule through x -> x_hat: no other part of the gradient has an effect."""
    x_hat, up_payload = uplink(X)
    grad_hat, payload, info = downlink(GRAD, up_payload)
    assert isinstance(payload, Coefficients)
    basis = np.linalg.svd(np.asarray(x_hat, np.float64))[0][:, :6]  # the short side of [24, 40] is the left one
    projected = basis @ basis.T @ np.asarray(GRAD)
    assert distortion(projected, grad_hat) < 2e-4
    np.testing.assert_allclose(np.linalg.matrix_rank(np.asarray(info.support.basis)), 6)


def test_it_costs_less_than_a_basis_of_its_own():
    _, up_payload = uplink(X)
    _, payload, _ = downlink(GRAD, up_payload)
    own = UP.compress(GRAD, UP.init(jax.random.key(2), spec(GRAD))[0], side())[0]
    assert layout.num_bytes(payload) < layout.num_bytes(own)
    assert len(wire.encode(payload)) == layout.num_bytes(payload)


@pytest.mark.parametrize("budget_bytes", range(0, 400, 25))
def test_the_budget_is_kept(budget_bytes):
    _, up_payload = uplink(X)
    grad_hat, payload, info = downlink(GRAD, up_payload, budget_bytes)
    if payload.rank == 0:
        assert not np.any(grad_hat)
        return
    frame = wire.encode(payload)
    assert len(frame) <= budget_bytes
    np.testing.assert_allclose(jitted(UP)[1](wire.decode(frame), (), info)[0], grad_hat, atol=1e-6)


def test_more_bytes_lose_less():
    _, up_payload = uplink(X)
    lost = [distortion(GRAD, downlink(GRAD, up_payload, budget)[0]) for budget in (90, 130, 200, 300, 600)]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > lost[-1]


def test_a_zero_gradient_is_a_message_and_the_answer_to_nothing_is_none():
    _, up_payload = uplink(X)
    assert downlink(jnp.zeros(SHAPE), up_payload)[1].rank == 1
    _, empty = uplink(X, budget_bytes=0)
    assert downlink(GRAD, empty)[1].rank == 0


def test_a_zero_tensor_still_hears_of_its_gradient():
    """Or a client whose units have all died could never learn again."""
    _, up_payload = uplink(jnp.zeros(SHAPE))
    grad_hat, payload, _ = downlink(1.0 + GRAD, up_payload)
    assert payload.rank > 0
    assert distortion(1.0 + GRAD, grad_hat) < 0.1


def test_the_basis_is_orthonormal_and_spans_what_crossed():
    x_hat, up_payload = uplink(X)
    basis = np.asarray(compress.Duplex(up=UP, down=UP).side_down(up_payload, side()).support.basis, np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-3)
    assert distortion(x_hat, basis.T @ basis @ np.asarray(x_hat)) < 1e-5


@pytest.mark.parametrize(("max_rank", "energy"), [(2, 1.0), (6, 0.1), (6, 1.0)])
def test_the_downlinks_own_rank_and_energy_apply(max_rank, energy):
    """The components with the most of the gradient are sent, wherever they stand."""
    _, up_payload = uplink(X)
    _, payload, info = downlink(GRAD, up_payload, down=compress.nsc_sl(max_rank=max_rank, energy=energy))
    is_sent = np.asarray(payload.bits) > 0
    energies = np.sum((np.asarray(info.support.basis) @ np.asarray(GRAD)) ** 2, axis=1)
    shares = np.cumsum(np.sort(energies)[::-1]) / np.sum(np.asarray(GRAD) ** 2)
    assert is_sent.sum() == min(max_rank, 1 + np.sum(shares[:-1] < energy))
    assert energies[is_sent].min() >= energies[~is_sent].max(initial=0.0)


def test_another_view_has_a_basis_of_its_own():
    x = normal((4, 3, 5, 6))
    up, down = (compress.nsc_sl(max_rank=3, view=view) for view in ("BC,HW", "BH,WC"))
    payload = uplink(x, compressor=up)[1]
    info = compress.Duplex(up=up, down=down).side_down(payload, side())
    assert info.support.view == "BC,HW"
    own, _ = jitted(down)[0](x, down.init(jax.random.key(2), spec(x))[0], info)
    assert isinstance(own, compress.LowRank)


def test_it_is_a_pytree_with_a_static_view():
    leaves, treedef = jax.tree.flatten(Subspace(jnp.ones((2, 3)), "B,D"))
    assert [leaf.shape for leaf in leaves] == [(2, 3)]
    assert treedef.unflatten(leaves).view == "B,D"


@pytest.mark.parametrize("down", ["top_k", "c3_sl", "splitfc", "dct", "truncated_svd"])
def test_a_gradient_of_another_method_is_sent_as_if_alone(down):
    compressor = compress.METHODS[down]()
    _, up_payload = uplink(X)
    info = compress.Duplex(up=UP, down=compressor).side_down(up_payload, side(2_000))
    assert info.support is None
    payload, _ = jitted(compressor)[0](GRAD, compressor.init(jax.random.key(2), spec(GRAD))[0], info)
    assert payload.rank > 0


def test_powersgd_of_more_components_than_the_matrix_has_sends_them_all():
    compressor = compress.METHODS["powersgd"](rank=16, error_feedback=False)
    x = normal((8, 100))
    payload, _ = jitted(compressor)[0](x, compressor.init(jax.random.key(2), spec(x))[0], side())
    assert payload.rank == 8
    assert layout.num_bytes(payload) == compressor.min_bytes(spec(x))

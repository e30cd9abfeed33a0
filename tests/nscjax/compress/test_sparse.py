import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, wire
from nscjax.compress.sparse import Sparse, SparseValues, largest
from tests.nscjax.tensors import normal, side, spec

X = normal((6, 3, 2, 5))
top_k = compress.METHODS["top_k"]


def sent(compressor, x, info):
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    payload, _ = compressor.compress(x, enc, info)
    return payload, compressor.decompress(payload, dec, info)[0]


@pytest.mark.parametrize("k", [0, 1, 4, 11, 12])
@pytest.mark.parametrize(
    "scores", [normal((5, 12)), -(normal((5, 12)) ** 2), jnp.zeros((5, 12)), jnp.full((5, 12), -jnp.inf)]
)
def test_largest_are_those_that_a_sort_finds(scores, k):
    found = np.asarray(largest(scores, jnp.int32(k)))
    # A stable sort of the negated scores takes the first of equal ones first.
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, order, True, axis=1)
    np.testing.assert_array_equal(found, expected)


def test_largest_tells_huge_from_tiny_and_minus_from_plus():
    scores = jnp.asarray([[1e-38, -1e38, 1e38, 0.0, -1e-38, -jnp.inf]])
    for k, expected in enumerate([2, 0, 3, 4, 1, 5], 1):
        assert largest(scores, jnp.int32(k))[0, expected]
        assert largest(scores, jnp.int32(k)).sum() == k


def test_kept_entries_are_the_largest_of_every_sample():
    payload, x_hat = sent(top_k(k=4), X, side())
    assert payload.rank == 4
    rows, rows_hat = np.asarray(X).reshape(6, -1), np.asarray(x_hat).reshape(6, -1)
    for row, row_hat in zip(rows, rows_hat):
        kept = np.argsort(-np.abs(row))[:4]
        assert set(np.flatnonzero(row_hat)) == set(kept)
        np.testing.assert_allclose(row_hat[kept], row[kept], rtol=1e-3)


def test_bytes_are_values_and_indices_bit_by_bit():
    least = compress.METHODS["top_k"]().min_bytes(spec(X))
    more = top_k(k=2).min_bytes(spec(X))
    assert more - least == 6 * 2 + 5 * 1  # six values of two bytes, five bits (of 30 entries) of six samples in a byte


def test_the_gradient_has_the_support_of_the_activations_and_no_indices():
    duplex = compress.Duplex(up=top_k(k=7), down=top_k())
    up, x_hat = sent(duplex.up, X, side())
    info = duplex.side_down(up, side(seed=1))
    gradient = normal(X.shape, seed=3)
    down, gradient_hat = sent(duplex.down, gradient, info)
    assert isinstance(up, Sparse)
    assert isinstance(down, SparseValues)
    assert down.rank == up.rank
    assert len(wire.encode(down)) < len(wire.encode(up))
    np.testing.assert_allclose(gradient_hat, jnp.where(x_hat != 0, gradient, 0), rtol=1e-3, atol=1e-3)


def test_a_small_budget_cuts_the_gradients_values_off():
    up, x_hat = sent(top_k(k=7), X, side())
    full = compress.Duplex(up=top_k(), down=top_k()).side_down(up, side())
    least = len(wire.encode(sent(top_k(), X, full)[0])) - 3 * 12
    few, gradient_hat = sent(top_k(), X, full._replace(budget_bytes=jnp.int32(least)))
    assert few.rank == 4
    assert np.count_nonzero(gradient_hat) == 4 * 6
    assert not np.any(np.asarray(gradient_hat)[np.asarray(x_hat) == 0])


def test_an_empty_uplink_is_answered_by_an_empty_downlink():
    up, _ = sent(top_k(), X, side(0))
    down, gradient_hat = sent(top_k(), X, compress.Duplex(up=top_k(), down=top_k()).side_down(up, side()))
    assert up.rank == down.rank == 0
    np.testing.assert_array_equal(gradient_hat, 0)


def kept_by_rand_top_k(alpha, sample_ids, num=300):
    """How often every entry of one sample was kept; entry i has magnitude i + 1."""
    x = jnp.broadcast_to(jnp.arange(1.0, 11.0), (4, 10))
    compressor = compress.METHODS["rand_top_k"](alpha=alpha, k=3)
    enc, dec = compressor.init(jax.random.key(0), spec(x))

    @jax.jit
    def kept(seed):
        info = compress.SideInfo(jax.random.key(seed), jnp.int32(1 << 20), sample_ids)
        payload, _ = compressor.compress(x, enc, info)
        return compressor.decompress(payload, dec, info)[0] != 0

    return np.mean([np.asarray(kept(seed)) for seed in range(num)], axis=(0, 1))


def test_rand_top_k_draws_with_the_probabilities_of_its_source():
    """NumPy draws k of the entries without replacement, the top ones with probability (1 - alpha) / k each."""
    rng = np.random.default_rng(0)
    p = np.where(np.arange(10) >= 7, (1 - 0.4) / 3, 0.4 / 7)
    expected = np.zeros(10)
    for _ in range(4000):
        expected[rng.choice(10, 3, replace=False, p=p)] += 1 / 4000
    np.testing.assert_allclose(kept_by_rand_top_k(0.4, None), expected, atol=0.06)


def test_rand_top_k_is_top_k_in_evaluation():
    kept = kept_by_rand_top_k(0.9, jnp.full(4, -1), num=5)
    np.testing.assert_array_equal(kept, np.arange(10) >= 7)

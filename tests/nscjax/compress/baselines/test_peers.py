"""Every peer against its formula, worked out independently in NumPy, SciPy and scikit-learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from sklearn.cluster import KMeans

from nscjax import compress, layout, linalg, wire
from nscjax.check import InputError
from nscjax.compress import banded
from tests.nscjax.tensors import PLENTY, distortion, normal, side, spec, with_spectrum

METHODS = compress.METHODS
X = normal((4, 3, 5, 6))


def message(compressor, x, info=None, state=None):
    """Returns (payload, x_hat, sender's state) of one message."""
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    info = side() if info is None else info
    payload, enc = jax.jit(compressor.compress)(x, enc if state is None else state, info)
    return payload, jax.jit(compressor.decompress)(payload, dec, info)[0], enc


# ---- scalar quantisers ----


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_uniform_sends_the_centre_of_the_bin(bits):
    x = np.asarray(X)
    width = (x.max() - x.min()) / 2**bits
    expected = x.min() + (np.minimum(np.floor((x - x.min()) / width), 2**bits - 1) + 0.5) * width
    np.testing.assert_allclose(message(METHODS["uniform"](bits=bits), X)[1], expected, atol=1e-5)


def test_bits_are_dealt_out_sample_by_sample():
    payload, _, _ = message(METHODS["uniform"](), X)
    budget = layout.frame_bytes(payload, rank=2 * 4 + 3)
    payload, x_hat, _ = message(METHODS["uniform"](), X, side(budget))
    assert payload.rank == 11
    levels = [len(np.unique(np.asarray(sample))) for sample in x_hat]
    assert [max(2, int(np.ceil(np.log2(n)))) for n in levels] == [3, 3, 3, 2]


def test_a_fixed_number_of_bits_is_all_or_nothing():
    compressor = METHODS["uniform"](bits=3)
    least = compressor.min_bytes(spec(X))
    assert message(compressor, X, side(least))[0].rank == 12
    assert message(compressor, X, side(least - 1))[0].rank == 0


def test_power_quant_takes_the_exponent_of_least_error():
    from nscjax.compress.baselines.power_quant import EXPONENTS

    x = np.sign(normal((8, 40))) * np.abs(normal((8, 40))) ** 3  # heavy tails
    peak = np.abs(x).max()

    def sent(a):
        unit = (np.sign(x) * np.abs(x / peak) ** a + 1) / 2
        power = 2 * (np.minimum(np.floor(unit * 16), 15) + 0.5) / 16 - 1
        return peak * np.sign(power) * np.abs(power) ** (1 / a)

    errors = [np.sum((sent(a) - x) ** 2) for a in EXPONENTS]
    payload, x_hat, _ = message(METHODS["power_quant"](bits=4), jnp.asarray(x, jnp.float32))
    assert payload.params[1] == np.float32(EXPONENTS[np.argmin(errors)])
    assert payload.params[1] < 1
    np.testing.assert_allclose(x_hat, sent(EXPONENTS[np.argmin(errors)]), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_aq_sgd_has_a_scale_a_feature_and_a_level_at_zero(bits):
    x = np.asarray(normal((4, 3, 6))) * np.arange(1, 7, dtype=np.float32)
    scale, half = np.abs(x).max(axis=(0, 1)), 2.0 ** (bits - 1)
    expected = np.clip(np.floor(x / scale * half + 0.5), -half, half - 1) / half * scale
    np.testing.assert_allclose(
        message(METHODS["aq_sgd"](num_samples=0, bits=bits), jnp.asarray(x))[1], expected, atol=1e-5
    )
    # The first message of a sample is its change from nothing.
    info = side(sample_ids=jnp.arange(4))
    first = message(METHODS["aq_sgd"](num_samples=4, bits=bits), jnp.asarray(x), info)[1]
    np.testing.assert_allclose(first, expected, atol=1e-5)


def test_aq_sgd_sends_changes_of_samples():
    compressor = METHODS["aq_sgd"](num_samples=10, bits=4)
    ids = jnp.asarray([7, 1, 0, 3], jnp.int32)
    enc, dec = compressor.init(jax.random.key(0), spec(X))
    errors = []
    for _ in range(4):
        payload, enc = compressor.compress(X, enc, side(sample_ids=ids))
        x_hat, dec = compressor.decompress(payload, dec, side(sample_ids=ids))
        errors.append(distortion(X, x_hat))
    # What is left shrinks at least as a bin of 1/16 of it.
    assert all(later < earlier / 8 for earlier, later in itertools.pairwise(errors))
    np.testing.assert_array_equal(enc.cache, dec.cache)


# ---- vectors ----


def test_fedlite_is_k_means_of_subvectors():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 3)) * 5
    points = centres[rng.integers(0, 8, 16 * 4)] + 0.01 * rng.normal(size=(64, 3))
    x = jnp.asarray(points.reshape(16, 12), jnp.float32)
    compressor = METHODS["fedlite"](subvector=3, bits=3)
    state = None
    for step in range(10):
        payload, x_hat, state = message(compressor, x, side(seed=step), state)
    # From where it has come to, scikit-learn finds nothing better.
    centroids = np.asarray(payload.centroids, np.float32) * np.asarray(payload.scale)
    again = KMeans(8, init=centroids, n_init=1).fit(points)
    assert np.sum((np.asarray(x_hat) - np.asarray(x)) ** 2) < 1.02 * again.inertia_ + 1e-3
    frame = wire.encode(payload)
    assert len(frame) == layout.frame_bytes(payload) + 8 * 3 * 2 + 3 * 64 // 8


def test_fedlite_adds_its_correction_to_the_clients_loss():
    duplex = compress.Duplex(up=METHODS["fedlite"](weight=0.5, subvector=2, bits=1), down=compress.identity())
    x = normal((3, 4))
    payload, x_hat, state = message(duplex.up, x)
    assert np.any(np.abs(x - x_hat) > 0.1)
    np.testing.assert_allclose(jax.grad(duplex.client_penalty())(x, payload, state), 0.5 * (x - x_hat) / 3, rtol=1e-5)
    assert compress.Duplex(up=METHODS["fedlite"](weight=0.0), down=compress.identity()).client_penalty() is None


def test_c3_sl_binds_by_circular_convolution():
    payload, x_hat, keys = message(METHODS["c3_sl"](groups=2), X)
    rows, keys = np.asarray(X).reshape(4, -1), np.asarray(keys)
    d = rows.shape[1]
    places = np.arange(d)
    convolved = np.stack([[k @ x[(i - places) % d] for i in places] for k, x in zip(keys, rows)])
    sums = np.stack([convolved[[0, 2]].sum(axis=0), convolved[[1, 3]].sum(axis=0)])
    np.testing.assert_allclose(np.asarray(payload.scale)[:2, None] * np.asarray(payload.sums)[:2], sums, atol=5e-3)
    correlated = np.stack([[keys[n] @ sums[n % 2][(i + places) % d] for i in places] for n in range(4)])
    np.testing.assert_allclose(np.asarray(x_hat).reshape(4, -1), correlated, atol=5e-3)


def test_the_gradient_of_c3_sl_is_exact():
    """Sending the gradient by the same keys is the chain rule through encoder and decoder."""
    compressor = METHODS["c3_sl"](groups=2)
    gradient = normal(X.shape, seed=5)

    def through(x):
        rows, keys = x.reshape(4, -1), compressor.init(jax.random.key(0), spec(x))[0]
        bound = jnp.fft.irfft(jnp.fft.rfft(keys) * jnp.fft.rfft(rows), n=rows.shape[1])
        sums = jnp.stack([bound[0] + bound[2], bound[1] + bound[3]])
        mine = sums[jnp.asarray([0, 1, 0, 1])]
        return jnp.fft.irfft(jnp.conj(jnp.fft.rfft(keys)) * jnp.fft.rfft(mine), n=rows.shape[1]).reshape(x.shape)

    (expected,) = jax.vjp(through, X)[1](gradient)
    np.testing.assert_allclose(message(compressor, gradient)[1], expected, atol=5e-3)


def test_the_gradient_of_c3_sl_has_the_activations_groups_or_is_skipped():
    compressor = METHODS["c3_sl"]()
    up, _, _ = message(compressor, X, side(layout.frame_bytes(message(compressor, X)[0], rank=2)))
    info = compress.Duplex(up=compressor, down=compressor).side_down(up, side())
    assert up.rank == message(compressor, X, info)[0].rank == 2
    few = info._replace(budget_bytes=jnp.int32(compressor.min_bytes(spec(X))))
    assert message(compressor, X, few)[0].rank == 0


def test_a_codebook_of_fewer_bits_decodes_with_the_default():
    payload, x_hat, _ = message(METHODS["fedlite"](bits=3), X)
    _, dec = METHODS["fedlite"]().init(jax.random.key(0), spec(X))
    np.testing.assert_array_equal(METHODS["fedlite"]().decompress(payload, dec, side())[0], x_hat)


@pytest.mark.parametrize("subvector", [2, 4])
def test_k_means_sees_every_channel(subvector):
    """Channels of different spread: a sample that met only some would have no centroid near the others."""
    scale = jnp.asarray(np.repeat([1.0, 9.0, 1.0, 5.0], 4), jnp.float32).reshape(1, 1, 1, 16)
    x = normal((32, 16, 16, 16)) * scale + 10 * scale
    compressor, state = METHODS["fedlite"](subvector=subvector, bits=4), None
    for _ in range(4):
        _, x_hat, state = message(compressor, x, side(), state)
    lost = jnp.sum(jnp.square(x - x_hat), axis=(0, 1, 2)) / jnp.sum(jnp.square(x), axis=(0, 1, 2))
    assert lost.max() < 0.02


def test_power_quant_is_fitted_for_the_bits_that_most_samples_get():
    x = jnp.asarray(np.random.default_rng(0).standard_t(2, size=(64, 32)), jnp.float32)
    compressor = METHODS["power_quant"]()
    full = message(METHODS["power_quant"](bits=2), x)[0]
    below, _, _ = message(compressor, x, side(layout.frame_bytes(full, rank=2 * 64) - 1))
    assert below.rank == 127
    assert below.params[1] == full.params[1]


# ---- columns ----


def test_splitfc_keeps_columns_by_their_spread_and_stays_unbiased():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 20)) * np.linspace(0.2, 2, 20), jnp.float32)
    compressor = METHODS["splitfc"](bits=8)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    budget = layout.frame_bytes(compressor.compress(x, enc, side(0))[0], rank=8)

    @jax.jit
    def sent(seed):
        info = compress.SideInfo(jax.random.key(seed), jnp.int32(budget))
        payload, _ = compressor.compress(x, enc, info)
        return payload.rank, compressor.decompress(payload, dec, info)[0]

    ranks, x_hats = zip(*(sent(seed) for seed in range(400)))
    assert set(map(int, ranks)) == {8}
    kept = np.mean([np.any(np.asarray(x_hat) != 0, axis=0) for x_hat in x_hats], axis=0)
    spread = np.asarray(x).std(axis=0)
    np.testing.assert_allclose(kept, 8 * spread / spread.sum(), atol=0.07)
    bias = np.mean(x_hats, axis=0) - np.asarray(x)
    assert np.sum(bias**2) < 0.05 * np.sum(np.asarray(x) ** 2)


def test_splitfc_drops_the_gradients_columns_and_carries_the_weights():
    compressor = METHODS["splitfc"](bits=8)
    x = normal((32, 20))
    budget = layout.frame_bytes(message(compressor, x, side(0))[0], rank=8)
    up, x_hat, _ = message(compressor, x, side(budget))
    info = compress.Duplex(up=compressor, down=compressor).side_down(up, side())
    gradient = normal((32, 20), seed=4)
    _, gradient_hat, _ = message(compressor, gradient, info)
    kept = np.any(np.asarray(x_hat) != 0, axis=0)
    weights = np.where(kept, np.asarray(info.support), 0)
    assert kept.sum() == 8
    assert weights.max() > 1.5
    np.testing.assert_allclose(gradient_hat, np.asarray(gradient) * weights, atol=0.05)


def test_splitfc_gives_wide_columns_more_bits():
    x = normal((64, 6)) * jnp.asarray([[8.0, 4.0, 2.0, 1.0, 0.5, 0.25]])
    payload, _, _ = message(METHODS["splitfc"](bits=4), x, side(sample_ids=jnp.full(64, -1)))
    bits = np.asarray(payload.column_bits).astype(int)
    assert 22 <= bits.sum() <= 24
    # Twice the range is one bit more: the closed-form optimum, in whole bits, that sums to the budget.
    span = np.log2(np.asarray(x).max(axis=0) - np.asarray(x).min(axis=0))
    optimum = span + (24 - span.sum()) / 6
    assert np.all(np.abs(bits - optimum) <= 1.01)


def test_splitfc_draws_in_an_evaluation_as_in_training():
    """Batch normalisation behind the cut has learned from columns that are divided by their probability."""
    x, compressor = normal((64, 20)), METHODS["splitfc"]()
    budget = layout.frame_bytes(message(compressor, x, side(0))[0], rank=3)
    payloads = (message(compressor, x, side(budget, sample_ids=ids))[0] for ids in (jnp.arange(64), jnp.full(64, -1)))
    jax.tree.map(np.testing.assert_array_equal, *payloads)


# ---- bands ----


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_dct_is_scipys(n):
    x = np.random.default_rng(0).normal(size=(n, 7))
    np.testing.assert_allclose(linalg.dct_matrix(n) @ x, scipy.fft.dct(x, axis=0, norm="ortho"), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 5, 6), (4, 9)])
def test_frequencies_are_the_dct_in_zigzag_order_and_back(shape):
    x = normal(shape)
    forward, inverse, order, (n, width) = banded.frequencies(shape)
    rows = forward(x)
    assert rows.shape == (n, width)
    assert list(order) == sorted(order)
    sums = np.add.outer(np.arange(shape[1]), np.arange(shape[2]) if len(shape) == 4 else np.zeros(1, int))
    places = np.argsort(sums.reshape(-1), kind="stable")
    np.testing.assert_allclose(inverse(rows), x, atol=1e-5)
    axes = {4: (1, 2), 3: (1,), 2: (1,)}[len(shape)]
    spectrum = scipy.fft.dctn(np.asarray(x), axes=axes, norm="ortho")
    # A row a frequency, in it samples and channels.
    expected = np.moveaxis(spectrum.reshape(shape[0], n, -1), 1, 0).reshape(n, -1)[places]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    forward, inverse, order, (few, _) = banded.frequencies(shape, 2)
    np.testing.assert_allclose(forward(x), expected[:few], atol=1e-5)
    assert max(order) < 2
    np.testing.assert_allclose(forward(inverse(forward(x))), expected[:few], atol=1e-5)


def test_dct_sends_smooth_planes_in_few_bytes():
    t = np.linspace(0, 1, 16)
    smooth = np.random.default_rng(0).normal(size=(8, 1, 1, 4)) * (t[:, None] + t[None, :] ** 2)[None, :, :, None]
    x = jnp.asarray(smooth, jnp.float32)
    budget = 4 * x.size // 20
    assert distortion(x, message(METHODS["dct"](), x, side(budget))[1]) < 0.01
    assert distortion(x, message(METHODS["uniform"](bits=1), x)[1]) > 0.1


def test_dct_sends_its_lowest_bands_alone():
    x = normal((4, 8, 8, 2))
    payload, x_hat, _ = message(METHODS["dct"](bands=3), x, side(4 * x.size // 2))
    assert payload.bits.shape == (6,)
    spectrum = scipy.fft.dctn(np.asarray(x_hat), axes=(1, 2), norm="ortho")
    is_low = np.add.outer(np.arange(8), np.arange(8)) < 3
    assert np.abs(spectrum[:, ~is_low]).max() < 1e-5
    assert np.abs(spectrum[:, is_low]).max() > 1


def test_sl_fac_ends_the_low_frequencies_at_its_share_of_the_energy():
    x = normal((2, 4, 4, 3)) * jnp.linspace(2, 0.1, 16).reshape(1, 4, 4, 1)
    payload, _, _ = message(METHODS["sl_fac"](threshold=0.7), x)
    rows = np.asarray(banded.frequencies(x.shape)[0](x))
    energies = np.sum(rows**2, axis=1)
    num_low = int(np.sum(np.asarray(payload.group) == 0))
    assert energies[:num_low].sum() >= 0.7 * energies.sum() - 1e-4
    assert energies[: num_low - 1].sum() < 0.7 * energies.sum()
    assert list(payload.group) == sorted(payload.group)


def test_sl_acc_groups_channels_by_entropy_blended_with_its_history():
    from nscjax.compress.baselines.sl_acc import entropy, kmeans

    rows = np.abs(np.random.default_rng(0).normal(size=(5, 40))) ** np.arange(1, 6)[:, None]
    p = rows / rows.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(entropy(jnp.asarray(rows, jnp.float32)), -(p * np.log2(p)).sum(axis=1), rtol=1e-4)
    values = jnp.asarray([1.0, 5.1, 1.1, 9.0, 5.0])
    found = np.asarray(kmeans(values, 3))
    expected = KMeans(3, n_init=5, random_state=0).fit(np.asarray(values)[:, None]).labels_
    assert len({*zip(found.tolist(), expected.tolist())}) == 3
    compressor = METHODS["sl_acc"]()
    _, _, state = message(compressor, X)
    _, _, state = message(compressor, 0 * X, state=state)
    np.testing.assert_allclose(state.mean, entropy(X.reshape(-1, 6).T) / 2, rtol=1e-4)
    assert state.num_messages == 2


def test_sl_acc_remembers_how_channels_were():
    """Channels that were peaked for many messages are grouped by that, whatever this message looks like."""
    rng = np.random.default_rng(0)
    even, peaked = np.abs(rng.normal(size=(64, 3))) + 1, np.zeros((64, 3))
    peaked[0] = 5.0
    x = jnp.asarray(np.concatenate([even, peaked], axis=1), jnp.float32)
    compressor, state = METHODS["sl_acc"](groups=2), None
    for _ in range(9):
        _, _, state = message(compressor, x, state=state)
    odd = x[:, np.array([0, 1, 3, 2, 4, 5])]  # one of either kind looks like the other now
    with_history = np.asarray(message(compressor, odd, state=state)[0].group)
    without = np.asarray(message(compressor, odd)[0].group)
    assert len(set(with_history[:3])) == 1
    assert with_history[0] != with_history[3]
    assert without[2] == without[4]
    assert without[3] == without[0]


def test_a_band_has_the_levels_of_the_best_quantiser_of_a_laplace_distribution():
    """Jayant and Noll's table, by a search of our own: the range of least error for 1 to 5 bits."""
    x = np.random.default_rng(0).laplace(scale=2**-0.5, size=400_000)
    for bits in range(1, 6):
        last = 2**bits - 1

        def lost(reach, last=last):
            codes = np.clip(np.round((x / reach + 1) / 2 * last), 0, last)
            return np.mean((reach * (2 * codes / last - 1) - x) ** 2)

        reaches = np.linspace(0.3, 8, 155)
        best = reaches[np.argmin([lost(reach) for reach in reaches])]
        assert banded.LAST_LEVEL[bits] == pytest.approx(best, rel=0.08)


def test_sl_acc_gives_bits_by_entropy():
    flat, peaked = np.ones((64, 2)) * [[1.0, -1.0]], np.zeros((64, 2))
    peaked[:3] = 5.0
    x = jnp.asarray(np.concatenate([flat + 0.1 * np.random.default_rng(0).normal(size=(64, 2)), peaked], axis=1))
    x = x.astype(jnp.float32)
    least = METHODS["sl_acc"](groups=2)
    budget = layout.frame_bytes(message(least, x)[0], rank=12)
    payload, _, _ = message(least, x, side(budget))
    assert payload.bits[:2].min() > payload.bits[2:].max()


# ---- low rank ----


def test_truncated_svd_is_numpys():
    x = with_spectrum(24, 16, 1.0)
    payload, x_hat, _ = message(METHODS["truncated_svd"](rank=5), x)
    left, lengths, right = np.linalg.svd(np.asarray(x))
    np.testing.assert_allclose(x_hat, (left[:, :5] * lengths[:5]) @ right[:5], atol=2e-3)
    assert payload.rank == 5


def test_powersgd_is_algorithm_1():
    xs = [np.asarray(with_spectrum(24, 16, 0.5, seed=i)) for i in range(3)]
    compressor = METHODS["powersgd"](rank=3)
    enc, dec = compressor.init(jax.random.key(0), spec(xs[0]))
    q, error = np.asarray(enc.enc).T, 0
    for x in xs:
        payload, enc = compressor.compress(jnp.asarray(x), enc, side())
        x_hat, dec = compressor.decompress(payload, dec, side())
        matrix = x + error
        p, _ = np.linalg.qr(matrix @ q)
        q = matrix.T @ p
        error = matrix - p @ q.T
        np.testing.assert_allclose(x_hat, p @ q.T, atol=5e-3)
    np.testing.assert_allclose(enc.residual, error, atol=5e-3)


def test_powersgd_at_a_smaller_budget_is_powersgd_of_smaller_rank():
    x = with_spectrum(24, 16, 0.5)
    compressor = METHODS["powersgd"](max_rank=6, error_feedback=False)
    enc, _ = compressor.init(jax.random.key(0), spec(x))
    payload, x_hat, _ = message(compressor, x, side(layout.frame_bytes(message(compressor, x)[0], rank=2)))
    q = np.asarray(enc).T[:, :2]
    p, _ = np.linalg.qr(np.asarray(x) @ q)
    assert payload.rank == 2
    np.testing.assert_allclose(x_hat, p @ (p.T @ np.asarray(x)), atol=5e-3)


# ---- feedback on Top-K ----


def test_ef21_top_k_keeps_the_same_at_both_ends():
    compressor = METHODS["ef21_top_k"](k=3)
    enc, dec = compressor.init(jax.random.key(0), spec(X))
    held = np.zeros((4, 90))
    for seed in range(3):
        x = normal(X.shape, seed=seed)
        payload, enc = compressor.compress(x, enc, side())
        x_hat, dec = compressor.decompress(payload, dec, side())
        change = np.asarray(x).reshape(4, -1) - held
        kept = np.argsort(-np.abs(change), axis=1)[:, :3]
        for row, row_change, places in zip(held, change, kept):
            row[places] += row_change[places]
        np.testing.assert_allclose(np.asarray(x_hat).reshape(4, -1), held, atol=3e-3)
        np.testing.assert_array_equal(enc.held, dec.held)


# ---- half precision ----


def test_fp16_keeps_digits_of_tiny_gradients():
    x = 1e-7 * X
    _, x_hat, _ = message(METHODS["fp16"](), x)
    np.testing.assert_allclose(x_hat, x, rtol=1e-3, atol=1e-11)
    assert METHODS["fp16"]().min_bytes(spec(x)) < 2 * x.size + 60
    assert message(METHODS["fp16"](), x, side(METHODS["fp16"]().min_bytes(spec(x)) - 1))[0].rank == 0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("uniform", {"bits": 9}, "bits is 9; allowed: 1, 2"),
        ("power_quant", {"bits": 0}, "bits is 0"),
        ("top_k", {"k": 0}, "k is 0; allowed: a whole number >= 1"),
        ("rand_top_k", {"alpha": 0.0}, r"alpha is 0\.0; allowed: a number in \(0, 1\]"),
        ("c3_sl", {"groups": 0}, "groups is 0"),
        ("sl_acc", {"groups": 300}, "groups is 300"),
        ("sl_fac", {"threshold": 2.0}, r"threshold is 2\.0"),
        ("splitfc", {"bits": 9}, "bits is 9"),
        ("fedlite", {"subvector": 0}, "subvector is 0"),
        ("fedlite", {"bits": 17}, "bits is 17"),
        ("fedlite", {"weight": -1}, "weight is -1"),
        ("powersgd", {"rank": 0}, "rank is 0"),
        ("truncated_svd", {"factor_bits": 5}, "factor_bits is 5; allowed: 4, 8, 16"),
    ],
)
def test_arguments_out_of_range_are_refused(method, settings, message):
    with pytest.raises(InputError, match=message):
        METHODS[method](**settings)


def test_every_budget_that_is_large_enough_is_used():
    for method in ("dct", "sl_acc", "sl_fac", "splitfc", "top_k", "uniform"):
        x = normal((16, 8, 8, 6))
        budget = 4 * x.size // 9
        payload, _, _ = message(METHODS[method](), x, side(budget))
        assert 0.85 * budget < len(wire.encode(payload)) <= budget < PLENTY, method

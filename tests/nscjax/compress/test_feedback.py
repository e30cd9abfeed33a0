import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, wire
from tests.nscjax.tensors import PLENTY, distortion, normal, side, spec, with_spectrum

SHAPE = (6, 10)
COARSE = compress.nsc_sl(max_rank=2, factor_bits=4)


def _round(x, state, side):
    return compress.base.Dense(values=jnp.where(side.budget_bytes > 0, jnp.round(x), 0.0)), state


ROUND = compress.identity()._replace(compress=_round)
"""A compressor that costs nothing to compile: it sends whole numbers, and zeros where there is no budget."""
NUM_SAMPLES = 9
IDS = jnp.int32([3, 0, 8, 5, 1, 7])


@functools.cache
def jitted(compressor):
    return jax.jit(compressor.init, static_argnums=1), jax.jit(compressor.compress), jax.jit(compressor.decompress)


feedback = functools.cache(lambda decay=1.0: compress.error_feedback(ROUND, decay))
delta = functools.cache(lambda: compress.delta(COARSE, NUM_SAMPLES))


def exchange(compressor, xs, sides):
    """Sends the tensors over real frames; returns (every x_hat, the sender's state, the receiver's)."""
    init, send, receive = jitted(compressor)
    enc, dec = init(jax.random.key(1), spec(xs[0]))
    x_hats = []
    for x, info in zip(xs, sides, strict=True):
        payload, enc = send(x, enc, info)
        x_hat, dec = receive(wire.decode(wire.encode(payload), like=payload), dec, info)
        x_hats.append(x_hat)
    return x_hats, enc, dec


def sides(count, budget_bytes=PLENTY, ids=None):
    return [side(budget_bytes, step, ids) for step in range(count)]


def test_all_that_was_sent_and_the_residual_are_all_that_came_in():
    xs = [normal(SHAPE, seed=i) for i in range(5)]
    x_hats, enc, _ = exchange(feedback(), xs, sides(5))
    np.testing.assert_allclose(sum(x_hats) + enc.residual, sum(xs), atol=1e-5)
    assert float(jnp.abs(enc.residual).max()) > 0.1


def test_the_residual_decays():
    xs = [normal(SHAPE), jnp.zeros(SHAPE)]
    x_hats, enc, _ = exchange(feedback(0.5), xs, sides(2))
    first_residual = xs[0] - x_hats[0]
    np.testing.assert_allclose(x_hats[1] + enc.residual, 0.5 * first_residual, atol=1e-5)


def test_the_mean_of_what_is_sent_of_a_steady_tensor_converges_to_it():
    x = normal(SHAPE)
    with_residual, _, _ = exchange(feedback(), [x] * 12, sides(12))
    without, _, _ = exchange(ROUND, [x] * 12, sides(12))
    assert distortion(x, sum(with_residual) / 12) < 0.1 * distortion(x, sum(without) / 12)


def test_a_message_that_was_not_affordable_stays_in_the_residual():
    x = normal(SHAPE)
    x_hats, enc, _ = exchange(feedback(), [x, x], sides(2, budget_bytes=0))
    np.testing.assert_array_equal(x_hats[1], 0)
    np.testing.assert_allclose(enc.residual, 2 * x, rtol=1e-6)


def test_the_residual_has_the_tensors_shape_and_dtype():
    enc, dec = feedback().init(jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16))
    assert (enc.residual.shape, enc.residual.dtype) == (SHAPE, jnp.bfloat16)
    np.testing.assert_array_equal(enc.residual, 0)
    assert dec == ()


@pytest.mark.parametrize("decay", [0, 1.5, True])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(check.InputError) as caught:
        compress.error_feedback(COARSE, decay)
    assert str(caught.value) == f"decay is {decay!r}; allowed: a number in (0, 1]."


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_caches_of_delta_are_equal_to_the_last_bit(dtype):
    xs = [normal(SHAPE, dtype, seed=i) for i in range(6)]
    ids = [jnp.int32(np.random.default_rng(i).permutation(NUM_SAMPLES)[: SHAPE[0]]) for i in range(6)]
    infos = [side([PLENTY, 90, 0][i % 3], i, ids[i]) for i in range(6)]
    _, enc, dec = exchange(delta(), xs, infos)
    assert float(jnp.abs(enc.cache).max()) > 0
    np.testing.assert_array_equal(enc.cache, dec.cache)


def test_the_caches_hold_what_was_received():
    x_hats, enc, _ = exchange(delta(), [normal(SHAPE)], sides(1, ids=IDS))
    np.testing.assert_array_equal(enc.cache[IDS], x_hats[0])
    absent = np.setdiff1d(np.arange(NUM_SAMPLES), IDS)
    np.testing.assert_array_equal(enc.cache[absent], 0)


def test_samples_seen_again_arrive_better_every_time():
    x = with_spectrum(*SHAPE, decay=0.3)
    x_hats, _, _ = exchange(delta(), [x] * 6, sides(6, ids=IDS))
    lost = [distortion(x, x_hat) for x_hat in x_hats]
    assert all(np.diff(lost) < 0)
    assert lost[-1] < 0.1 * lost[0]


def test_samples_are_known_by_their_id_not_by_their_place():
    x = normal(SHAPE)
    order = np.random.default_rng(0).permutation(SHAPE[0])
    x_hats, _, _ = exchange(delta(), [x, x[order]], [side(seed=0, sample_ids=IDS), side(0, 1, IDS[order])])
    np.testing.assert_array_equal(x_hats[1], x_hats[0][order])


def test_unknown_samples_are_sent_whole_and_leave_no_trace():
    x = normal(SHAPE)
    unknown = jnp.full(SHAPE[0], -1, jnp.int32)
    infos = [side(seed=0, sample_ids=IDS), side(seed=1, sample_ids=unknown)]
    _, enc_before, _ = exchange(delta(), [x], infos[:1])
    x_hats, enc, dec = exchange(delta(), [x, x], infos)
    np.testing.assert_array_equal(enc.cache, enc_before.cache)
    np.testing.assert_array_equal(dec.cache, enc_before.cache)
    assert distortion(x, x_hats[1]) > 0.7 * distortion(x, x_hats[0])


def test_padded_rows_may_be_unknown_among_known_ones():
    """The last batch of an epoch is padded: only its real samples are cached."""
    ids = IDS.at[4:].set(-1)
    x_hats, enc, dec = exchange(delta(), [normal(SHAPE)], sides(1, ids=ids))
    np.testing.assert_array_equal(enc.cache[IDS[:4]], x_hats[0][:4])
    np.testing.assert_array_equal(enc.cache[IDS[4:]], 0)
    np.testing.assert_array_equal(enc.cache, dec.cache)


def test_a_message_that_was_not_affordable_leaves_the_caches():
    x = normal(SHAPE)
    x_hats, enc, dec = exchange(delta(), [x, -x], [side(seed=0, sample_ids=IDS), side(0, 1, IDS)])
    np.testing.assert_array_equal(x_hats[1], x_hats[0])
    np.testing.assert_array_equal(enc.cache[IDS], x_hats[0])
    np.testing.assert_array_equal(enc.cache, dec.cache)


def test_delta_without_sample_ids_is_refused():
    enc, _ = delta().init(jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    with pytest.raises(check.InputError) as caught:
        jax.eval_shape(delta().compress, jnp.zeros(SHAPE), enc, side())
    assert str(caught.value) == (
        "SideInfo.sample_ids is None; allowed: int32 [batch]. Per-sample feedback needs to know the samples."
    )


def test_delta_of_no_samples_is_refused():
    with pytest.raises(check.InputError, match="num_samples is 0; allowed: a whole number >= 1"):
        compress.delta(COARSE, 0)


def test_wrappers_leave_sizes_as_they_are():
    struct = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    for wrapped in (compress.error_feedback(COARSE), delta()):
        assert wrapped.min_bytes(struct) == COARSE.min_bytes(struct)
        assert wrapped.num_bytes is COARSE.num_bytes


@pytest.mark.parametrize(
    ("mode", "state"),
    [("none", "LowRankState"), ("across_steps", "ErrorFeedbackState"), ("per_sample", "DeltaState")],
)
def test_feedback_by_its_config_name(mode, state):
    wrapped = compress.with_feedback(COARSE, mode, decay=0.9, num_samples=4)
    enc, _ = jax.eval_shape(lambda: wrapped.init(jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32)))
    assert type(enc).__name__ == state


def test_an_unknown_feedback_is_refused():
    with pytest.raises(check.InputError) as caught:
        compress.with_feedback(COARSE, "per_step")
    allowed = "'none', 'across_steps', 'per_sample'"
    assert str(caught.value) == f"feedback is 'per_step'; allowed: {allowed}. Did you mean 'per_sample'?"


@pytest.mark.parametrize("wrapper", [compress.error_feedback, compress.ef21, lambda c: compress.delta(c, NUM_SAMPLES)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_message_that_is_not_finite_spoils_none_that_follow(wrapper, value):
    x = normal((len(IDS), 5))
    tensors = [x, x.at[1, 2].set(value), x, x]
    compressor = wrapper(ROUND)
    enc, dec = compressor.init(jax.random.key(1), spec(x))
    for x, info in zip(tensors, sides(4, ids=IDS), strict=True):
        payload, enc = compressor.compress(x, enc, info)  # a frame refuses it, a fused step does not
        x_hat, dec = compressor.decompress(payload, dec, info)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((enc, dec)))
    assert np.all(np.isfinite(x_hat))


def test_a_change_has_no_support_for_the_gradient():
    assert compress.ef21(compress.METHODS["top_k"]()).support is None


def test_a_penalty_is_of_the_tensor_not_of_its_change():
    penalised = compress.nsc_rd(weight=0.5)
    assert compress.ef21(penalised).penalty is None
    assert compress.delta(penalised, 8).penalty is None
    x = normal((8, 4, 4, 6))
    enc, _ = compress.error_feedback(penalised).init(jax.random.key(0), spec(x))
    payload, enc = compress.error_feedback(penalised).compress(x, enc, side(400))
    penalty = compress.error_feedback(penalised).penalty(x, payload, enc)
    assert penalty == penalised.penalty(x, payload, enc.enc) > 0

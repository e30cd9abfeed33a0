import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, layout
from nscjax.compress import rank
from nscjax.compress.low_rank import OVERSAMPLE
from tests.nscjax.tensors import (
    PLENTY,
    distortion,
    normal,
    of_rank,
    side,
    spec,
    truncated_svd_distortion,
    with_spectrum,
)

SHAPE = (24, 40)
RANK = 6


@functools.cache
def make(bits, compensates=True, rank_rule=None):
    """Returns (init, compress, decompress), jitted, of a compressor of up to RANK components of a [24, 40] matrix.

    Where the budget is no matter, every component has all `bits`.
    """
    rule = rank_rule or rank.by_energy(1.0)
    compressor = compress.low_rank(rule, max_rank=RANK, factor_bits=bits, compensates=compensates)
    init = jax.jit(compressor.init, static_argnums=1)
    return init, jax.jit(compressor.compress), jax.jit(compressor.decompress)


def sent(xs, bits=16, compensates=True, budget_bytes=PLENTY, rank_rule=None):
    """Sends the tensors one after another; returns (the last payload, its x_hat, the state)."""
    init, send, receive = make(bits, compensates, rank_rule)
    enc, dec = init(jax.random.key(1), spec(xs[0]))
    for step, x in enumerate(xs):
        payload, enc = send(x, enc, side(budget_bytes, step))
    return payload, receive(payload, dec, side())[0], enc


def received_components(payload):
    """Returns the components that cross, [rank, m, n] in float64."""
    _, _, receive = make(payload.most_bits)
    scales = [jnp.where(jnp.arange(RANK) == i, payload.scale, 0.0) for i in range(RANK)]
    alone = [dataclasses.replace(payload, scale=scale) for scale in scales]
    return np.stack([np.asarray(receive(one, (), side())[0], np.float64) for one in alone])[: int(payload.rank)]


@pytest.mark.parametrize(("bits", "bound"), [(16, 1e-6), (8, 2e-4), (4, 0.03)])
def test_a_matrix_of_low_rank_is_sent_up_to_quantisation_at_once(bits, bound):
    x = of_rank(*SHAPE, rank=RANK)
    _, x_hat, _ = sent([x], bits)
    assert distortion(x, x_hat) < bound


@pytest.mark.parametrize("decay", [0.3, 0.7, 1.5])
def test_four_messages_come_within_1_percent_of_the_truncated_svd(decay):
    x = with_spectrum(*SHAPE, decay)
    least = truncated_svd_distortion(x, RANK)
    _, x_hat, _ = sent([x] * 4)
    assert least * (1 - 1e-4) < distortion(x, x_hat) < 1.01 * least


@pytest.mark.parametrize("decay", [0.3, 0.7, 1.0])
def test_8_bits_come_within_10_percent_of_that(decay):
    x = with_spectrum(*SHAPE, decay)
    _, x_hat, _ = sent([x] * 4, bits=8)
    assert distortion(x, x_hat) < 1.1 * 1.01 * truncated_svd_distortion(x, RANK)


def test_a_warm_basis_follows_a_drifting_tensor():
    start, end = with_spectrum(*SHAPE, 0.7, seed=1), with_spectrum(*SHAPE, 0.7, seed=2)
    xs = [np.cos(t) * start + np.sin(t) * end for t in np.float32(np.linspace(0, 0.3, 8))]
    _, x_hat, _ = sent(xs)
    assert distortion(xs[-1], x_hat) < 1.01 * truncated_svd_distortion(xs[-1], RANK)


def test_a_warm_basis_is_better_than_a_cold_one():
    x = with_spectrum(*SHAPE, 0.3)
    assert distortion(x, sent([x] * 4)[1]) < distortion(x, sent([x])[1])


def test_compensation_makes_good_what_quantisation_lost():
    x = with_spectrum(*SHAPE, 0.7)
    assert distortion(x, sent([x] * 4, 4)[1]) < distortion(x, sent([x] * 4, 4, compensates=False)[1])


def unit_matrix():
    return jnp.eye(*SHAPE)


def few_entries():
    rng = np.random.default_rng(0)
    return jnp.zeros(SHAPE).at[rng.integers(0, 24, 9), rng.integers(0, 40, 9)].set(1.0)


def nearly_collinear():
    return 1.0 + 1e-3 * normal(SHAPE)


def heavy_tailed():
    return normal(SHAPE) ** 9


@pytest.mark.parametrize("make_x", [unit_matrix, few_entries, nearly_collinear, heavy_tailed])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_message_is_worse_than_none(make_x, bits):
    x = make_x()
    for budget_bytes in (90, 150, 220, 300, 500, 2000):
        payload, x_hat, _ = sent([x], bits, budget_bytes=budget_bytes)
        assert distortion(x, x_hat) <= 1.0001
        up_and_down = compress.Duplex(*[compress.low_rank(rank.by_energy(1.0), max_rank=RANK, factor_bits=bits)] * 2)
        info = up_and_down.side_down(payload, side(budget_bytes))
        down = up_and_down.down
        answer, _ = make(bits)[1](x, down.init(jax.random.key(2), spec(x))[0], info)
        assert distortion(x, make(bits)[2](answer, (), info)[0]) <= 1.0001


@pytest.mark.parametrize("bits", [4, 16])
def test_the_largest_numbers_of_half_precision_stay_finite(bits):
    x = jnp.where(normal(SHAPE) > 0, 1, -1).astype(jnp.float16) * jnp.finfo(jnp.float16).max
    x_hat = np.asarray(sent([x], bits)[1], np.float32)
    assert np.all(np.isfinite(x_hat))
    assert np.max(np.abs(x_hat)) == np.finfo(np.float16).max


def test_factors_are_orthonormal():
    """At 16 bits, where quantisation moves them little: the left one exactly, the right one as far as converged."""
    x = with_spectrum(*SHAPE, 1.0)
    components = received_components(sent([x] * 8)[0])
    norms = np.linalg.norm(components, axis=(1, 2))
    directions = components / norms[:, None, None]
    overlaps = np.einsum("imn,jmn->ij", directions, directions)
    np.testing.assert_allclose(overlaps, np.eye(RANK), atol=1e-3)
    np.testing.assert_allclose(norms, np.linalg.svd(np.asarray(x))[1][:RANK], rtol=1e-2)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_components_are_ordered_by_energy(bits):
    components = received_components(sent([with_spectrum(*SHAPE, 1.0)] * 4, bits)[0])
    energies = np.sum(components**2, axis=(1, 2))
    assert (np.diff(energies) < 0).all()


def test_fewer_components_are_the_first_of_more():
    x = with_spectrum(*SHAPE, 1.0)
    few, many = sent([x], rank_rule=rank.fixed(2))[0], sent([x])[0]
    assert (few.rank, many.rank) == (2, RANK)
    # The matrix is wide: its long side, quantised first, is on the right.
    np.testing.assert_array_equal(few.right[:32], many.right[:32])
    np.testing.assert_allclose(received_components(few)[0], received_components(many)[0], atol=1e-3)


def test_rank_and_bits_follow_the_budget():
    x = with_spectrum(*SHAPE, 0.5)
    payloads = [sent([x], bits=8, budget_bytes=budget)[0] for budget in range(0, 600, 20)]
    ranks, lost = [int(payload.rank) for payload in payloads], []
    assert ranks == sorted(ranks)
    assert {0, RANK} <= set(ranks)
    for budget, payload in zip(range(0, 600, 20), payloads):
        assert payload.rank == 0 or layout.num_bytes(payload) <= budget
        assert (np.diff(np.int32(payload.bits)) <= 0).all()
        lost.append(distortion(x, make(8)[2](payload, (), side())[0]))
    assert (np.diff(lost) <= 1e-3).all()


def test_the_least_frame_has_one_component_of_two_bits():
    """Of one bit all samples would have the same magnitudes: behind it batch normalisation divides by nothing."""
    compressor = compress.low_rank(rank.by_energy(1.0), max_rank=RANK, factor_bits=8)
    least, x = compressor.min_bytes(jax.ShapeDtypeStruct(SHAPE, jnp.float32)), with_spectrum(*SHAPE, 0.5)
    payload = sent([x], bits=8, budget_bytes=least)[0]
    assert (payload.rank, payload.left_planes, payload.right_planes) == (1, 2, 2)
    assert layout.num_bytes(payload) == least
    assert sent([x], bits=8, budget_bytes=least - 1)[0].rank == 0


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_basis_stays_orthonormal(bits):
    xs = [
        with_spectrum(*SHAPE, decay, seed=i) * size for i, (decay, size) in enumerate([(0.3, 1), (3, 1e-7), (1, 1e7)])
    ]
    _, _, enc = sent([*xs, jnp.zeros(SHAPE), of_rank(*SHAPE, rank=1), *xs], bits)
    basis = np.asarray(enc.basis)
    assert basis.shape == (RANK + OVERSAMPLE, min(SHAPE))
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)


@pytest.mark.parametrize("before", ["zero", "rank one"])
def test_the_basis_finds_directions_again_that_it_has_lost(before):
    x = with_spectrum(*SHAPE, 0.7)
    first = jnp.zeros(SHAPE) if before == "zero" else of_rank(*SHAPE, rank=1)
    _, x_hat, _ = sent([*[first] * 3, *[x] * 4])
    assert distortion(x, x_hat) < 1.01 * truncated_svd_distortion(x, RANK)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_does_not_spoil_the_basis(value):
    x = with_spectrum(*SHAPE, 0.7)
    _, x_hat, _ = sent([x, x.at[3, 4].set(value), *[x] * 3])
    assert distortion(x, x_hat) < 1.01 * truncated_svd_distortion(x, RANK)


def test_an_empty_message_warms_the_basis_as_well():
    x = with_spectrum(*SHAPE, 0.3)
    payload, x_hat, empty_enc = sent([x], budget_bytes=0)
    assert payload.rank == 0
    np.testing.assert_array_equal(x_hat, 0)
    caught = [np.linalg.norm(np.asarray(enc.basis) @ np.asarray(x)) for enc in (empty_enc, sent([jnp.zeros(SHAPE)])[2])]
    assert caught[0] > caught[1]


def test_a_payload_decodes_alone():
    init, _, receive = make(8)
    assert init(jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))[1] == ()
    payload, x_hat, _ = sent([normal(SHAPE)], bits=8)
    np.testing.assert_array_equal(receive(payload, (), side(0, seed=99))[0], x_hat)


def test_what_is_past_the_rank_is_not_looked_at():
    x = normal(SHAPE)
    payload, _, _ = sent([x], bits=8)
    payload = dataclasses.replace(payload, rank=jnp.int32(2))
    _, _, receive = make(8)
    expected, _ = receive(payload, (), side())
    planes = 2 * payload.most_bits
    spoilt = dataclasses.replace(payload, left=payload.left.at[planes:].set(77), scale=payload.scale.at[2:].set(np.nan))
    np.testing.assert_array_equal(receive(spoilt, (), side())[0], expected)


@pytest.mark.parametrize(("shape", "expected"), [((3, 40), 3), ((40, 2), 2), ((1, 1), 1)])
def test_max_rank_is_clipped_to_the_matrix(shape, expected):
    compressor = compress.low_rank(rank.by_energy(1.0), max_rank=16, factor_bits=8)
    struct = jax.ShapeDtypeStruct(shape, jnp.float32)
    enc, _ = jax.eval_shape(lambda: compressor.init(jax.random.key(0), struct))
    payload, _ = jax.eval_shape(compressor.compress, struct, enc, side())
    assert payload.scale.shape == (expected,)
    assert enc.basis.shape == (expected, min(shape))


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("max_rank", 0, "a number >= 1"),
        ("max_rank", 2.5, "a whole number >= 1"),
        ("iterations", 0, "a number >= 1"),
        ("oversample", -1, "a number >= 0"),
        ("factor_bits", 6, "4, 8, 16"),
    ],
)
def test_arguments_out_of_range_are_refused(name, given, allowed):
    with pytest.raises(check.InputError) as caught:
        compress.low_rank(rank.by_energy(1.0), **({"max_rank": 4, "factor_bits": 8} | {name: given}))
    assert str(caught.value).startswith(f"{name} is {given}; allowed: ")
    assert allowed.split()[-1] in str(caught.value)


def test_a_view_of_other_axes_is_refused_when_the_tensor_is_known():
    compressor = compress.low_rank(rank.by_energy(1.0), max_rank=4, factor_bits=8, view="BC,HW")
    with pytest.raises(check.InputError, match="view is 'BC,HW'; allowed: 'B,D', 'auto'"):
        compressor.init(jax.random.key(0), jax.ShapeDtypeStruct((4, 6), jnp.float32))


TEMPLATE = jax.eval_shape(lambda: sent([jnp.zeros(SHAPE)], bits=4)[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"shape": (24, -40)}, "its shape is (24, -40)"),
        ({"shape": (24, 40.0)}, "its shape is (24, 40.0)"),
        ({"shape": 960}, "its shape is 960"),
        ({"shape": (960,)}, "its shape (960,) has no view 'B,D'"),
        ({"view": "B,TD"}, "its shape (24, 40) has no view 'B,TD'"),
        ({"most_bits": 5}, "it has 5 bits"),
        ({"most_bits": 4.0}, "it has 4.0 bits"),
        ({"dtype": 99}, "its dtype code is 99"),
        ({"dtype": 9.0}, "its dtype code is 9.0"),
        ({"shape": (24, 41)}, "its arrays are "),
        ({"most_bits": 8}, "its arrays are "),
        ({"scale": jax.ShapeDtypeStruct((), jnp.float32)}, "its "),
        ({"rank": jax.ShapeDtypeStruct((), jnp.uint8)}, "its arrays are "),
        ({"shape": (24, 4000)}, "its tensor has 384000 bytes; allowed: 10000"),
    ],
)
def test_a_payload_read_from_its_own_header_is_checked(changes, expected):
    problem = dataclasses.replace(TEMPLATE, **changes).problem(max_bytes=10_000)
    assert (problem is None) if expected is None else str(problem).startswith(expected)

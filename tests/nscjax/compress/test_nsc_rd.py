import dataclasses
import functools
import importlib
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from nscjax import check, compress, layout, linalg, measure, wire
from nscjax.compress.nsc_rd import PLACES, first_rows, forget, nsc_rd
from tests.nscjax.tensors import PLENTY, distortion, normal, sealed, side, spec

rd = importlib.import_module("nscjax.compress.nsc_rd")
"""The module: in its package the factory has its name."""

SHAPE = (8, 4, 4, 6)
RD = nsc_rd(max_rank=16)
BY_PLACES = {places: nsc_rd(max_rank=16, places=places) for places in PLACES}
COMPRESS, DECOMPRESS = jax.jit(RD.compress), jax.jit(RD.decompress)


@functools.cache
def jitted(places):
    return jax.jit(BY_PLACES[places].compress)


def smooth(seed=0, shape=SHAPE):
    """Images of a few directions and a little noise."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(99).normal(size=(3, shape[1] * shape[2]))
    features = np.random.default_rng(98).normal(size=(3, shape[3]))
    x = np.einsum("bk,ks,kc->bsc", random.normal(size=(shape[0], 3)) * [3, 2, 1], places, features)
    return jnp.asarray(x.reshape(shape) + 0.01 * random.normal(size=shape), jnp.float32)


def conversation(budget, tensors, compressor=RD):
    """Returns [(payload, x_hat)] of messages in a row, and both ends' states after them."""
    enc, dec = compressor.init(jax.random.key(0), spec(tensors[0]))
    send, receive = COMPRESS, DECOMPRESS
    if compressor is not RD:
        send, receive = jax.jit(compressor.compress), jax.jit(compressor.decompress)
    messages = []
    for i, x in enumerate(tensors):
        payload, enc = send(x, enc, side(budget, i))
        x_hat, dec = receive(payload, dec, side(budget, i))
        messages.append((payload, x_hat))
    return messages, enc, dec


def about_to_send_a_basis(places="learned"):
    """Returns both ends' states, the sender's such that its next message of `smooth` carries a basis."""
    enc, first = BY_PLACES[places].init(jax.random.key(0), spec(smooth()))
    _, enc = jitted(places)(smooth(9), enc, side(PLENTY))
    return forget(enc, first), first


def assert_in_step(payload, enc, dec):
    """Both ends see a message's coefficients in the same basis."""
    jax.tree.map(np.testing.assert_array_equal, RD.support(payload, enc), RD.support(payload, dec))


def test_both_ends_hold_the_same_basis():
    _messages, enc, dec = conversation(300, [smooth(seed) for seed in range(6)])
    assert int(dec.version) >= 1
    jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
    for rows in (dec.places, dec.features):
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=2e-3)


@pytest.mark.parametrize("budget", [200, 300, 700])
def test_a_basis_crosses_when_it_has_moved_and_only_then(budget):
    messages, *_ = conversation(budget, [smooth(seed) for seed in range(24)])
    sent = [int(payload.moved) for payload, _ in messages]
    assert any(sent[:4])
    # Rows of 6 and 16 entries, two a byte: of features alone, or of places beside all of those.
    assert set(sent) <= {0, *(rows * 3 for rows in range(1, 7)), *(6 * 3 + rows * 8 for rows in range(1, 17))}
    assert sum(moved > 0 for moved in sent[2:]) <= 2
    frame = [len(wire.encode(payload)) for payload, _ in messages]
    assert all(layout.num_bytes(payload) == length <= budget for (payload, _), length in zip(messages, frame))


def tail_distortion(compressor, budget, tensors):
    """Returns the mean distortion of the second half of messages in a row, and the bytes of bases that crossed."""
    messages, *_ = conversation(budget, tensors, compressor)
    lost = [distortion(x, x_hat) for x, (_, x_hat) in zip(tensors, messages, strict=True)]
    return np.mean(lost[len(lost) // 2 :]), [int(payload.moved) for payload, _ in messages]


def of_few_features(shape, num, seed):
    """Tensors whose features lie in a few directions, the same ones for all seeds, each half as strong as the last."""
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(shape[-1],) * 2))[0][:num]
    return jnp.asarray(np.asarray(normal((*shape[:-1], num), seed=seed)) * 2.0 ** -np.arange(num) @ rows, jnp.float32)


@pytest.mark.parametrize(("shape", "budget"), [((32, 32), 200), ((16, 8, 32), 500), (SHAPE, 200)], ids=str)
def test_a_basis_of_its_own_is_worth_its_bytes(monkeypatch, shape, budget):
    tensors = [of_few_features(shape, 6, seed) if shape != SHAPE else smooth(seed) for seed in range(12)]
    own, moved = tail_distortion(nsc_rd(mean_bits=0), budget, tensors)
    monkeypatch.setattr(rd, "AFFORDABLE", 0.0)
    none, nothing = tail_distortion(nsc_rd(mean_bits=0), budget, tensors)
    assert any(moved)
    assert not any(nothing)
    assert own < 0.3 * none


def test_features_cross_alone_where_learned_places_are_no_better_than_cosines():
    """A few learned places would be less than all the cosines, which cost nothing."""
    shape = (4, 8, 8, 16)
    features = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][:2]
    places = first_rows(shape, "cosines", 16)
    tensors = [
        jnp.einsum("bkj,ks,jc->bsc", normal((4, 16, 2), seed=seed), places, jnp.float32(features)).reshape(shape)
        for seed in range(8)
    ]
    lost, moved = tail_distortion(nsc_rd(mean_bits=0), 400, tensors)
    assert any(moved)
    assert lost < 0.01


def test_noise_is_no_reason_for_a_basis():
    """The newest basis holds more of the message that it has learned from, and no more of the next one."""
    _, moved = tail_distortion(nsc_rd(), 4_000, [normal((8, 16, 16, 32), seed=seed) for seed in range(24)])
    assert sum(map(bool, moved)) <= 4


def test_an_odd_message_does_not_take_a_basis_away():
    tensors = [smooth(seed) for seed in range(12)]
    tensors[8] = normal(SHAPE)
    messages, *_ = conversation(300, tensors)
    versions = [int(payload.version) for payload, _ in messages]
    assert versions[8] == 0  # noise is best seen in the first one
    assert versions[7] == versions[9] != 0
    assert not any(int(payload.moved) for payload, _ in messages[8:])


def test_no_basis_crosses_that_is_no_better_though_a_budget_affords_few_rows():
    """What one message lacks in the held basis, another one has."""
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0][:10]
    tensors = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        x = random.normal(size=(32, 10)) * 2.0 ** (-0.5 * np.arange(10)) @ rows + 0.05 * random.normal(size=(32, 64))
        tensors.append(jnp.asarray(x, jnp.float32))
    _, moved = tail_distortion(nsc_rd(), 260, tensors)
    assert any(moved)
    assert not any(moved[20:])


def test_a_lean_message_does_not_count_against_a_basis_that_it_has_no_room_for():
    enc, _ = conversation(300, [smooth(seed) for seed in range(6)])[1:]
    held_bytes = rd._crossed_bytes(
        rd._sizes_of(SHAPE, 16, 6, "learned"), enc.held, rd._first_basis(rd._empty(smooth(), 16, 6, "learned"))
    )
    assert held_bytes == 6 * 3 + 16 * 8
    enc = enc._replace(missed=jnp.float32(0.01))
    _, lean = COMPRESS(smooth(9), enc, side(200))  # of which 140 may be a basis
    assert lean.missed >= enc.missed


def test_rows_that_are_not_worth_their_bytes_do_not_cross():
    worth = jnp.zeros((16, 6)).at[:3, :4].set(1.0)
    assert rd._worthy_rows(worth, 0, 8) == 3
    assert rd._worthy_rows(worth, 1, 3) == 4
    assert rd._worthy_rows(worth, 1, 3 * rd.WHILE + 1) == 0


@pytest.mark.parametrize(("mean_bits", "rows"), [(0, 16), (2, 1), (10**12, 1)])
def test_a_budget_affords_rows_by_their_mean_bits(mean_bits, rows):
    least = RD.min_bytes(spec(smooth()))
    affords = rd._affordable_rows(rd._empty(smooth(), 16, 6, "learned"), mean_bits, jnp.int32(least))
    assert affords.sum() == rows


def test_a_small_budget_has_some_rows_of_a_basis():
    enc, dec = RD.init(jax.random.key(0), spec(smooth()))
    for seed in range(6):
        payload, enc = COMPRESS(smooth(seed), enc, side(150, seed))
        x_hat, dec = DECOMPRESS(payload, dec, side(150, seed))
        jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
    num_rows = int(jnp.sum(jnp.any(dec.places, axis=1)))
    assert 1 <= num_rows < 16
    assert distortion(smooth(5), x_hat) < 0.3


def test_cosines_along_places_cost_nothing():
    compressor = nsc_rd(max_rank=16, places="cosines")
    x = smooth()
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    for _ in range(2):  # a basis crosses when it has learned from a message before
        payload, enc = compressor.compress(x, forget(enc, dec), side(700))
    assert payload.basis.size == payload.moved == 6 * 3
    x_hat, dec = compressor.decompress(payload, dec, side(700))
    jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
    assert dec.version > 0
    assert distortion(x, x_hat) < 0.2
    np.testing.assert_allclose(dec.places @ dec.places.T, np.eye(16), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, wire.decode(wire.encode(payload)), jax.device_get(payload))


@pytest.mark.parametrize("shape", [(8, 8, 8, 6), (8, 5, 7, 3), (6, 9, 4), (6, 5)], ids=str)
def test_slow_places_are_learned_among_the_slow_cosines(shape):
    compressor, x = nsc_rd(places="slow", mean_bits=0), normal(shape)
    kept = [-(-size // 4) for size in shape[1:-1]] or [1]
    cosines = linalg.cosines(shape[1:-1] or (1,), kept)
    flat = x.reshape(shape[0], -1, shape[-1])
    slow = jnp.einsum("sx,sy,byc->bxc", cosines, cosines, flat).reshape(shape)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    send = jax.jit(compressor.compress)
    for step in range(3):
        payload, enc = send(x, enc, side(PLENTY, step))
        x_hat, dec = compressor.decompress(payload, dec, side())
        jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
    learns = math.prod(kept) > 1
    row_bytes, feature_bytes = -(-math.prod(kept) // 2) * learns, -(-shape[-1] // 2)
    assert payload.basis.size == math.prod(kept) * row_bytes + shape[-1] * feature_bytes
    assert distortion(slow, x_hat) < 1e-3
    jax.tree.map(np.testing.assert_array_equal, wire.decode(wire.encode(payload)), jax.device_get(payload))


def test_slow_places_are_those_of_the_gradient_whatever_its_own():
    shape = (8, 8, 8, 6)
    duplex = compress.Duplex(nsc_rd(places="slow"), nsc_rd(places="cosines", max_rank=2))
    enc, dec = duplex.up.init(jax.random.key(0), spec(normal(shape)))
    up, enc = duplex.up.compress(normal(shape), enc, side(2000))
    info = duplex.side_down(up, side(2000), enc)
    down, _ = duplex.down.compress(
        normal(shape, seed=1), duplex.down.init(jax.random.key(0), spec(normal(shape)))[0], info
    )
    assert down.places == "slow"
    x_hat, _ = duplex.down.decompress(down, dec, info)
    assert x_hat.shape == shape
    assert distortion(normal(shape, seed=1), x_hat) < 1  # a sixteenth of noise


def test_places_that_are_none_are_refused():
    enc, _ = RD.init(jax.random.key(0), spec(smooth()))
    payload, _ = COMPRESS(smooth(), enc, side(700))
    with pytest.raises(wire.WireError, match="its places are 'fast'"):
        wire.decode(wire.encode(dataclasses.replace(payload, places="fast")))


def test_samples_of_different_size_share_a_step():
    """A batch of which most samples are tiny: the frame is far smaller than if all had one table."""
    x = normal((64, 4, 4, 6))
    weight = jnp.where(jnp.arange(64) < 8, 1.0, 0.05)[:, None, None, None]
    compressor, distortions = nsc_rd(mean_bits=0), []
    for tensor in (x, x * weight):
        enc, dec = compressor.init(jax.random.key(0), spec(x))
        payload, enc = compressor.compress(tensor, enc, side(1200))
        distortions.append(distortion(tensor, compressor.decompress(payload, dec, side(1200))[0]))
    assert distortions[1] < 0.1 * distortions[0]


def test_a_receiver_that_missed_a_basis_says_so_and_a_whole_one_mends_it():
    _messages, enc, _dec = conversation(700, [smooth(seed) for seed in range(6)])
    _, first = RD.init(jax.random.key(0), spec(smooth()))
    stranger = first
    payload, enc = COMPRESS(smooth(6), enc, side(700))
    assert payload.moved == 0
    assert np.isnan(DECOMPRESS(payload, stranger, side(700))[0]).all()
    payload, _ = COMPRESS(smooth(7), forget(enc, first), side(700))
    assert payload.moved > 0
    x_hat, stranger = DECOMPRESS(payload, stranger, side(700))
    assert distortion(smooth(7), x_hat) < 0.1
    assert stranger.version == payload.version


def test_a_sender_that_has_forgotten_is_understood_by_everyone_at_any_budget():
    _messages, enc, dec = conversation(700, [smooth(seed) for seed in range(6)])
    _, first = RD.init(jax.random.key(0), spec(smooth()))
    payload, enc = COMPRESS(smooth(7), forget(enc, first), side(RD.min_bytes(spec(smooth())) + 1))
    assert (int(payload.moved), int(payload.version)) == (0, 0)
    for receiver in (dec, first):
        x_hat, after = DECOMPRESS(payload, receiver, side())
        assert 0 < distortion(smooth(7), x_hat) < 1
        assert_in_step(payload, enc, after)


def test_both_ends_stay_in_step_whatever_comes():
    """A basis, nothing, what is not finite, zeros, hardly room, what was forgotten, and a basis again."""
    enc, dec = RD.init(jax.random.key(0), spec(smooth()))
    first, least = dec, RD.min_bytes(spec(smooth()))
    for step, (x, budget) in enumerate([
        (smooth(0), 700), (smooth(1), 0), (smooth(2).at[0].set(np.nan), 700), (jnp.zeros(SHAPE), 700),
        (smooth(3), least), (None, 0), (smooth(4), least + 1), (normal(SHAPE), 300), (smooth(5), 700),
    ]):  # fmt: skip
        if x is None:
            enc = forget(enc, first)
            continue
        payload, enc = COMPRESS(x, enc, side(budget, step))
        x_hat, dec = DECOMPRESS(payload, dec, side(budget, step))
        assert_in_step(payload, enc, dec)
        assert np.isfinite(x_hat).all() == np.isfinite(x).all()
    assert dec.version > 0


def test_the_strongest_groups_cross_where_not_all_of_them_fit():
    """Not even the coarsest step fits: what was counted at a coarser one yet must not be sent in its place."""
    x = jnp.concatenate([jnp.eye(64), -jnp.eye(64)])
    compressor = nsc_rd(mean_bits=0)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    send = jax.jit(compressor.compress)
    for budget in (165, 185, 205):
        payload, _ = send(x, enc, side(budget))
        assert len(wire.encode(payload)) <= budget
        assert distortion(x, compressor.decompress(payload, dec, side())[0]) < 0.95


def test_bases_of_two_senders_are_told_apart():
    _, one, _ = conversation(700, [smooth(seed) for seed in range(6)])
    _, other, dec = conversation(700, [smooth(seed) for seed in range(6, 12)])
    payload, _ = COMPRESS(smooth(1), one, side(110))
    assert payload.version != dec.version
    assert one.held.version != other.held.version
    assert np.isnan(DECOMPRESS(payload, dec, side())[0]).all()


def test_a_basis_under_another_ones_name_is_refused():
    enc, dec = about_to_send_a_basis()
    payload, _ = COMPRESS(smooth(), enc, side(300))
    assert payload.moved > 0
    x_hat, same = DECOMPRESS(dataclasses.replace(payload, basis=payload.basis.at[3].add(1)), dec, side())
    assert np.isnan(x_hat).all()
    jax.tree.map(np.testing.assert_array_equal, same, dec)


@pytest.mark.parametrize("shape", [(32, 512), (16, 6, 512)], ids=str)
def test_as_many_rows_of_features_cross_as_the_budget_affords(shape):
    """A basis of all 64 rows, 16 kB, never has room."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(4, 512))
    compressor = nsc_rd()
    enc, dec = compressor.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    send, receive = jax.jit(compressor.compress), jax.jit(compressor.decompress)
    for step in range(4):
        x = jnp.asarray(random.normal(size=(*shape[:-1], 4)) @ rows, jnp.float32)
        payload, enc = send(x, enc, side(4000, step))
        x_hat, dec = receive(payload, dec, side())
        jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
        frame = wire.encode(payload)
        assert len(frame) <= 4000
        jax.tree.map(np.testing.assert_array_equal, wire.decode(frame), jax.device_get(payload))
    # The gradient crosses in the rows that are held.
    duplex = compress.Duplex(compressor, compressor)
    at_client, at_server = (duplex.side_down(payload, side(4000), state) for state in (enc, dec))
    down, _ = compressor.compress(x, enc, at_server)
    assert distortion(x, compressor.decompress(down, dec, at_client)[0]) < 0.05
    assert 4 <= np.any(dec.features, axis=1).sum() < 64
    assert distortion(x, x_hat) < 0.05


def test_a_basis_is_worth_more_with_more_of_the_energy_or_in_fewer_groups():
    every = jax.random.normal(jax.random.key(0), (4, 6, 8))
    few = every.at[1:].set(0.0)
    together = jnp.zeros_like(every).at[0, 0].set(jnp.linalg.norm(every, axis=(0, 1)))  # as much energy, in one group

    def total(coefficients):
        return float(jnp.sum(rd._worth(coefficients, jnp.float32(0.1))))

    assert total(few) < total(every) < total(together)
    assert total(0.1 * every) == 0  # below the level


@pytest.mark.parametrize("budget", [50, 150])
def test_the_level_is_that_of_reverse_water_filling(budget):
    coefficients = jax.random.normal(jax.random.key(0), (4, 6, 8)) * 2.0 ** -jnp.arange(4.0)[:, None, None]
    energy = jnp.sum(coefficients**2)
    filled = rd._filled(coefficients, 1.25 * energy, jnp.float32(budget))
    variance = jnp.mean(coefficients**2, axis=-1)
    bits = 8 * jnp.sum(jnp.maximum(jnp.log2(variance / filled.level), 0.0)) / 2
    np.testing.assert_allclose(bits, 8 * budget, rtol=1e-2)
    np.testing.assert_allclose(filled.num_bytes, budget, rtol=1e-2)
    lost = 0.25 * energy + 8 * jnp.sum(jnp.minimum(variance, filled.level))  # what the coefficients have not is lost
    np.testing.assert_allclose(filled.lost, lost / (1.25 * energy), rtol=1e-5)


@pytest.mark.parametrize("outside", [0.0, 0.05, 0.5])
def test_no_more_is_lost_than_the_energy_allows_and_no_less(outside):
    coefficients = jax.random.normal(jax.random.key(0), (4, 6, 8)) * 2.0 ** -jnp.arange(4.0)[:, None, None]
    whole = jnp.sum(coefficients**2) / (1 - outside)
    filled = rd._filled(coefficients, whole, jnp.float32(150), energy=0.9)
    np.testing.assert_allclose(filled.lost, max(0.1, rd._filled(coefficients, whole, jnp.float32(150)).lost), rtol=1e-2)
    assert filled.num_bytes <= 150


def test_a_small_error_is_reached_in_the_basis_that_needs_fewer_bytes():
    tensors = [of_few_features((8, 4, 4, 16), 4, seed) for seed in range(24)]
    messages, *_ = conversation(4_000, tensors, nsc_rd(energy=0.9, mean_bits=0))
    assert all(0.05 < distortion(x, x_hat) < 0.11 for x, (_, x_hat) in zip(tensors, messages, strict=True))
    sent = [(int(payload.version), int(payload.moved), int(layout.num_bytes(payload))) for payload, _ in messages]
    crossed = next(i for i, (_, moved, _) in enumerate(sent) if moved)
    assert all(version for version, *_ in sent[crossed:])
    assert sum(moved > 0 for _, moved, _ in sent) <= 2
    assert max(length for *_, length in sent[-5:]) < min(length for *_, length in sent[:crossed])


def test_features_that_dwindle_leave_numbers():
    """What is seen of the tensor is so little of it that its share has no inverse in float32."""
    few = nsc_rd(max_features=3)
    enc, _ = few.init(jax.random.key(0), spec(smooth()))
    for tiny in (1e-17, 1e-18, 1e-19, 1e-30):
        _, after = jax.jit(few.compress)(normal((8, 4, 4, 6)).at[..., :3].multiply(tiny), enc, side(150))
        assert np.isfinite(after.missed)
    assert rd._filled(jnp.full((1, 1, 4), 1e-18), jnp.float32(1e4), jnp.float32(9)).lost == 1


def test_nothing_is_told_without_bytes():
    coefficients = jax.random.normal(jax.random.key(0), (4, 6, 8))
    for num_bytes in (0, -7):
        np.testing.assert_allclose(
            rd._filled(coefficients, 2 * jnp.sum(coefficients**2), jnp.float32(num_bytes)).lost, 1
        )
    assert rd._filled(0 * coefficients, jnp.float32(0), jnp.float32(9)).lost == 0


def rough(shape, seed):
    """Images without slow directions of their own, of one feature more than of others."""
    return normal(shape, seed=seed) * jnp.broadcast_to(2.0 ** -jnp.arange(float(shape[-1])), shape)


@pytest.mark.parametrize("tensors", [normal, rough])
@pytest.mark.parametrize(
    ("shape", "budget", "mean_bits"), [((256, 8, 8, 4), 1219, 0), ((64, 8, 8, 4), 700, 2), ((64, 9), 200, 0)], ids=str
)
def test_what_is_sent_is_what_the_receiver_sees_in_its_basis(tensors, shape, budget, mean_bits):
    """Whichever basis crosses, whole, in part, along features alone, or none."""
    compressor = nsc_rd(mean_bits=mean_bits)
    enc, dec = compressor.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    send, receive = jax.jit(compressor.compress), jax.jit(compressor.decompress)
    for step in range(8):
        x = tensors(shape, seed=step)
        if step == 4:
            enc = forget(enc, compressor.init(jax.random.key(0), spec(x))[1])
        payload, enc = send(x, enc, side(budget, step))
        x_hat, dec = receive(payload, dec, side(budget, step))
        assert_in_step(payload, enc, dec)
        assert jnp.vdot(x, x_hat) > 0.5 * jnp.vdot(x_hat, x_hat) > 0


def test_where_the_first_basis_is_better_than_the_held_one_a_message_is_of_that(monkeypatch):
    monkeypatch.setattr(rd, "AFFORDABLE", 0.0)
    enc, _ = RD.init(jax.random.key(0), spec(smooth()))
    codes = rd._row_codes(jnp.eye(6)[:1].repeat(6, 0)), rd._row_codes(jnp.eye(16)[:1].repeat(16, 0))
    empty = rd._empty(smooth(), 16, 6, "learned")
    poor = rd._received(empty, jnp.int32(6 * 3 + 8), jnp.concatenate(codes))
    payload, enc = jax.jit(nsc_rd(max_rank=16).compress)(smooth(), enc._replace(held=poor), side(110))
    assert (int(payload.version), int(payload.moved)) == (0, 0)
    x_hat, dec = DECOMPRESS(payload, poor, side())
    assert distortion(smooth(), x_hat) < 1
    jax.tree.map(np.testing.assert_array_equal, enc.held, dec)
    jax.tree.map(np.testing.assert_array_equal, dec, poor)  # for the next one
    assert_in_step(payload, enc, dec)


def test_a_message_without_room_for_a_basis_does_not_forget_what_was_missed():
    enc, _ = RD.init(jax.random.key(0), spec(smooth()))
    enc = enc._replace(missed=jnp.float32(50))
    assert COMPRESS(smooth(), enc, side(RD.min_bytes(spec(smooth())) + 1))[1].missed == enc.missed


def test_the_first_rows_are_the_slowest_cosines():
    shape = (2, 5, 7, 3)
    every = linalg.cosines((5, 7), (5, 7))
    order = sorted(range(35), key=lambda i: i // 7 + i % 7)
    np.testing.assert_allclose(first_rows(shape, "learned", 9), every[jnp.asarray(order[:9])], atol=1e-6)
    np.testing.assert_array_equal(first_rows(shape, "slow", 3), np.eye(4)[:3])
    assert first_rows((1, 512, 512, 1), "cosines", 4).shape == (4, 512 * 512)


def test_an_empty_message_moves_nothing():
    enc, dec = RD.init(jax.random.key(0), spec(smooth()))
    payload, after = COMPRESS(smooth(), enc, side(RD.min_bytes(spec(smooth())) - 1))
    assert measure.is_skipped(payload)
    jax.tree.map(np.testing.assert_array_equal, after, enc)
    x_hat, same = DECOMPRESS(payload, dec, side(0))
    assert not x_hat.any()
    jax.tree.map(np.testing.assert_array_equal, same, dec)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_message_that_is_not_finite_moves_nothing_and_shows(bad):
    _, enc, dec = conversation(700, [smooth(seed) for seed in range(3)])
    payload, after = COMPRESS(smooth().at[0, 0, 0, 0].set(bad), enc, side(700))
    jax.tree.map(np.testing.assert_array_equal, after, enc)
    assert not np.isfinite(DECOMPRESS(payload, dec, side(700))[0]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), budget=st.integers(0, 4000), power=st.floats(0.3, 6), places=st.sampled_from(PLACES)
)
def test_no_frame_is_over_its_budget(seed, budget, power, places):
    x = np.random.default_rng(seed).normal(size=SHAPE)
    x = jnp.asarray(np.sign(x) * np.abs(x) ** power, jnp.float32)
    enc, first = BY_PLACES[places].init(jax.random.key(0), spec(x))
    _, enc = jitted(places)(x, enc, side(PLENTY))
    payload, _ = jitted(places)(x, forget(enc, first), side(budget))  # with a basis, where there is room
    frame = wire.encode(payload)
    assert len(frame) == layout.num_bytes(payload)
    assert len(frame) <= budget or measure.is_skipped(payload)


def test_the_budget_is_used():
    for budget in (300, 500, 700):
        messages, *_ = conversation(budget, [normal(SHAPE, seed=seed) for seed in range(6)])
        assert np.mean([int(layout.num_bytes(payload)) for payload, _ in messages[2:]]) > 0.93 * budget


def test_a_wide_budget_buys_a_close_tensor_both_ways():
    """One step for all coefficients goes by the largest: it must be able to become small."""
    x, gradient = normal(SHAPE, seed=1), normal(SHAPE, seed=5) * jnp.geomspace(1.0, 0.02, SHAPE[0])[:, None, None, None]
    wide = compress.nsc_rd(max_rank=16, mean_bits=0)
    (enc, dec), duplex = wide.init(jax.random.key(0), spec(x)), compress.Duplex(wide, wide)
    up, enc = wide.compress(x, enc, side(20_000))
    x_hat, dec = wide.decompress(up, dec, side(20_000))
    down, _ = wide.compress(gradient, enc, duplex.side_down(up, side(20_000), enc))
    gradient_hat, _ = wide.decompress(down, dec, duplex.side_down(up, side(20_000), dec))
    for tensor, received in ((x, x_hat), (gradient, gradient_hat)):
        assert distortion(tensor, received) < 1e-5


def test_the_largest_entry_of_a_small_sample_crosses_as_it_is(monkeypatch):
    """Its spread takes eight classes off its group's, and the table of that class must still have such a symbol."""
    x = jax.random.uniform(jax.random.key(0), (8, 1024), minval=-1.0)
    x = x.at[0].set(0.0).at[0, 0].set(1.0)
    wide = compress.nsc_rd(max_features=1024, mean_bits=0)
    enc, dec = wide.init(jax.random.key(0), spec(x))
    monkeypatch.setattr(rd, "AFFORDABLE", 0.0)
    for budget in (9_000, 60_000):
        payload, _ = jax.jit(wide.compress)(x, enc, side(budget))
        assert payload.groups[0, 0, 1] <= -8
        assert abs(wide.decompress(payload, dec, side(budget))[0][0, 0] - 1) < 1e-2


def test_the_gradient_crosses_in_the_groups_of_its_uplink():
    x, gradient = smooth(1), normal(SHAPE, seed=5)
    _, enc, dec = conversation(300, [smooth(seed) for seed in range(4)])
    up, enc = COMPRESS(x, enc, side(300))
    _, dec = DECOMPRESS(up, dec, side(300))
    assert up.version > 0
    duplex = compress.Duplex(RD, RD)
    at_client, at_server = (duplex.side_down(up, side(4000), state) for state in (enc, dec))
    jax.tree.map(np.testing.assert_array_equal, at_client.support, at_server.support)
    down, _ = COMPRESS(gradient, RD.init(jax.random.key(0), spec(x))[0], at_server)
    assert down.moved == 0
    x_hat, _ = DECOMPRESS(down, dec, at_client)
    known = at_client.support
    assert 0 < known.is_sent.sum() < known.is_sent.size
    flat = gradient.reshape(SHAPE[0], 16, SHAPE[-1])
    coefficients = jnp.einsum("ks,bsc,jc->kjb", known.places, flat, known.features) * known.is_sent[..., None].astype(
        jnp.float32
    )
    expected = jnp.einsum("ks,kjb,jc->bsc", known.places, coefficients, known.features).reshape(SHAPE)
    assert distortion(expected, x_hat) < 0.01


def test_a_downlink_has_the_sizes_of_its_uplink():
    """Its own are others: the frame keeps to the budget, and decodes alone."""
    _, enc, _dec = conversation(700, [smooth(seed) for seed in range(4)])
    up, enc = COMPRESS(smooth(4), enc, side(700))
    down = nsc_rd(max_rank=2, max_features=3)
    for budget in (60, 110, 140, 300):
        info = compress.Duplex(RD, down).side_down(up, side(budget), enc)
        payload, _ = down.compress(normal(SHAPE), down.init(jax.random.key(0), spec(smooth()))[0], info)
        frame = wire.encode(payload)
        assert len(frame) <= budget or measure.is_skipped(payload)
        jax.tree.map(np.testing.assert_array_equal, wire.decode(frame), jax.device_get(payload))


def test_dead_features_are_left_for_live_ones():
    shape = (16, 2, 2, 20)
    x = normal(shape).at[..., :12].set(0.0)
    compressor = nsc_rd(max_features=8)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    send = jax.jit(compressor.compress)
    for step in range(5):
        payload, enc = send(x, enc, side(PLENTY, step))
        x_hat, dec = compressor.decompress(payload, dec, side())
    assert distortion(x, x_hat) < 0.01


def test_zeros_leave_the_warm_basis_alone():
    _, enc, _ = conversation(700, [smooth(seed) for seed in range(4)])
    _, after = COMPRESS(jnp.zeros(SHAPE), enc, side(700))
    np.testing.assert_array_equal(after.places, enc.places)
    np.testing.assert_array_equal(after.features, enc.features)


def test_half_a_basis_is_refused():
    enc, dec = about_to_send_a_basis()
    payload, _ = COMPRESS(smooth(), enc, side(300))
    assert payload.moved > 6 * 3
    for moved in (1, 6 * 3 + 1, int(payload.moved) - 1):
        crossing = rd._crossing(payload.basis, jnp.int32(moved))
        version = rd._checksum(crossing, jnp.int32(moved))  # it is whole in every other respect
        half = dataclasses.replace(payload, moved=jnp.int32(moved), basis=crossing, version=version)
        x_hat, same = DECOMPRESS(half, dec, side(700))
        assert np.isnan(x_hat).all()
        jax.tree.map(np.testing.assert_array_equal, same, dec)


def test_a_dead_uplink_is_answered():
    enc, _dec = RD.init(jax.random.key(0), spec(smooth()))
    payload, enc = COMPRESS(jnp.zeros(SHAPE), enc, side(700))
    assert payload.rank >= 1
    assert RD.support(payload, enc).is_sent.all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_body_that_was_tampered_with_is_a_tensor_or_refused(data):
    enc, dec = about_to_send_a_basis()
    payload, _ = COMPRESS(smooth(), enc, side(300))
    assert payload.moved > 0
    frame = bytearray(wire.encode(payload)[:-4])
    end = 6 + int.from_bytes(frame[4:6], "little")
    for position in data.draw(st.sets(st.integers(end, len(frame) - 1), min_size=1, max_size=8)):
        frame[position] = data.draw(st.integers(0, 255))
    try:
        payload = wire.decode(sealed(frame))
    except wire.WireError:
        return
    assert len(wire.encode(payload)) == layout.num_bytes(payload)
    assert DECOMPRESS(jax.tree.map(jnp.asarray, payload), dec, side(700))[0].shape == SHAPE


def test_coded_bytes_have_one_form():
    enc, _ = RD.init(jax.random.key(0), spec(smooth()))
    payload, _ = COMPRESS(smooth(), enc, side(700))
    longer = dataclasses.replace(payload, size=payload.size + 4)
    frame = bytearray(wire.encode(longer)[:-4])
    assert wire.decode(sealed(frame)).size == payload.size + 4
    frame[-1] = 1
    with pytest.raises(wire.WireError, match="no encoder makes"):
        wire.decode(sealed(frame))


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_a_frame_is_no_larger_than_its_share_of_the_energy_takes(energy):
    x, compressor = smooth(), nsc_rd(places="cosines", energy=energy)
    enc, dec = compressor.init(jax.random.key(0), spec(x))
    payload, _ = compressor.compress(x, enc, side(PLENTY))
    x_hat, _ = compressor.decompress(payload, dec, side())
    assert 1 - energy <= distortion(x, x_hat) < 1.3 * (1 - energy) + 1e-3
    assert layout.num_bytes(payload) < layout.num_bytes(nsc_rd(places="cosines").compress(x, enc, side(PLENTY))[0])
    # Where the budget is what limits, it is as without.
    short, shortest = (nsc_rd(energy=share).compress(x, enc, side(130))[0] for share in (0.999, 1.0))
    jax.tree.map(np.testing.assert_array_equal, short, shortest)


def test_a_gradient_has_its_own_share_of_the_energy():
    x, grad = smooth(), smooth(1)
    enc, dec = RD.init(jax.random.key(0), spec(x))
    up, enc = COMPRESS(x, enc, side(2000))
    info = side(PLENTY)._replace(support=RD.support(up, enc))
    for energy in (0.5, 0.9):
        grad_hat, _ = RD.decompress(nsc_rd(energy=energy).compress(grad, None, info)[0], dec, info)
        # What the uplink's groups have of it.
        inside, _ = RD.decompress(RD.compress(grad, None, info)[0], dec, info)
        assert 1 - energy <= distortion(inside, grad_hat) + 1e-3 < 1.3 * (1 - energy) + 1e-3


def penalised(x, weight=0.5, budget=300, places="cosines"):
    """Returns (penalty of the tensor alone, payload)."""
    compressor = nsc_rd(weight=weight, places=places)
    enc, _ = compressor.init(jax.random.key(0), spec(x))
    payload, enc = jax.jit(compressor.compress)(x, enc, side(budget))
    return lambda x: compressor.penalty(x, payload, enc), payload


def test_the_rate_penalty_is_the_logarithm_of_the_size():
    x = smooth()
    penalty, payload = penalised(x, weight=1.0)
    # A Gaussian's size is a bound that a coder with classes by the deviation comes near to.
    assert 0.4 < float(jnp.exp(penalty(x))) / (8 * float(payload.size)) < 1.5
    np.testing.assert_allclose(penalised(x, weight=0.25)[0](x), penalty(x) / 4, rtol=1e-6)


def test_steps_against_the_rate_penalty_make_a_smaller_frame():
    x = shorter = smooth() + normal(SHAPE, seed=3)
    for _ in range(10):
        grad = jax.grad(penalised(shorter)[0])(shorter)
        shorter -= 0.05 * grad * jnp.linalg.norm(x) / jnp.linalg.norm(grad)
    same = nsc_rd(places="cosines", energy=0.9)
    enc, _ = same.init(jax.random.key(0), spec(x))
    before, after = (int(layout.num_bytes(same.compress(tensor, enc, side(PLENTY))[0])) for tensor in (x, shorter))
    assert after < 0.9 * before


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20, 1e38])
@pytest.mark.parametrize("budget", [0, 300])
@pytest.mark.parametrize("places", PLACES)
def test_the_rate_penalty_is_finite_whatever_the_tensor(scale, budget, places):
    x = smooth() / 20 * scale
    penalty, _ = penalised(x, budget=budget, places=places)
    value, grad = jax.value_and_grad(penalty)(x)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(grad))
    assert scale > 0 or not jnp.any(grad)


def test_the_rate_penalty_of_what_has_no_row_is_nothing():
    x = jnp.asarray(np.indices(SHAPE).sum(0) % 2 * 2.0 - 1) * 1e19  # the fastest cosine
    penalty, _ = penalised(x, places="cosines", budget=110)
    assert jnp.isfinite(penalty(x))


def test_without_a_weight_there_is_no_penalty():
    assert nsc_rd().penalty is None


@pytest.mark.parametrize(("argument", "value"), [("energy", 0.0), ("energy", 1.5), ("weight", -1.0)])
def test_an_argument_out_of_range_is_refused(argument, value):
    with pytest.raises(check.InputError, match=argument):
        nsc_rd(**{argument: value})

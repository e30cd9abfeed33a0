import hashlib

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from nscjax.compress import entropy


def own_classes(classes, spreads):
    own = np.clip(classes[..., None].astype(int) + spreads, 1, entropy.NUM_CLASSES - 1)
    return np.where(classes[..., None] > 0, own, 0)


def cost_bytes(classes, spreads, symbols):
    """What the tables say that the coder needs."""
    above = np.concatenate([np.zeros_like(classes[:1]), classes[:-1]])
    of_map = entropy.class_bits()[above, classes].sum()
    of_spreads = entropy.symbol_bits()[entropy.SPREAD_CLASS, np.abs(spreads.astype(int))].sum()
    of_symbols = entropy.symbol_bits()[own_classes(classes, spreads), np.abs(symbols.astype(int))].sum()
    return (of_map + of_spreads + of_symbols) / entropy.COST_UNIT / 8


def groups(seed, rows, columns, n, spread):
    """Random classes and spreads, and symbols as they are in such classes, or `spread` times as wide."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, entropy.NUM_CLASSES, (rows, columns)).astype(np.uint8)
    spreads = np.clip(np.round(4 * random.normal(size=n)), -entropy.MOST_SPREAD, entropy.MOST_SPREAD).astype(np.int8)
    own = own_classes(classes, spreads)
    deviation = 2.0 ** ((own - float(entropy.CLASS_OF_ONE)) / 2)
    values = random.laplace(size=(rows, columns, n)) * deviation / 2**0.5 * spread
    symbols = np.sign(values) * np.floor(np.abs(values) + 1 - entropy.dead_zones()[own])
    most = entropy.limits()[own]
    symbols = np.where(classes[..., None] > 0, np.clip(symbols, -most, most), 0)
    return classes, spreads, symbols.astype(np.int16)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), columns=st.integers(1, 9), n=st.integers(1, 40),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
def test_groups_come_back_and_take_no_more_than_was_counted(seed, rows, columns, n, spread):
    sent = groups(seed, rows, columns, n, spread)
    data = entropy.encode(*sent)
    assert len(data) <= cost_bytes(*sent) + entropy.SLACK_BYTES
    for padding in (0, 1, 7):
        received = entropy.decode(data + bytes(padding), rows, columns, n)
        jax.tree.map(np.testing.assert_array_equal, received, sent)


def test_the_count_is_close():
    sent = groups(0, 16, 32, 128, 1.0)
    needed, counted = len(entropy.encode(*sent)), cost_bytes(*sent) + entropy.SLACK_BYTES
    assert needed <= counted <= needed * 1.005


@given(data=st.binary(max_size=60))
def test_any_bytes_are_groups_or_refused(data):
    try:
        classes, spreads, symbols = entropy.decode(data, 2, 3, 4)
    except entropy.CodeError:
        return
    assert (classes.shape, spreads.shape, symbols.shape) == ((2, 3), (4,), (2, 3, 4))
    assert classes.max() < entropy.NUM_CLASSES
    assert np.abs(spreads).max() <= entropy.MOST_SPREAD
    assert (np.abs(symbols) <= entropy.limits()[own_classes(classes, spreads)]).all()


def test_tables_are_probabilities_of_everything():
    symbols, classes = entropy.symbol_tables(), entropy.class_tables()
    for table, limit in zip(symbols, entropy.limits()):
        assert table[: limit + 1].min() >= 1
        assert not table[limit + 1 :].any()
    assert classes.min() >= 1
    np.testing.assert_array_equal(symbols[:, 0] + 2 * symbols[:, 1:].sum(axis=1), entropy.TOTAL)
    np.testing.assert_array_equal(classes.sum(axis=1), entropy.TOTAL)


def test_a_spread_leaves_the_widest_class_all_its_symbols():
    assert (entropy.limits()[entropy.NUM_CLASSES - 1 - entropy.MOST_SPREAD :] == entropy.MOST).all()


def test_a_symbol_is_counted_at_what_the_coder_makes_of_its_probability():
    """Constriction gives every symbol of a table of N at least 2**-24, out of the others' N / 2**24."""
    for table, limit, bits in zip(entropy.symbol_tables()[1:], entropy.limits()[1:], entropy.symbol_bits()[1:]):
        kept = table[: limit + 1] / entropy.TOTAL * (1 - (2 * limit + 1) / 2**24)
        assert (bits[: limit + 1] / entropy.COST_UNIT >= -np.log2(kept)).all()


def test_megabytes_of_equal_symbols_take_no_more_than_was_counted():
    classes = np.full((256, 16), 19, np.uint8)
    sent = classes, np.zeros(256, np.int8), np.full((256, 16, 256), 36, np.int16)
    assert len(entropy.encode(*sent)) <= cost_bytes(*sent) + entropy.SLACK_BYTES


def test_the_tables_are_what_they_were():
    """Another machine's, or another version's, would decode to something else."""
    digest = hashlib.sha256(entropy.symbol_tables().tobytes() + entropy.class_tables().tobytes()).hexdigest()
    assert digest == "22cf60de0ab3ac7370c8ef98b8f88017e33c159f0096bf35d00716198bb3a5d6"


@pytest.mark.parametrize("c", range(1, entropy.NUM_CLASSES))
def test_the_centroid_is_the_mean_of_a_step(c):
    scale = 2.0 ** ((c - entropy.CLASS_OF_ONE - 1) / 2)
    zone = float(entropy.dead_zones()[c])
    x = np.linspace(zone, 1 + zone, 200_001)
    density = np.exp(-(x - x[0]) / scale)
    assert abs(1 + entropy.centroids()[c] - (x * density).sum() / density.sum()) < 1e-3


def test_symbols_of_a_narrow_class_cost_next_to_nothing():
    costs = entropy.symbol_bits() / entropy.COST_UNIT
    assert costs[1, 0] < 0.02
    assert 1.0 < costs[entropy.CLASS_OF_ONE, 0] + costs[entropy.CLASS_OF_ONE, 1] < 4.0
    assert not costs[0].any()

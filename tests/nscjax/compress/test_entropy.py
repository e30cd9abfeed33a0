import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nscjax.compress import entropy


def cost_bytes(classes, symbols):
    """What the tables say that the coder needs."""
    above = np.concatenate([np.zeros_like(classes[:1]), classes[:-1]])
    of_map = entropy.class_bits()[above, classes].sum()
    of_symbols = entropy.symbol_bits()[classes[..., None], np.abs(symbols.astype(int))].sum()
    return (of_map + of_symbols) / entropy.COST_UNIT / 8


def groups(seed, rows, columns, n, spread):
    """Random classes, and symbols as they are in such classes, or `spread` times as wide."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, entropy.NUM_CLASSES, (rows, columns)).astype(np.uint8)
    deviation = 2.0 ** ((classes - float(entropy.CLASS_OF_ONE)) / 2)
    values = random.laplace(size=(rows, columns, n)) * deviation[..., None] / 2**0.5 * spread
    symbols = np.sign(values) * np.floor(np.abs(values) + 1 - entropy.DEAD_ZONE)
    symbols = np.where(classes[..., None] > 0, np.clip(symbols, -entropy.MOST, entropy.MOST), 0)
    return classes, symbols.astype(np.int8)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), columns=st.integers(1, 9), n=st.integers(1, 40),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
def test_groups_come_back_and_take_no_more_than_was_counted(seed, rows, columns, n, spread):
    classes, symbols = groups(seed, rows, columns, n, spread)
    data = entropy.encode(classes, symbols)
    assert len(data) <= cost_bytes(classes, symbols) + entropy.SLACK_BYTES
    for padding in (0, 1, 7):
        classes_hat, symbols_hat = entropy.decode(data + bytes(padding), rows, columns, n)
        np.testing.assert_array_equal(classes_hat, classes)
        np.testing.assert_array_equal(symbols_hat, symbols)


def test_the_count_is_close():
    classes, symbols = groups(0, 16, 32, 128, 1.0)
    needed, counted = len(entropy.encode(classes, symbols)), cost_bytes(classes, symbols) + entropy.SLACK_BYTES
    assert needed <= counted <= needed * 1.005


@given(data=st.binary(max_size=60))
def test_any_bytes_are_groups_or_refused(data):
    try:
        classes, symbols = entropy.decode(data, 2, 3, 4)
    except entropy.CodeError:
        return
    assert (classes.shape, symbols.shape) == ((2, 3), (2, 3, 4))
    assert classes.max() < entropy.NUM_CLASSES


@pytest.mark.parametrize("tables", [entropy.symbol_tables, entropy.class_tables])
def test_tables_are_probabilities_of_everything(tables):
    assert tables().min() >= 1
    np.testing.assert_array_equal(tables().sum(axis=1), entropy.TOTAL)


def test_the_tables_are_what_they_were():
    """Another machine's, or another version's, would decode to something else."""
    digest = hashlib.sha256(entropy.symbol_tables().tobytes() + entropy.class_tables().tobytes()).hexdigest()
    assert digest == "067bcbbcebbe0e1dbfc6e61205eeeb96c72f3782cdeb75281c8a7313e9fef86f"


@pytest.mark.parametrize("c", range(1, entropy.NUM_CLASSES - 2))
def test_the_centroid_is_the_mean_of_a_step(c):
    scale = 2.0 ** ((c - entropy.CLASS_OF_ONE - 1) / 2)
    x = np.linspace(1 - 1 + entropy.DEAD_ZONE, 1 + entropy.DEAD_ZONE, 200_001)
    density = np.exp(-(x - x[0]) / scale)
    assert abs(1 + entropy.centroids()[c] - (x * density).sum() / density.sum()) < 1e-3


def test_symbols_of_a_narrow_class_cost_next_to_nothing():
    costs = entropy.symbol_bits() / entropy.COST_UNIT
    assert costs[1, 0] < 0.02
    assert 1.0 < costs[entropy.CLASS_OF_ONE, 0] + costs[entropy.CLASS_OF_ONE, 1] < 4.0
    assert not costs[0].any()

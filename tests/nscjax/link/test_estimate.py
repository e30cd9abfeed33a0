import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax import link
from nscjax.check import InputError
from tests.nscjax.tensors import Counted

every_estimator = pytest.mark.parametrize("name", link.ESTIMATORS)


@functools.partial(jax.jit, static_argnums=0)
def observe(estimator, state, num_bytes, seconds):
    """Updates with one transfer after the other; returns the last state and the estimate after each."""

    def update(state, transfer):
        state = estimator.update(state, *transfer)
        return state, estimator.mbit_per_s(state)

    return jax.lax.scan(update, state, (num_bytes, seconds))


def follow(estimator, rates, initial=1.0):
    """Estimates before each of the transfers of 1 s at the given rates and after the last; and the last state."""
    state = estimator.init(initial)
    num_bytes = jnp.asarray(np.round(np.array(rates) * 125_000), jnp.int32)
    last, estimates = observe(estimator, state, num_bytes, jnp.ones(len(rates)))
    return np.append(estimator.mbit_per_s(state), np.float64(estimates)), last


@every_estimator
def test_estimate_is_initial_then_the_first_rate_seen(name):
    estimates, _ = follow(link.ESTIMATORS[name](), [8.0], initial=link.UNLIMITED_MBIT_PER_S)
    np.testing.assert_allclose(estimates, [link.UNLIMITED_MBIT_PER_S, 8.0], rtol=1e-6)


@every_estimator
def test_estimate_of_a_steady_link_is_its_rate(name):
    estimates, _ = follow(link.ESTIMATORS[name](), [3.0] * 20)
    np.testing.assert_allclose(estimates[1:], 3.0, rtol=1e-6)


@every_estimator
def test_estimate_takes_rounding_for_no_change(name):
    estimates, _ = follow(link.ESTIMATORS[name](), [3.0, 374_999 / 125_000] * 50)
    np.testing.assert_allclose(estimates[1:], 3.0, rtol=1e-5)


@every_estimator
def test_estimate_follows_a_lasting_change(name):
    estimates, _ = follow(link.ESTIMATORS[name](), [1.0] * 10 + [4.0] * 60)
    assert estimates[-1] == pytest.approx(4.0, rel=0.05)


@every_estimator
@pytest.mark.parametrize(("num_bytes", "seconds"), [(0, 5.0), (0, 0.0), (100, 5e-4), (100, 0.0), (9, float("nan"))])
def test_what_tells_nothing_is_left_out(name, num_bytes, seconds):
    estimator = link.ESTIMATORS[name]()
    for state in (estimator.init(2.0), follow(estimator, [3.0, 2.0, 4.0])[1]):
        after = estimator.update(state, num_bytes, seconds)
        assert jax.tree.all(jax.tree.map(np.array_equal, after, state))


@every_estimator
def test_estimate_far_too_low_recovers_through_short_messages(name):
    estimator = link.ESTIMATORS[name]()
    state = estimator.init(1.0)
    for _ in range(20):
        state = estimator.update(state, 50, 100.0)
    assert float(estimator.mbit_per_s(state)) < 1e-5
    for _ in range(20):
        num_bytes = max(50, int(link.budget_bytes(estimator.mbit_per_s(state), 1.0, 0.0)))
        state = estimator.update(state, num_bytes, num_bytes * 8e-6 / 100.0)
    assert float(estimator.mbit_per_s(state)) > 10.0


estimators = {name: make() for name, make in link.ESTIMATORS.items()}
transfers = st.tuples(st.integers(0, 2**31 - 1), st.floats(0, 2.0**100, width=32) | st.floats(0, 2, width=32))


@every_estimator
@settings(deadline=None, max_examples=100)
@given(st.lists(transfers, min_size=10, max_size=10))
def test_estimate_is_always_a_positive_number(name, transfers):
    num_bytes, seconds = zip(*transfers)
    estimator = estimators[name]
    _, estimates = observe(estimator, estimator.init(1.0), jnp.int32(num_bytes), jnp.float32(seconds))
    assert np.all((estimates > 0) & (estimates < np.inf))


@every_estimator
def test_updates_compile_once(name):
    estimator = link.ESTIMATORS[name]()
    counted = Counted(estimator.update)
    update = jax.jit(counted)
    state = estimator.init(1.0)
    for num_bytes, seconds in [(0, 0.0), (10, 1.0), (1000, 5.0)]:
        state = update(state, num_bytes, seconds)
    assert counted.num_traces == 1


twelve_rates = st.lists(st.floats(0.1, 100), min_size=12, max_size=12)
double_average, last_three, bold_quantile = (
    link.ewma(fast=0.5, slow=0.1),
    link.harmonic(window=3),
    link.quantile(miss=0.1, gain=0.2),
)


@settings(deadline=None, max_examples=50)
@given(twelve_rates)
def test_ewma_is_the_smaller_average(rates):
    estimates, _ = follow(double_average, rates)
    fast = slow = rates[0]
    for rate, estimate in zip(rates, estimates[1:]):
        fast, slow = fast + 0.5 * (rate - fast), slow + 0.1 * (rate - slow)
        assert estimate == pytest.approx(min(fast, slow), rel=2e-4)


@settings(deadline=None, max_examples=50)
@given(twelve_rates)
def test_harmonic_is_the_mean_of_the_last_few(rates):
    estimates, _ = follow(last_three, rates)
    padded = [rates[0]] * 2 + rates
    for i, estimate in enumerate(estimates[1:]):
        assert estimate == pytest.approx(3 / np.sum(1 / np.array(padded[i : i + 3])), rel=2e-4)


@pytest.mark.parametrize("miss", [0.05, 0.2])
def test_quantile_is_missed_as_often_as_asked(miss):
    rates = np.exp(np.random.default_rng(0).normal(0, 0.7, 1500)) * 5
    estimates, _ = follow(link.quantile(miss=miss), rates)
    rates, estimates = rates[300:], estimates[300:-1]
    assert np.mean(rates < estimates) == pytest.approx(miss, abs=0.015)
    assert np.mean(np.minimum(estimates, rates) / rates) > 0.2


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.1, 100), min_size=60, max_size=60))
def test_quantile_bounds_its_misses_on_any_link(rates):
    estimates, state = follow(bold_quantile, rates)
    misses = np.sum(np.array(rates)[1:] < estimates[1:-1] * (1 - 1e-4))
    assert misses <= 0.1 * (len(rates) - 1) - float(state.rates.log_margin) / 0.2 + 1e-3


@pytest.mark.parametrize(
    ("mbit_per_s", "deadline_s", "latency_s", "expected"),
    [
        (8.0, 1.0, 0.0, 1_000_000),
        (8.0, 1.0, 0.25, 750_000),
        (8.0, 0.25, 0.25, 0),
        (8.0, 0.1, 0.25, 0),
        (0.0, 1.0, 0.0, 0),
        (1e-6, 1.0, 0.0, 0),
        (17_179.0, 1.0, 0.0, 2_147_375_000),
        (17_180.0, 1.0, 0.0, 2**31 - 1),
        (1e24, 1e9, 0.0, 2**31 - 1),
        (1.0, float("inf"), 0.1, 2**31 - 1),
    ],
)
def test_budget_bytes(mbit_per_s, deadline_s, latency_s, expected):
    for budget in (link.budget_bytes, jax.jit(link.budget_bytes)):
        num_bytes = budget(mbit_per_s, deadline_s, latency_s)
        assert num_bytes.dtype == jnp.int32
        assert int(num_bytes) == pytest.approx(expected, rel=2e-7)


@settings(deadline=None, max_examples=100)
@given(st.floats(2**-7, 2**10, width=32), st.floats(2**-7, 16, width=32), st.floats(0, 1, width=32))
def test_budget_just_arrives_within_the_deadline(mbit_per_s, deadline_s, latency_s):
    num_bytes = int(link.budget_bytes(mbit_per_s, deadline_s, latency_s))
    arrival_s = latency_s + num_bytes * 8e-6 / mbit_per_s
    assert num_bytes == 0 or arrival_s <= deadline_s * (1 + 1e-6)
    assert arrival_s + 8e-6 / mbit_per_s > deadline_s * (1 - 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: link.ewma(fast=0.0), r"fast is 0.0; allowed: a number in \(0, 1\]"),
        (lambda: link.ewma(slow=2.0), r"slow is 2.0; allowed: a number in \(0, 1\]"),
        (lambda: link.harmonic(window=0), "window is 0; allowed: a whole number >= 1"),
        (lambda: link.quantile(miss=1.5), r"miss is 1.5; allowed: a number in \(0, 1\]"),
        (lambda: link.quantile(gain=0.0), r"gain is 0.0; allowed: a number in \(0, 1\]"),
        (lambda: link.ewma(min_seconds=0.0), "min_seconds is 0.0; allowed: a finite number >= 1e-09"),
    ],
)
def test_estimators_refuse_what_is_out_of_range(make, message):
    with pytest.raises(InputError, match=message):
        make()

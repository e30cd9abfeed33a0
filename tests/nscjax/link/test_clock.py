import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax import link
from tests.nscjax.link.reference import Reference

ROUNDING = 2e-6

advance = jax.jit(link.advance)
transfer = jax.jit(link.transfer)


@st.composite
def positions(draw):
    """A trace of 1, 3 or 17 segments, some silent, and a clock in it."""
    size = draw(st.sampled_from([1, 3, 17]))
    seconds = draw(st.lists(st.floats(2**-7, 128, width=32), min_size=size, max_size=size))
    rate = st.just(0.0) | st.floats(2**-10, 1024, width=32)
    rates = draw(st.lists(rate, min_size=size, max_size=size).filter(any))
    segment = draw(st.integers(0, size - 1))
    offset_s = np.float32(seconds[segment]) * np.float32(draw(st.floats(0, 0.99)))
    trace = link.Trace(jnp.float32(seconds), jnp.float32(rates))
    return trace, link.Clock(jnp.int32(segment), jnp.float32(offset_s))


def assert_valid(trace, clock):
    assert 0 <= int(clock.segment) < len(trace.seconds)
    assert 0 <= float(clock.offset_s) < float(trace.seconds[clock.segment])


num_bytes = st.integers(0, 1000) | st.integers(0, 100_000_000) | st.integers(0, 2**31 - 1)


@settings(deadline=None, max_examples=200)
@given(positions(), num_bytes)
def test_transfer_agrees_with_the_reference_and_conserves_bits(position, num_bytes):
    trace, clock = position
    reference = Reference(trace)
    start_s, mbit = reference.position(clock), num_bytes * 8e-6
    end, seconds = transfer(trace, clock, num_bytes)
    # An outage right at the end makes the time jump: so bounds from a hair fewer and a hair more bits.
    earliest = reference.finish(start_s, mbit * (1 - ROUNDING)) - start_s
    latest = reference.finish(start_s, mbit * (1 + ROUNDING)) - start_s
    assert earliest * (1 - ROUNDING) <= float(seconds) <= latest * (1 + ROUNDING)
    slack = ROUNDING * (mbit + float(seconds) * max(reference.rates)) + 1e-12
    assert reference.carried(start_s + float(seconds)) - reference.carried(start_s) == pytest.approx(mbit, abs=slack)
    assert_valid(trace, end)
    position_slack = ROUNDING * (float(seconds) + 128)
    assert reference.distance(reference.position(end), start_s + float(seconds)) <= position_slack


@settings(deadline=None, max_examples=200)
@given(positions(), st.floats(0, 2**20, width=32) | st.floats(0, 1, width=32), st.floats(0, 2**10, width=32))
def test_advance_agrees_with_the_reference_and_adds_up(position, first_s, second_s):
    trace, clock = position
    reference = Reference(trace)
    start_s = reference.position(clock)
    slack = ROUNDING * (first_s + second_s + 128)
    end = advance(trace, clock, first_s)
    assert_valid(trace, end)
    assert reference.distance(reference.position(end), start_s + first_s) <= slack
    stepwise = advance(trace, end, second_s)
    at_once = advance(trace, clock, np.float32(first_s) + np.float32(second_s))
    assert reference.distance(reference.position(stepwise), reference.position(at_once)) <= slack


@settings(deadline=None, max_examples=50)
@given(positions())
def test_nothing_takes_no_time(position):
    trace, clock = position
    end, seconds = transfer(trace, clock, 0)
    assert float(seconds) == 0
    assert end == clock
    assert advance(trace, clock, 0.0) == clock


def long_trace():
    random = np.random.default_rng(0)
    rates = random.exponential(3.0, 12_000) * (random.random(12_000) > 0.1)
    return link.Trace(jnp.full(12_000, 0.1), jnp.asarray(rates, jnp.float32))


@pytest.mark.parametrize("num_bytes", [1, 1_000_000, 100_000_000, 400_000_000, 2_000_000_000])
def test_transfer_is_exact_over_thousands_of_segments_and_laps(num_bytes):
    trace = long_trace()
    reference = Reference(trace)
    end, seconds = transfer(trace, link.start(), num_bytes)
    expected = reference.finish(0.0, num_bytes * 8e-6)
    assert float(seconds) == pytest.approx(expected, rel=3e-7)
    assert reference.distance(reference.position(end), expected) <= 3e-7 * expected


def test_clock_does_not_drift_over_a_long_run():
    trace = long_trace()
    reference = Reference(trace)
    sizes = jnp.asarray(np.random.default_rng(1).integers(0, 2_000_000, 2_000), jnp.int32)

    def send(clock, num_bytes):
        return link.transfer(trace, clock, num_bytes)

    end, seconds = jax.jit(lambda sizes: jax.lax.scan(send, link.start(), sizes))(sizes)
    expected = reference.finish(0.0, float(np.sum(np.float64(sizes))) * 8e-6)
    assert expected > 4 * reference.period_s
    assert np.sum(np.float64(seconds)) == pytest.approx(expected, rel=1e-7)
    # A float32 sum of all seconds would be off by more than a segment of 0.1 s.
    assert reference.distance(reference.position(end), expected) < 1e-3


def test_whole_laps_end_before_the_outage_that_follows():
    trace = link.Trace(jnp.ones(2), jnp.float32([1.0, 0.0]))
    for laps in (1, 3):
        end, seconds = transfer(trace, link.start(), 125_000 * laps)
        assert float(seconds) == 2 * laps - 1
        assert int(end.segment) == 1


def test_constant_link_takes_bits_over_rate():
    for num_bytes, expected in [(1, 8e-7), (125_000, 0.1), (100_000_000, 80.0), (2_000_000_000, 1600.0)]:
        _, seconds = transfer(link.constant(10.0), link.start(), num_bytes)
        assert float(seconds) == pytest.approx(expected, rel=2e-7)


def test_slowest_link_does_not_hang():
    trace = link.Trace(jnp.full(3, 0.1), jnp.float32([0.0, 1e-5, 0.0]))
    _, seconds = transfer(trace, link.start(), 2**31 - 1)
    assert float(seconds) == pytest.approx(2**34 * 1e-6 / 1e-5 * 3, rel=1e-6)


def test_unlimited_link_takes_no_time():
    end, seconds = transfer(link.unlimited(), link.start(), 2**31 - 1)
    assert float(seconds) == 0
    assert np.isfinite(end.offset_s)


def test_clocks_map_over_many_links():
    traces = [link.lte_like(seed, duration_s=5.0) for seed in range(4)]
    sizes = jnp.int32([0, 1, 100_000, 50_000_000])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *traces)
    ends, seconds = jax.jit(jax.vmap(link.transfer, in_axes=(0, None, 0)))(stacked, link.start(), sizes)
    for i, trace in enumerate(traces):
        end, expected = transfer(trace, link.start(), sizes[i])
        assert float(seconds[i]) == pytest.approx(float(expected), rel=1e-6)
        assert int(ends.segment[i]) == int(end.segment)
        assert float(ends.offset_s[i]) == pytest.approx(float(end.offset_s), abs=1e-4)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import link
from tests.nscjax.link.reference import Reference
from tests.nscjax.tensors import Counted

every_estimator = pytest.mark.parametrize("name", link.ESTIMATORS)


def lte_link(**times):
    return link.Link(link.lte_like(0, duration_s=60.0), link.lte_like(1, duration_s=45.0), **times)


def spend_budgets(estimator, deadline_s, num_steps, least=100):
    """A run whose messages are as large as their budgets: (states, budgets, seconds), a row a step."""

    def step(wire, state, _):
        before = state
        up_bytes = jnp.maximum(link.budgets(wire, estimator, state, deadline_s)[0], least)
        state, up_seconds = link.send_up(wire, estimator, state, up_bytes)
        down_bytes = jnp.maximum(link.budgets(wire, estimator, state, deadline_s)[1], least)
        state, down_seconds = link.send_down(wire, estimator, state, down_bytes)
        return state, (before, jnp.stack([up_bytes, down_bytes]), jnp.stack([up_seconds, down_seconds]))

    def run(wire):
        state = link.init(wire, estimator)
        return jax.lax.scan(lambda state, _: step(wire, state, _), state, None, length=num_steps)[1]

    return jax.jit(run)


def test_a_step_by_hand():
    wire = link.Link(link.constant(1.0), link.constant(4.0), 0.1, 0.2, 0.3, 0.4)
    estimator = link.ewma()
    state = link.init(wire, estimator, up_mbit_per_s=2.0, down_mbit_per_s=8.0)
    exchange = jax.jit(link.exchange, static_argnums=1)
    assert [int(b) for b in link.budgets(wire, estimator, state, 1.1)] == [250_000, 900_000]
    state, up_seconds, down_seconds = exchange(wire, estimator, state, 125_000, 250_000)
    assert float(up_seconds) == pytest.approx(1.1)
    assert float(down_seconds) == pytest.approx(0.7)
    assert float(estimator.mbit_per_s(state.up_estimate)) == pytest.approx(1.0)
    assert float(estimator.mbit_per_s(state.down_estimate)) == pytest.approx(4.0)
    for clock in (state.up_clock, state.down_clock):
        assert float(clock.offset_s) == pytest.approx(2.5 % 1.0, abs=1e-6)


def test_exchange_agrees_with_the_reference():
    wire = lte_link(up_latency_s=0.02, down_latency_s=0.03, client_step_s=0.05, server_step_s=0.11)
    estimator = link.quantile()
    up, down = Reference(wire.up), Reference(wire.down)
    sizes = np.random.default_rng(0).integers(0, 400_000, (150, 2))
    exchange = jax.jit(lambda state, a, b: link.exchange(wire, estimator, state, a, b))
    state = link.init(wire, estimator, start_s=7.0)
    now = 7.0
    for up_bytes, down_bytes in sizes:
        state, up_seconds, down_seconds = exchange(state, up_bytes, down_bytes)
        leaves = now + 0.05
        now = up.finish(leaves, up_bytes * 8e-6) + 0.02
        assert float(up_seconds) == pytest.approx(now - leaves, abs=2e-4)
        leaves = now + 0.11
        now = down.finish(leaves, down_bytes * 8e-6) + 0.03
        assert float(down_seconds) == pytest.approx(now - leaves, abs=2e-4)
    assert now > 2 * up.period_s
    assert up.distance(up.position(state.up_clock), now) < 1e-4
    assert down.distance(down.position(state.down_clock), now) < 1e-4


def test_unlimited_link_takes_its_latency_and_bounds_nothing():
    wire = link.Link(link.unlimited(), link.unlimited(), 0.1, 0.2)
    exchange = jax.jit(link.exchange, static_argnums=1)
    for make in link.ESTIMATORS.values():
        estimator = make()
        state = link.init(wire, estimator)
        for _ in range(3):
            assert [int(b) for b in link.budgets(wire, estimator, state, 1.0)] == [2**31 - 1] * 2
            state, *seconds = exchange(wire, estimator, state, 2**31 - 1, 5)
            np.testing.assert_array_equal(seconds, np.float32([0.1, 0.2]))
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every_estimator
def test_budgets_never_depend_on_the_future(name):
    past = link.lte_like(0, duration_s=60.0)
    fork = len(past.seconds) // 2
    other = past._replace(mbit_per_s=past.mbit_per_s.at[fork:].multiply(0.3))
    run = spend_budgets(link.ESTIMATORS[name](), 0.5, 120)
    states, budgets, seconds = run(link.Link(past, past))
    _, other_budgets, other_seconds = run(link.Link(other, other))
    up = Reference(past)
    starts = up.times[np.asarray(states.up_clock.segment)] + np.asarray(states.up_clock.offset_s)
    # A step that began before the fork may reach beyond it; the budgets of its uplink may not.
    first_beyond = int(np.argmax(starts >= up.times[fork]))
    assert 10 < first_beyond < 120
    np.testing.assert_array_equal(budgets[: first_beyond - 1], other_budgets[: first_beyond - 1])
    np.testing.assert_array_equal(budgets[first_beyond - 1, 0], other_budgets[first_beyond - 1, 0])
    np.testing.assert_array_equal(seconds[: first_beyond - 1], other_seconds[: first_beyond - 1])
    assert not np.array_equal(budgets[first_beyond:], other_budgets[first_beyond:])


def test_downlink_budget_sees_what_came_before_it():
    wire = lte_link()
    estimator = link.ewma()
    state = link.init(wire, estimator)
    before = link.budgets(wire, estimator, state, 1.0)
    state, _ = jax.jit(link.send_up, static_argnums=1)(wire, estimator, state, 100_000)
    between = link.budgets(wire, estimator, state, 1.0)
    assert int(between[0]) != int(before[0])
    assert int(between[1]) == int(before[1])


def test_quantile_keeps_deadlines_and_wastes_nothing_on_a_steady_link():
    run = spend_budgets(link.quantile(), 1.0, 200)
    _, _, seconds = run(lte_link(client_step_s=0.1, server_step_s=0.1))
    assert np.mean(seconds <= 1.0 + 1e-5) > 0.8
    _, budgets, seconds = run(link.Link(link.constant(3.0), link.constant(5.0)))
    np.testing.assert_allclose(budgets[1:], [[375_000, 625_000]] * 199, rtol=1e-4)
    np.testing.assert_allclose(seconds[1:], 1.0, rtol=1e-4)


def test_step_compiles_once_whatever_the_values():
    estimator = link.quantile()

    @Counted
    def step(wire, state, deadline_s):
        up_bytes, down_bytes = link.budgets(wire, estimator, state, deadline_s)
        return link.exchange(wire, estimator, state, up_bytes, down_bytes)

    compiled = jax.jit(step)
    for i in range(4):
        wire = lte_link(up_latency_s=0.01 * i, client_step_s=0.1 * i)
        wire = wire._replace(up=wire.up._replace(mbit_per_s=wire.up.mbit_per_s * (i + 1)))
        state = link.init(wire, estimator, up_mbit_per_s=float(i + 1))
        for deadline_s in (0.1, 1.0, 100.0):
            state, _, _ = compiled(wire, state, deadline_s)
    assert step.num_traces == 1


def test_links_map_over_clients():
    estimator = link.harmonic()
    run = spend_budgets(estimator, 0.5, 20)
    wires = [link.Link(link.lte_like(i, 20.0), link.lte_like(i + 5, 20.0), jnp.float32(0.01 * i)) for i in range(3)]
    together = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *wires)
    _, budgets, seconds = jax.vmap(run)(together)
    for i, wire in enumerate(wires):
        _, expected_budgets, expected_seconds = run(wire)
        np.testing.assert_allclose(budgets[i], expected_budgets, rtol=1e-5)
        np.testing.assert_allclose(seconds[i], expected_seconds, rtol=1e-5)

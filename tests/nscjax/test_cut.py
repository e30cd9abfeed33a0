import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, cut, wire
from tests.nscjax.tensors import normal, side, spec

X = normal((6, 10))
SIDES = (side(seed=1), side(seed=2))
PAIR = compress.Duplex(
    up=compress.nsc_sl(max_rank=2), down=compress.error_feedback(compress.nsc_sl(max_rank=2, factor_bits=4))
)
LAYER = cut.cut(PAIR)
TARGET = normal((6, 10), seed=9)


@functools.cache
def state():
    return jax.jit(LAYER.init, static_argnums=1)(jax.random.key(0), spec(X))


def squared(x_hat):
    return jnp.sum((x_hat - TARGET) ** 2)


@functools.cache
def one_step():
    """Returns (x_hat, new_up, gradient in x, new_down) of the squared distance after the cut."""

    @jax.jit
    def step(x, state, side_up, side_down):
        def loss(x, down):
            x_hat, new_up = LAYER.apply(x, state._replace(down=down), side_up, side_down)
            return squared(x_hat), (x_hat, new_up)

        (x_grad, new_down), (x_hat, new_up) = jax.grad(loss, (0, 1), has_aux=True)(x, state.down)
        return x_hat, new_up, x_grad, new_down

    return step(X, state(), *SIDES)


def test_forward_is_the_uplink():
    x_hat, new_up, _, _ = one_step()
    payload, enc = jax.jit(PAIR.up.compress)(X, state().up.enc, SIDES[0])
    expected, _ = jax.jit(PAIR.up.decompress)(payload, (), SIDES[0])
    np.testing.assert_allclose(x_hat, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_up.enc.right, enc.right, rtol=1e-5, atol=1e-6)


def test_backward_is_the_downlink_and_its_new_state_is_a_gradient():
    x_hat, _, x_grad, new_down = one_step()
    payload, enc = jax.jit(PAIR.down.compress)(2 * (x_hat - TARGET), state().down.enc, SIDES[1])
    expected, _ = jax.jit(PAIR.down.decompress)(payload, (), SIDES[1])
    np.testing.assert_allclose(x_grad, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new_down.enc.residual, enc.residual, rtol=1e-3, atol=1e-4)
    assert new_down.uses == 1


def test_the_next_state_is_of_the_same_form():
    _, new_up, _, new_down = one_step()
    after = cut.next_state(new_up, new_down)
    assert jax.tree.map(spec, after) == jax.tree.map(spec, state())
    assert after.up is new_up
    assert after.down is new_down


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_identity_is_plain_differentiation(dtype):
    layer = cut.cut(compress.Duplex(up=compress.identity(), down=compress.identity()))
    x, weights = X.astype(dtype), normal((10, 3), dtype, seed=4)
    empty = layer.init(jax.random.key(0), spec(x))

    def loss(x, weights, with_cut):
        smashed = jnp.tanh(x)
        if with_cut:
            smashed, _ = layer.apply(smashed, empty, *SIDES)
        return jnp.sum((smashed @ weights) ** 2)

    grads = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    jax.tree.map(np.testing.assert_array_equal, grads(x, weights, True), grads(x, weights, False))


def test_the_downlink_knows_what_the_uplink_fixed():
    down = compress.identity()._replace(
        compress=lambda x, state, side: (compress.base.Dense(values=jnp.where(side.support, x, 0.0)), state)
    )
    share = lambda payload, side: side._replace(support=payload.values > 0)  # noqa: E731
    layer = cut.cut(compress.Duplex(up=compress.identity(), down=down, share=share))
    empty = layer.init(jax.random.key(0), spec(X))
    grad = jax.grad(lambda x: jnp.sum(3 * layer.apply(x, empty, *SIDES)[0]))(X)
    np.testing.assert_array_equal(grad, jnp.where(X > 0, 3.0, 0.0))


def test_without_a_gradient_the_layer_is_the_uplink_alone():
    x_hat, new_up = jax.jit(LAYER.apply)(X, state(), *SIDES)
    np.testing.assert_allclose(x_hat, one_step()[0], rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(new_up) == jax.tree.structure(state().up)


def test_a_wrong_payload_would_be_seen_on_the_wire():
    """What the layer passes on is what `wire` would carry: the payload is no private form of the layer's."""
    payload, _ = jax.jit(PAIR.up.compress)(X, state().up.enc, SIDES[0])
    decoded = wire.decode(wire.encode(payload))
    np.testing.assert_allclose(PAIR.up.decompress(decoded, (), SIDES[0])[0], one_step()[0], rtol=1e-5, atol=1e-6)


# Traps


def counted(dtype):
    """The identity with a counter in the downlink's state."""
    identity = compress.identity()
    return compress.Duplex(
        up=identity,
        down=identity._replace(
            init=lambda key, spec: ({"count": jnp.zeros((), dtype)}, ()),
            compress=lambda x, state, side: (
                compress.base.Dense(values=x),
                {"count": state["count"] + jnp.ones((), dtype)},
            ),
        ),
    )


def test_an_integer_in_the_downlinks_state_is_refused():
    with pytest.raises(check.InputError) as caught:
        cut.cut(counted(jnp.int32)).init(jax.random.key(0), spec(X))
    assert str(caught.value) == (
        "state.down.enc['count']'s dtype is 'int32'; allowed: floating point. "
        "The new state travels as a cotangent, which integers have none of: keep counters in float32."
    )


LIGHT = cut.cut(counted(jnp.float32))
"""A layer that costs nothing to compile, with a state to watch."""


def light_grads(loss):
    """Returns (gradient in x, new downlink state) of `loss(x, state)` from a fresh state."""
    fresh = LIGHT.init(jax.random.key(0), spec(X))
    return jax.grad(lambda x, down: loss(x, fresh._replace(down=down)), argnums=(0, 1))(X, fresh.down)


def refused_uses(new_down):
    with pytest.raises(check.InputError) as caught:
        cut.next_state(cut.UpState((), ()), new_down)
    return str(caught.value)


def refusal(uses):
    return (
        f"uses of the downlink's state in the backward pass is {uses}; allowed: exactly 1. 0: the loss does not use "
        "x_hat. More: one state at two cuts, or shared under vmap; give each its own."
    )


def test_a_counter_in_float32_counts():
    _, down = light_grads(lambda x, state: squared(LIGHT.apply(x, state, *SIDES)[0]))
    assert cut.next_state(cut.UpState((), ()), down).down.enc["count"] == 1


def test_one_state_at_two_cuts_is_refused():
    def loss(x, state):
        once, _ = LIGHT.apply(x, state, *SIDES)
        return squared(LIGHT.apply(jnp.tanh(once), state, *SIDES)[0])

    assert refused_uses(light_grads(loss)[1]) == refusal(2.0)


def test_a_state_shared_under_vmap_is_refused():
    def loss(x, state):
        return jnp.sum(jax.vmap(lambda row: squared(LIGHT.apply(row, state, *SIDES)[0]))(jnp.stack([x] * 3)))

    assert refused_uses(light_grads(loss)[1]) == refusal(3.0)


def test_a_state_carried_unchanged_through_a_loop_is_refused():
    def loss(x, state):
        return jax.lax.fori_loop(0, 4, lambda _, y: LIGHT.apply(y, state, *SIDES)[0], x).sum()

    assert refused_uses(light_grads(loss)[1]) == refusal(4.0)


def test_an_x_hat_that_the_loss_does_not_use_is_refused():
    def loss(x, state):
        LIGHT.apply(x, state, *SIDES)
        return squared(x)

    assert refused_uses(light_grads(loss)[1]) == refusal(0.0)


def test_a_state_of_its_own_for_each_under_vmap_is_taken():
    fresh = LIGHT.init(jax.random.key(0), spec(X))
    downs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), fresh.down)

    def loss(x, down):
        return squared(LIGHT.apply(x, fresh._replace(down=down), *SIDES)[0])

    new_downs = jax.vmap(jax.grad(loss, argnums=1))(jnp.stack([X] * 3), downs)
    after = cut.next_state(cut.UpState((), ()), new_downs)
    np.testing.assert_array_equal(after.down.enc["count"], [1, 1, 1])


def test_inside_jit_the_next_state_is_passed_on_unchecked():
    _, down = light_grads(lambda x, state: squared(x) + 0 * state.down.uses)
    assert jax.jit(cut.next_state)(cut.UpState((), ()), down).down.uses == 0


def test_a_penalty_is_refused():
    penalty = lambda x, x_hat: jnp.sum((x - x_hat) ** 2)  # noqa: E731
    duplex = compress.Duplex(up=compress.identity(), down=compress.identity(), penalty=penalty)
    with pytest.raises(
        check.InputError, match=r"allowed: None\. Add the penalty to your own loss, or use nscjax\.split\."
    ):
        cut.cut(duplex)

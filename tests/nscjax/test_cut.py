import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, cut
from tests.nscjax.tensors import normal, side, spec

X = normal((6, 10))
TARGET = normal((6, 10), seed=9)
SIDES = (side(seed=1), side(seed=2))


def coarse(unit):
    """Rounds to multiples of `unit`, carries what is lost, and counts at the receiver: a state to watch, at no cost."""

    def init(key, spec):
        return {"lost": jnp.zeros(spec.shape, spec.dtype)}, {"count": jnp.zeros(())}

    def send(x, state, side):
        target = x + state["lost"]
        values = jnp.round(target / unit)
        return compress.base.Dense(values=values), {"lost": target - values * unit}

    def receive(payload, state, side):
        return payload.values * unit, {"count": state["count"] + 1}

    return compress.identity()._replace(init=init, compress=send, decompress=receive)


PAIR = compress.Duplex(up=coarse(0.5), down=coarse(2.0))
LAYER = cut.cut(PAIR)
STATE = LAYER.init(jax.random.key(0), spec(X))


def squared(x_hat):
    return jnp.sum((x_hat - TARGET) ** 2)


@jax.jit
def one_step(state):
    """Returns (x_hat, new_up, gradient in x, new_down) of the squared distance after the cut."""

    def loss(x, down):
        x_hat, new_up = LAYER.apply(x, state._replace(down=down), *SIDES)
        return squared(x_hat), (x_hat, new_up)

    (x_grad, new_down), (x_hat, new_up) = jax.grad(loss, (0, 1), has_aux=True)(X, state.down)
    return x_hat, new_up, x_grad, new_down


def test_forward_is_the_uplink():
    x_hat, new_up, _, _ = one_step(STATE)
    np.testing.assert_array_equal(x_hat, jnp.round(X / 0.5) * 0.5)
    np.testing.assert_allclose(new_up.enc["lost"], X - x_hat, atol=1e-6)
    assert new_up.dec["count"] == 1


def test_backward_is_the_downlink_and_its_new_state_is_a_gradient():
    x_hat, _, x_grad, new_down = one_step(STATE)
    grad = 2 * (x_hat - TARGET)
    np.testing.assert_array_equal(x_grad, jnp.round(grad / 2.0) * 2.0)
    np.testing.assert_allclose(new_down.enc["lost"], grad - x_grad, atol=1e-6)
    assert (new_down.dec["count"], new_down.uses) == (1, 1)


def test_states_go_on_from_step_to_step():
    state, sent, received = STATE, [], []
    for _ in range(5):
        x_hat, new_up, x_grad, new_down = one_step(state)
        state = cut.next_state(new_up, new_down)
        sent.append(2 * (x_hat - TARGET))
        received.append(x_grad)
    assert jax.tree.map(spec, state) == jax.tree.map(spec, STATE)
    assert (state.up.dec["count"], state.down.dec["count"]) == (5, 5)
    np.testing.assert_allclose(sum(received) + state.down.enc["lost"], sum(sent), atol=1e-4)


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
    x_hat, new_up = jax.jit(LAYER.apply)(X, STATE, *SIDES)
    np.testing.assert_array_equal(x_hat, one_step(STATE)[0])
    assert jax.tree.structure(new_up) == jax.tree.structure(STATE.up)


# Traps


def test_an_integer_in_the_downlinks_state_is_refused():
    down = PAIR.down._replace(init=lambda key, spec: ({"count": jnp.int32(0)}, ()))
    with pytest.raises(check.InputError) as caught:
        cut.cut(PAIR._replace(down=down)).init(jax.random.key(0), spec(X))
    assert str(caught.value) == (
        "state.down.enc['count']'s dtype is 'int32'; allowed: floating point. "
        "The new state travels as a cotangent, which integers have none of: keep counters in float32."
    )


def new_down_of(loss):
    """Returns the gradient of `loss(x, state)` in the downlink's state."""
    return jax.jit(jax.grad(lambda down: loss(X, STATE._replace(down=down))))(STATE.down)


def refused(new_down):
    with pytest.raises(check.InputError) as caught:
        cut.next_state(STATE.up, new_down)
    return str(caught.value)


def refusal(uses):
    return (
        f"uses of the downlink's state in the backward pass is {uses}; allowed: exactly 1. 0: the loss does not use "
        "x_hat. More: one state at two cuts, or shared under vmap; give each its own."
    )


def test_one_state_at_two_cuts_is_refused():
    def loss(x, state):
        once, _ = LAYER.apply(x, state, *SIDES)
        return squared(LAYER.apply(jnp.tanh(once), state, *SIDES)[0])

    assert refused(new_down_of(loss)) == refusal(2.0)


def test_a_state_shared_under_vmap_is_refused():
    def loss(x, state):
        return jnp.sum(jax.vmap(lambda row: squared(LAYER.apply(row, state, *SIDES)[0]))(jnp.stack([x] * 3)))

    assert refused(new_down_of(loss)) == refusal(3.0)


def test_a_state_carried_unchanged_through_a_loop_is_refused():
    def loss(x, state):
        return jax.lax.fori_loop(0, 4, lambda _, y: LAYER.apply(y, state, *SIDES)[0], x).sum()

    assert refused(new_down_of(loss)) == refusal(4.0)


def test_an_x_hat_that_the_loss_does_not_use_is_refused():
    def loss(x, state):
        LAYER.apply(x, state, *SIDES)
        return squared(x)

    assert refused(new_down_of(loss)) == refusal(0.0)


def test_a_state_of_its_own_for_each_under_vmap_is_taken():
    downs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), STATE.down)

    def loss(x, down):
        return squared(LAYER.apply(x, STATE._replace(down=down), *SIDES)[0])

    new_downs = jax.jit(jax.vmap(jax.grad(loss, argnums=1)))(jnp.stack([X] * 3), downs)
    after = cut.next_state(STATE.up, new_downs)
    np.testing.assert_array_equal(after.down.dec["count"], [1, 1, 1])


def test_inside_jit_the_next_state_is_passed_on_unchecked():
    down = new_down_of(lambda x, state: squared(x) + 0 * state.down.uses)
    assert jax.jit(cut.next_state)(STATE.up, down).down.uses == 0


def test_a_penalty_is_refused():
    def penalty(x, payload, state):
        del payload, state
        return jnp.sum(x**2)

    with pytest.raises(
        check.InputError, match=r"allowed: None\. Add the penalty to your own loss, or use nscjax\.split\."
    ):
        cut.cut(PAIR._replace(penalty=penalty))

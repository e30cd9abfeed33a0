import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, measure, u_shaped, wire
from tests.nscjax import networks
from tests.nscjax.tensors import PLENTY

BATCH_SIZE = 6
LEARNING_RATE = 0.3
LEGS = ("up", "on", "back", "down")
"""The messages of a step, in their order: activations up and on to the client, their gradients back and down."""

DUPLEXES = {
    "identity": lambda: (compress.Duplex(compress.identity(), compress.identity()),) * 2,
    "nsc_sl": lambda: tuple(
        compress.Duplex(compress.nsc_sl(max_rank=rank), compress.nsc_sl(max_rank=rank)) for rank in (4, 3)
    ),
    "nsc_rd, then top_k with feedback": lambda: (
        compress.Duplex(compress.nsc_rd(max_rank=4), compress.nsc_rd(max_rank=4)),
        compress.Duplex(
            compress.delta(compress.METHODS["top_k"](), num_samples=2 * BATCH_SIZE),
            compress.error_feedback(compress.METHODS["top_k"](), decay=0.9),
        ),
    ),
}


STATEFUL = {
    "delta on every leg": lambda: (
        (compress.Duplex(*[compress.delta(compress.METHODS["top_k"](), num_samples=2 * BATCH_SIZE)] * 2),) * 2
    ),
    "gradients with memory": lambda: (
        compress.Duplex(compress.identity(), compress.error_feedback(compress.METHODS["top_k"](k=2), decay=1.0)),
        compress.Duplex(
            compress.METHODS["top_k"](), compress.delta(compress.METHODS["top_k"](), num_samples=2 * BATCH_SIZE)
        ),
    ),
}


@functools.cache
def programs(name):
    model, duplexes = networks.u_shaped()[0], (DUPLEXES | STATEFUL)[name]()
    parts = (
        functools.partial(u_shaped.client_forward, model, duplexes),
        functools.partial(u_shaped.server_forward, model, duplexes),
        functools.partial(u_shaped.client_turn, model, duplexes, networks.loss_fn),
        functools.partial(u_shaped.server_backward, duplexes),
        functools.partial(u_shaped.client_backward, duplexes),
    )
    return duplexes, tuple(map(jax.jit, parts))


def parties(name):
    _, client, server = networks.u_shaped()
    specs = tuple(jax.ShapeDtypeStruct((BATCH_SIZE, width), jnp.float32) for width in (16, 12))
    halves = (client, {"in": jnp.int32(0), "out": jnp.int32(0)}), (server, {"hidden": jnp.int32(0)})
    return u_shaped.init_parties(programs(name)[0], jax.random.key(3), specs, *halves)


def sides(step, budgets):
    keys = jax.random.split(jax.random.key(step), len(LEGS))
    ids = jnp.arange(BATCH_SIZE, dtype=jnp.int32) + BATCH_SIZE * (step % 2)
    return [compress.SideInfo(key, jnp.int32(budget), ids) for key, budget in zip(keys, budgets, strict=True)]


@jax.jit
def descend(params, grads):
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)


def made_step(name, client, server, step=0, budgets=(PLENTY,) * 4, carry=lambda leg, payload: payload):
    """Makes a step in which parties see nothing of each other but what `carry` brings; returns what it computed."""
    _, (forward, relay_on, turn_round, relay_back, backward) = programs(name)
    up, on, back, down = sides(step, budgets)
    x, y = networks.batch((10,), step % 2, BATCH_SIZE)
    payload, pending, client = forward(client, x, up)
    arrived = carry("up", payload)
    onward, relay, server = relay_on(server, arrived, up, on)
    found, turn, client = turn_round(client, pending, carry("on", onward), y, on, back)
    returned, server = relay_back(server, relay, carry("back", found.payload), back, down)
    grads, _, is_skipped, client = backward(client, turn, carry("down", returned.payload), down)
    if not returned.is_skipped:
        server = server._replace(params=descend(server.params, returned.grads))
    if not is_skipped:
        client = client._replace(params=descend(client.params, grads))
    return (found.loss, grads, returned.grads, is_skipped), client, server


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_left_alone_both_cuts_are_plain_differentiation_of_the_whole_network():
    _, client, server = networks.u_shaped()
    x, y = networks.batch((10,), 0, BATCH_SIZE)

    def loss(client, server):
        hidden = jnp.tanh(jnp.tanh(x @ client["in"]) @ server["hidden"])
        return networks.loss_fn(hidden @ client["out"], y)[0]

    expected = jax.value_and_grad(loss, (0, 1))(client, server)
    (found, *grads, is_skipped), after, served = made_step("identity", *parties("identity"))
    assert not is_skipped
    np.testing.assert_allclose(found, expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tuple(grads), expected[1])
    assert after.state == {"in": 1, "out": 1}
    assert served.state == {"hidden": 1}


@pytest.mark.parametrize("name", DUPLEXES)
def test_frames_are_all_that_parties_need_of_each_other(name):
    likes, lengths = {}, []

    def carry(leg, payload):
        frame = wire.encode(payload)
        lengths.append(len(frame))
        return wire.decode(frame, like=likes.setdefault(leg, payload))

    ones = others = parties(name)
    losses = []
    for step in range(6):
        one, *ones = made_step(name, *ones, step=step)
        other, *others = made_step(name, *others, step=step, carry=carry)
        same((one, ones), (other, others))
        losses.append(float(one[0]))
    assert len(lengths) == 4 * 6
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


@pytest.mark.parametrize("name", ["nsc_sl", "nsc_rd, then top_k with feedback"])
@pytest.mark.parametrize("leg", range(4))
def test_after_an_empty_message_nothing_is_learnt_and_all_that_follow_are_empty(name, leg):
    _, client, server = made_step(name, *parties(name))
    seen = {}
    budgets = [0 if place == leg else PLENTY for place in range(4)]
    (_, _, _, is_skipped), after, served = made_step(
        name, client, server, 1, budgets, lambda leg, payload: seen.setdefault(leg, payload)
    )
    assert is_skipped
    assert [bool(measure.is_skipped(seen[name])) for name in LEGS] == [place >= leg for place in range(4)]
    same((client.params, client.state), (after.params, after.state))
    learnt = leg == 3  # all that the server learns from has arrived
    assert served.state == {"hidden": 1 + learnt}
    assert np.array_equal(server.params["hidden"], served.params["hidden"]) != learnt
    # Both ends go on from the same states: the next step is one that helps.
    (before, *_), after, served = made_step(name, after, served, 2)
    (later, *_), *_ = made_step(name, after, served, 4)
    assert later < before


def both_ends(client, server):
    """Returns pairs of what either end holds of the other's: the sender's copy, and the receiver's."""
    sent = [(client.up[0], server.up[0]), (server.up[1], client.up[1])]
    sent += [(server.down[0], client.down[0]), (client.down[1], server.down[1])]
    return [(one.cache, other.cache) for one, other in sent]


@pytest.mark.parametrize("seed", range(4))
def test_both_ends_hold_the_same_after_any_messages_that_were_empty(seed):
    """Caches of every sample on all four legs, whichever of them carried nothing."""
    random = np.random.default_rng(seed)
    client, server = parties("delta on every leg")
    for step in range(6):
        budgets = [0 if random.random() < 0.3 else PLENTY for _ in LEGS]
        before = both_ends(client, server)
        _, client, server = made_step("delta on every leg", client, server, step, budgets)
        after = both_ends(client, server)
        for sender, receiver in after:
            np.testing.assert_array_equal(sender, receiver)
        first_empty = next((place for place, budget in enumerate(budgets) if budget == 0), len(LEGS))
        # In the order of LEGS: what comes after an empty message moves nothing.
        for place, leg in enumerate((0, 1, 3, 2)):
            moved = not np.array_equal(before[leg][0], after[leg][0])
            assert moved == (place < first_empty), LEGS[place]


def test_an_empty_message_leaves_no_stale_gradient_in_a_residual():
    """Of a sample seen before, a cached gradient would come back and be sent once more."""
    name = "gradients with memory"
    client, server = parties(name)
    for step in (0, 2):
        _, client, server = made_step(name, client, server, step)
    residual = server.down[0].residual
    for empty in (1, 2):
        budgets = [0 if place == empty else PLENTY for place in range(4)]
        _, _, served = made_step(name, client, server, 4, budgets)
        np.testing.assert_array_equal(served.down[0].residual, residual)

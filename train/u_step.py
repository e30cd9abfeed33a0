"""One step of training a U-shaped network (`nscjax.u_shaped`): send, relay, turn, give back, receive.

As in `train.step` each is a program of its own, so that two parties end with the parameters of a local run. A step has
two exchanges: activations up and on, then their gradients back up and down; the budgets of the second are what the link
allows after the first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nscjax import link as links
from nscjax import measure, split, u_shaped
from nscjax.compress import SideInfo
from nscjax.types import Array, Key, PyTree
from train import step as steps
from train.state import Metrics, Setup, TrainState, cross_entropy, key_of


class Turned(NamedTuple):
    """What the client has computed at the far end of the network.

    Attributes:
        payload: of the second cut's gradient, to be sent up.
        loss: of the batch.
        accuracy: share of the batch that was right.
        features_hat: the tensor of the second cut as it arrived.
        features_grad: the gradient of the loss in it.
    """

    payload: PyTree
    loss: Array
    accuracy: Array
    features_hat: Array
    features_grad: Array


class Given(NamedTuple):
    """What the server has computed on the way back.

    Attributes:
        payload: of the first cut's gradient, to be sent down.
        smashed_grad: the gradient of the loss in the tensor of the first cut.
        features_grad_hat: the gradient of the second cut as it arrived.
        is_skipped: bool, whether a message before this one was empty.
        are_grads_finite: those of the server's half.
        is_half_finite: the server's half as it is then.
    """

    payload: PyTree
    smashed_grad: Array
    features_grad_hat: Array
    is_skipped: Array
    are_grads_finite: Array
    is_half_finite: Array


def send(
    setup: Setup, client: split.Party, step: Array, x: Array, sample_ids: Array, budget: Array
) -> tuple[PyTree, split.Pending, split.Party]:
    """Returns (payload to send up, what the client keeps meanwhile, the client); arguments as in `train.step.send`."""
    payload, pending, moved = steps.send(setup, u_shaped.at(client, 0), step, x, sample_ids, budget)
    return payload, pending, client._replace(up=(moved.up, client.up[1]))


def relay(
    setup: Setup, server: split.Party, step: Array, payload: PyTree, sample_ids: Array, up: Array, down: Array
) -> tuple[PyTree, u_shaped.Relay, split.Party]:
    """Returns (payload to send on to the client, what the server keeps meanwhile, the server).

    Args:
        setup: of the run.
        server: what the server holds.
        step: int32, counted from 0.
        payload: what came up.
        sample_ids: int32 [B].
        up: int32, bytes; what the uplink's frame was allowed.
        down: int32, bytes.
    """
    _, up_key, _ = steps.keys(setup, step)
    on_key, _ = _second_keys(setup, step)
    sides = SideInfo(up_key, up, sample_ids), SideInfo(on_key, down, sample_ids)
    return u_shaped.server_forward(setup.model, setup.duplexes, server, payload, *sides)


def turn(
    setup: Setup,
    client: split.Party,
    step: Array,
    pending: split.Pending,
    payload: PyTree,
    y: Array,
    sample_ids: Array,
    down: Array,
    up: Array,
) -> tuple[Turned, u_shaped.Turn, split.Party]:
    """Returns (what was computed, what the client keeps meanwhile, the client).

    Args:
        setup: of the run.
        client: as `send` returned it.
        step: int32, counted from 0.
        pending: as `send` returned it.
        payload: what came down.
        y: int32 labels [B].
        sample_ids: int32 [B].
        down: int32, bytes; what the downlink's frame was allowed.
        up: int32, bytes.
    """
    on_key, back_key = _second_keys(setup, step)
    sides = SideInfo(on_key, down, sample_ids), SideInfo(back_key, up, sample_ids)
    done, kept, moved = u_shaped.client_turn(
        setup.model, setup.duplexes, cross_entropy, client, pending, payload, y, *sides
    )
    return Turned(done.payload, done.loss, done.metrics, done.smashed_hat, done.smashed_grad), kept, moved


def give_back(
    setup: Setup,
    server: split.Party,
    optimiser: PyTree,
    step: Array,
    kept: u_shaped.Relay,
    payload: PyTree,
    sample_ids: Array,
    up: Array,
    down: Array,
) -> tuple[Given, split.Party, PyTree]:
    """Returns (what was computed, the server, its optimiser's state), after an update unless a message was empty.

    Args:
        setup: of the run.
        server: as `relay` returned it.
        optimiser: its optimiser's state.
        step: int32, counted from 0.
        kept: as `relay` returned it.
        payload: what came up.
        sample_ids: int32 [B].
        up: int32, bytes; what the uplink's frame was allowed.
        down: int32, bytes.
    """
    *_, down_key = steps.keys(setup, step)
    _, back_key = _second_keys(setup, step)
    sides = SideInfo(back_key, up, sample_ids), SideInfo(down_key, down, sample_ids)
    done, moved = u_shaped.server_backward(setup.duplexes, server, kept, payload, *sides)
    moved, new_optimiser = steps.updated(setup, step, moved, optimiser, done.grads, done.is_skipped)
    are_grads_finite, is_half_finite = steps.all_finite(done.grads), steps.is_party_finite(moved, new_optimiser)
    given = Given(done.payload, done.smashed_grad, done.grad_hat, done.is_skipped, are_grads_finite, is_half_finite)
    return given, moved, new_optimiser


def receive(
    setup: Setup,
    client: split.Party,
    optimiser: PyTree,
    step: Array,
    kept: u_shaped.Turn,
    payload: PyTree,
    sample_ids: Array,
    budget: Array,
) -> tuple[steps.Receipt, split.Party, PyTree]:
    """Returns (what was computed, the client, its optimiser's state), after an update unless a message was empty.

    Args:
        setup: of the run.
        client: as `turn` returned it.
        optimiser: its optimiser's state.
        step: int32, counted from 0.
        kept: as `turn` returned it.
        payload: what came down.
        sample_ids: int32 [B].
        budget: int32, bytes; what the downlink's frame was allowed.
    """
    *_, down_key = steps.keys(setup, step)
    side = SideInfo(down_key, budget, sample_ids)
    grads, grad_hat, is_skipped, moved = u_shaped.client_backward(setup.duplexes, client, kept, payload, side)
    moved, new_optimiser = steps.updated(setup, step, moved, optimiser, grads, is_skipped)
    receipt = steps.Receipt(grad_hat, steps.all_finite(grads), steps.is_party_finite(moved, new_optimiser))
    return receipt, moved, new_optimiser


def budgets(setup: Setup, link_state: PyTree) -> tuple[Array, Array]:
    """Returns (up, down) the largest frames of a step's first exchange, int32."""
    first, second = setup.cuts
    return steps.budgets(setup, link_state, (first.caps[0], second.caps[0]))


def halfway(setup: Setup, link_state: PyTree, payload: PyTree, onward: PyTree) -> tuple[PyTree, Array, Array, Array]:
    """Returns (the link after the first exchange, the seconds it took, (up, down) the budgets of the second).

    Args:
        setup: of the run.
        link_state: before the step.
        payload: that went up.
        onward: that came down.
    """
    first, second = setup.cuts
    sent = first.duplex.up.num_bytes(payload), second.duplex.up.num_bytes(onward)
    link, up_s, down_s = links.exchange(half_computing(setup.link), setup.estimator, link_state, *sent)
    return link, up_s + down_s, *steps.budgets(setup, link, (second.caps[1], first.caps[1]))


def settle(
    setup: Setup,
    state: TrainState,
    moved: TrainState,
    first_s: Array,
    sent: tuple[PyTree, Array],
    kept: u_shaped.Relay,
    turned: Turned,
    given: Given,
    receipt: steps.Receipt,
    allowed: tuple[Array, Array, Array, Array],
) -> tuple[TrainState, Metrics]:
    """Returns the state after a step, and its metrics: `moved`, or after a number that is not finite `state`.

    Args:
        setup: of the run.
        state: before the step.
        moved: with what both parties have become, and the link as it is after the first exchange.
        first_s: seconds of that.
        sent: (payload, tensor) of the first cut.
        kept: by the server.
        turned: what the client computed from it.
        given: what the server computed from that.
        receipt: of the client.
        allowed: the messages' budgets in the order of the messages, in bytes.
    """
    first, second = setup.duplexes
    up = split.message(first.up, *sent, kept.smashed_hat)
    forth = split.message(second.up, kept.pending.payload, kept.pending.smashed, turned.features_hat)
    back = split.message(second.down, turned.payload, turned.features_grad, given.features_grad_hat)
    down = split.message(first.down, given.payload, given.smashed_grad, receipt.grad_hat)
    link, up_s, down_s = links.exchange(
        half_computing(setup.link), setup.estimator, moved.link, back.num_bytes, down.num_bytes
    )
    broken = steps.broken_of([
        jnp.isfinite(up.distortion) & jnp.isfinite(forth.distortion),
        jnp.isfinite(turned.loss),
        jnp.isfinite(down.distortion) & jnp.isfinite(back.distortion),
        receipt.are_grads_finite,
        given.are_grads_finite,
        receipt.is_half_finite,
        given.is_half_finite,
    ])  # fmt: skip
    seconds = first_s + up_s + down_s
    metrics = Metrics(
        loss=turned.loss, accuracy=turned.accuracy, up=up, down=down, up_budget_bytes=allowed[0],
        down_budget_bytes=allowed[3], link_seconds=seconds, broken=broken, second_up=back, second_down=forth,
        second_up_budget_bytes=allowed[2], second_down_budget_bytes=allowed[1],
    )  # fmt: skip
    return steps.if_sound(state, moved._replace(link=link, step=state.step + 1), broken), metrics


def echo_on(
    setup: Setup, payload: PyTree, features: Array, mirror: PyTree, step: Array, sample_ids: Array, budget: Array
) -> tuple[split.Message, PyTree]:
    """Returns (what the message of the second cut's activations cost and lost, the receiver's state), at the server.

    Args:
        setup: of the run.
        payload: that was sent.
        features: the tensor of the second cut as it was.
        mirror: the receiver's state before.
        step: int32, counted from 0.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    _, second = setup.duplexes
    on_key, _ = _second_keys(setup, step)
    features_hat, mirror = second.up.decompress(payload, mirror, SideInfo(on_key, budget, sample_ids))
    return split.message(second.up, payload, features, features_hat), mirror


def echo_back(
    setup: Setup,
    sent: PyTree,
    onward: PyTree,
    on_state: PyTree,
    payload: PyTree,
    features_grad: Array,
    mirror: PyTree,
    step: Array,
    sample_ids: Array,
    budget: Array,
) -> tuple[split.Message, PyTree]:
    """Returns (what the message of the second cut's gradient cost and lost, the receiver's state), at the client.

    Args:
        setup: of the run.
        sent: the step's first payload.
        onward: what it answers.
        on_state: the client's of the second cut's activations, after that.
        payload: that was sent.
        features_grad: the gradient of the second cut as it was.
        mirror: the receiver's state before.
        step: int32, counted from 0.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    _, second = setup.duplexes
    _, back_key = _second_keys(setup, step)
    is_unmet = measure.is_skipped(sent) | measure.is_skipped(onward)
    side = SideInfo(back_key, budget, sample_ids)
    return steps.echo_answer(second, onward, on_state, payload, features_grad, mirror, side, is_unmet)


def echo_down(
    setup: Setup,
    server: split.Party,
    kept: u_shaped.Relay,
    given: Given,
    mirror: PyTree,
    step: Array,
    sample_ids: Array,
    budget: Array,
) -> tuple[split.Message, PyTree]:
    """Returns (what the message of the first cut's gradient cost and lost, the receiver's state), at the server.

    Args:
        setup: of the run.
        server: as `relay` returned it.
        kept: as `relay` returned it.
        given: what `give_back` computed, and sent.
        mirror: the receiver's state before.
        step: int32, counted from 0.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    *_, down_key = steps.keys(setup, step)
    side = SideInfo(down_key, budget, sample_ids)
    return steps.echo_answer(
        setup.duplexes[0], kept.payload, server.up[0], given.payload, given.smashed_grad, mirror, side, given.is_skipped
    )


class Programs(NamedTuple):
    """The parts of a step, with the setup of a run put in."""

    send: Callable
    relay: Callable
    turn: Callable
    give_back: Callable
    receive: Callable
    budgets: Callable
    halfway: Callable
    settle: Callable


def programs(setup: Setup) -> Programs:
    """Returns the parts of a step, each compiled when it is first called."""
    return Programs(*steps.compiled(setup, send, relay, turn, give_back, receive, budgets, halfway, settle))


def train_step(parts: Programs, state: TrainState, x: Array, y: Array, sample_ids: Array) -> tuple[TrainState, Metrics]:
    """Makes one step of split training on one batch, both parties in this process; arguments as in `train.step`."""
    up, on = parts.budgets(state.link)
    payload, pending, client = parts.send(state.client, state.step, x, sample_ids, up)
    onward, relayed, server = parts.relay(state.server, state.step, payload, sample_ids, up, on)
    link, first_s, back, down = parts.halfway(state.link, payload, onward)
    turned, kept, client = parts.turn(client, state.step, pending, onward, y, sample_ids, on, back)
    given, server, server_optimiser = parts.give_back(
        server, state.server_optimiser, state.step, relayed, turned.payload, sample_ids, back, down
    )
    receipt, client, client_optimiser = parts.receive(
        client, state.client_optimiser, state.step, kept, given.payload, sample_ids, down
    )
    moved = state._replace(
        client=client, server=server, client_optimiser=client_optimiser, server_optimiser=server_optimiser, link=link
    )
    sent = payload, pending.smashed
    return parts.settle(state, moved, first_s, sent, relayed, turned, given, receipt, (up, on, back, down))


def half_computing(link: links.Link) -> links.Link:
    """Returns the link of one exchange: of what parties compute in a step, each has half before either message."""
    return link._replace(client_step_s=link.client_step_s / 2, server_step_s=link.server_step_s / 2)


def _second_keys(setup: Setup, step: Array) -> tuple[Key, Key]:
    """Returns the keys of a step at the second cut: for the activations and for their gradient."""
    on_key, back_key = jax.random.split(jax.random.fold_in(key_of(setup.key, "second cut"), step))
    return on_key, back_key

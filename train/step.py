"""One step of training as its two parties make it: the client sends, the server answers, the client receives.

Each is a program of its own, also where one process is both parties: XLA rounds otherwise when it compiles several as
one, and a local run is to end with the very parameters that two parties end with. On two cores three programs take no
longer than one (`benchmarks/step.py`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nscjax import link as links
from nscjax import measure, split
from nscjax.compress import Duplex, SideInfo
from nscjax.types import Array, Key, PyTree
from train import optimise
from train.state import TENSORS, Metrics, Setup, TrainState, cross_entropy, key_of


class Answer(NamedTuple):
    """What the server has computed from one message.

    Attributes:
        payload: the gradient's, to be sent down.
        loss: of the batch.
        accuracy: share of the batch that was right.
        smashed_hat: the cut tensor as it arrived.
        smashed_grad: the gradient of the loss in it.
        are_grads_finite: those of the server's half.
        is_half_finite: the server's half as it is then.
    """

    payload: PyTree
    loss: Array
    accuracy: Array
    smashed_hat: Array
    smashed_grad: Array
    are_grads_finite: Array
    is_half_finite: Array


class Receipt(NamedTuple):
    """What the client has computed from the answer.

    Attributes:
        grad_hat: the gradient of the cut as it arrived.
        are_grads_finite: those of the client's half.
        is_half_finite: the client's half as it is then.
    """

    grad_hat: Array
    are_grads_finite: Array
    is_half_finite: Array


def send(
    setup: Setup, client: split.Party, step: Array, x: Array, sample_ids: Array, budget: Array
) -> tuple[PyTree, split.Pending, split.Party]:
    """Returns (payload to send up, what the client keeps meanwhile, the client with new sender state).

    Args:
        setup: of the run.
        client: what the client holds.
        step: int32, counted from 0.
        x: uint8 images [B, H, W, C], or inputs that are taken as they are.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    augment_key, up_key, _ = keys(setup, step)
    inputs = setup.inputs.normalise(setup.inputs.augment(augment_key, x))
    side = SideInfo(up_key, budget, sample_ids)
    return split.client_forward(setup.model, setup.cuts[0].duplex, client, inputs, side)


def answer(
    setup: Setup,
    server: split.Party,
    optimiser: PyTree,
    step: Array,
    payload: PyTree,
    y: Array,
    sample_ids: Array,
    up_budget: Array,
    down_budget: Array,
) -> tuple[Answer, split.Party, PyTree]:
    """Returns (what was computed, the server, its optimiser's state), after an update unless the message was empty.

    Args:
        setup: of the run.
        server: what the server holds.
        optimiser: its optimiser's state.
        step: int32, counted from 0.
        payload: what came up.
        y: int32 labels [B].
        sample_ids: int32 [B].
        up_budget: int32, bytes; what the uplink's frame was allowed.
        down_budget: int32, bytes.
    """
    _, up_key, down_key = keys(setup, step)
    done, moved = split.server_step(
        setup.model,
        setup.cuts[0].duplex,
        cross_entropy,
        server,
        payload,
        y,
        SideInfo(up_key, up_budget, sample_ids),
        SideInfo(down_key, down_budget, sample_ids),
    )
    moved, new_optimiser = updated(setup, step, moved, optimiser, done.grads, measure.is_skipped(payload))
    are_grads_finite, is_half_finite = all_finite(done.grads), is_party_finite(moved, new_optimiser)
    answered = Answer(
        done.payload, done.loss, done.metrics, done.smashed_hat, done.smashed_grad, are_grads_finite, is_half_finite
    )
    return answered, moved, new_optimiser


def receive(
    setup: Setup,
    client: split.Party,
    optimiser: PyTree,
    step: Array,
    pending: split.Pending,
    payload: PyTree,
    sample_ids: Array,
    budget: Array,
) -> tuple[Receipt, split.Party, PyTree]:
    """Returns (what was computed, the client, its optimiser's state), after an update unless a message was empty.

    Args:
        setup: of the run.
        client: as `send` returned it.
        optimiser: its optimiser's state.
        step: int32, counted from 0.
        pending: as `send` returned it.
        payload: what came down.
        sample_ids: int32 [B].
        budget: int32, bytes; what the downlink's frame was allowed.
    """
    *_, down_key = keys(setup, step)
    side = SideInfo(down_key, budget, sample_ids)
    grads, grad_hat, moved = split.client_backward(setup.cuts[0].duplex, client, pending, payload, side)
    stays = measure.is_skipped(pending.payload) | measure.is_skipped(payload)
    moved, new_optimiser = updated(setup, step, moved, optimiser, grads, stays)
    return Receipt(grad_hat, all_finite(grads), is_party_finite(moved, new_optimiser)), moved, new_optimiser


def budgets(setup: Setup, link_state: PyTree, caps: tuple[int, int] | None = None) -> tuple[Array, Array]:
    """Returns (up, down) the largest frames of an exchange, int32: what the config and the link allow.

    Args:
        setup: of the run.
        link_state: as the link is before it.
        caps: (up, down) what the config allows, by default of the first cut's messages.
    """
    up, down = (jnp.asarray(cap, jnp.int32) for cap in caps or setup.cuts[0].caps)
    if setup.deadline_s is None:
        return up, down
    up_link, down_link = links.budgets(setup.link, setup.estimator, link_state, setup.deadline_s)
    return jnp.minimum(up, up_link), jnp.minimum(down, down_link)


def settle(
    setup: Setup,
    state: TrainState,
    moved: TrainState,
    payload: PyTree,
    smashed: Array,
    answered: Answer,
    receipt: Receipt,
) -> tuple[TrainState, Metrics]:
    """Returns the state after a step, and its metrics: `moved`, or after a number that is not finite `state`.

    Args:
        setup: of the run.
        state: before the step.
        moved: with what both parties have become; the clocks still as they were.
        payload: that went up.
        smashed: the cut tensor as it was.
        answered: by the server.
        receipt: of the client.
    """
    up = split.message(setup.cuts[0].duplex.up, payload, smashed, answered.smashed_hat)
    down = split.message(setup.cuts[0].duplex.down, answered.payload, answered.smashed_grad, receipt.grad_hat)
    up_budget, down_budget = budgets(setup, state.link)
    link, up_s, down_s = links.exchange(setup.link, setup.estimator, state.link, up.num_bytes, down.num_bytes)
    # A message's distortion is finite only if the tensor and what arrived of it are.
    is_finite = [
        jnp.isfinite(up.distortion),
        jnp.isfinite(answered.loss),
        jnp.isfinite(down.distortion),
        receipt.are_grads_finite,
        answered.are_grads_finite,
        receipt.is_half_finite,
        answered.is_half_finite,
    ]
    broken = broken_of(is_finite)
    metrics = Metrics(answered.loss, answered.accuracy, up, down, up_budget, down_budget, up_s + down_s, broken)
    return if_sound(state, moved._replace(link=link, step=state.step + 1), broken), metrics


def broken_of(is_finite: list[Array]) -> Array:
    """Returns the first of `TENSORS` that is not finite, or -1."""
    assert len(is_finite) == len(TENSORS)
    found = jnp.stack(is_finite)
    return jnp.where(jnp.all(found), -1, jnp.argmin(found))


def if_sound(state: TrainState, moved: TrainState, broken: Array) -> TrainState:
    """Returns the state after a step; after a number that was not finite, for good, the one before it."""
    is_sound = state.is_sound & (broken < 0)
    return split.select(is_sound, moved._replace(is_sound=is_sound), state._replace(is_sound=is_sound))


class Programs(NamedTuple):
    """The parts of a step, with the setup of a run put in."""

    send: Callable
    answer: Callable
    receive: Callable
    budgets: Callable
    settle: Callable


def programs(setup: Setup) -> Programs:
    """Returns the parts of a step, each compiled when it is first called."""
    return Programs(*compiled(setup, send, answer, receive, budgets, settle))


def compiled(setup: Setup, *parts: Callable) -> list[Callable]:
    """Returns functions of a setup as programs of the rest."""
    return [jax.jit(functools.wraps(part)(functools.partial(part, setup))) for part in parts]


def train_step(parts: Programs, state: TrainState, x: Array, y: Array, sample_ids: Array) -> tuple[TrainState, Metrics]:
    """Makes one step of split training on one batch, both parties in this process.

    Args:
        parts: of the run.
        state: before the step; it stays as it is.
        x: uint8 images [B, H, W, C], or inputs that are taken as they are.
        y: int32 labels [B].
        sample_ids: int32 [B].
    """
    up, down = parts.budgets(state.link)
    payload, pending, client = parts.send(state.client, state.step, x, sample_ids, up)
    answered, server, server_optimiser = parts.answer(
        state.server, state.server_optimiser, state.step, payload, y, sample_ids, up, down
    )
    receipt, client, client_optimiser = parts.receive(
        client, state.client_optimiser, state.step, pending, answered.payload, sample_ids, down
    )
    moved = state._replace(
        client=client, server=server, client_optimiser=client_optimiser, server_optimiser=server_optimiser
    )
    return parts.settle(state, moved, payload, pending.smashed, answered, receipt)


def keys(setup: Setup, step: Array) -> tuple[Key, Key, Key]:
    """Returns the keys of a step: for augmentation, uplink and downlink."""
    augment_key, up_key, down_key = jax.random.split(jax.random.fold_in(key_of(setup.key, "steps"), step), 3)
    return augment_key, up_key, down_key


def updated(
    setup: Setup, step: Array, party: split.Party, optimiser: PyTree, grads: PyTree, stays: Array
) -> tuple[split.Party, PyTree]:
    """Returns the party with updated parameters, and its optimiser's state; unless it `stays` as it is."""
    directions, new_optimiser = setup.optimiser.update(grads, optimiser, party.params)
    params = optimise.apply(party.params, directions, setup.learning_rate(step))
    params = split.select(stays, party.params, params)
    return party._replace(params=params), split.select(stays, optimiser, new_optimiser)


def is_party_finite(party: split.Party, optimiser: PyTree) -> Array:
    """Returns whether parameters, running state and optimiser's state are: they overflow where gradients do not."""
    return all_finite((party.params, party.state, optimiser))


def all_finite(tree: PyTree) -> Array:
    """Returns whether every number in a pytree is finite, bool []."""
    return jnp.all(jnp.stack([jnp.asarray(True), *(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree))]))


def echo_up(
    setup: Setup, payload: PyTree, smashed: Array, mirror: PyTree, step: Array, sample_ids: Array, budget: Array
) -> tuple[split.Message, PyTree]:
    """Returns (what an uplink message cost and lost, the receiver's state as it then is), at the client.

    A sender that knows what the receiver holds can tell what arrives: nothing need be sent back for it.

    Args:
        setup: of the run.
        payload: that was sent.
        smashed: the cut tensor as it was.
        mirror: the receiver's state before.
        step: int32, counted from 0.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    _, up_key, _ = keys(setup, step)
    smashed_hat, mirror = setup.cuts[0].duplex.up.decompress(payload, mirror, SideInfo(up_key, budget, sample_ids))
    return split.message(setup.cuts[0].duplex.up, payload, smashed, smashed_hat), mirror


def echo_down(
    setup: Setup,
    up_payload: PyTree,
    up_state: PyTree,
    payload: PyTree,
    smashed_grad: Array,
    mirror: PyTree,
    step: Array,
    sample_ids: Array,
    budget: Array,
) -> tuple[split.Message, PyTree]:
    """Returns (what a downlink message cost and lost, the receiver's state as it then is), at the server.

    Args:
        setup: of the run.
        up_payload: what it answers.
        up_state: the server's of the uplink, after that.
        payload: that was sent.
        smashed_grad: the gradient of the cut as it was.
        mirror: the receiver's state before.
        step: int32, counted from 0.
        sample_ids: int32 [B].
        budget: int32, bytes.
    """
    *_, down_key = keys(setup, step)
    side = SideInfo(down_key, budget, sample_ids)
    is_unmet = measure.is_skipped(up_payload)
    return echo_answer(setup.cuts[0].duplex, up_payload, up_state, payload, smashed_grad, mirror, side, is_unmet)


def echo_answer(
    duplex: Duplex,
    up_payload: PyTree,
    up_state: PyTree,
    payload: PyTree,
    smashed_grad: Array,
    mirror: PyTree,
    side: SideInfo,
    is_unmet: Array,
) -> tuple[split.Message, PyTree]:
    """Returns what `echo_down` does, at any cut.

    Args:
        duplex: the cut's compressors.
        up_payload: what the message answers.
        up_state: the answerer's of the activations, after that.
        payload: that was sent.
        smashed_grad: the gradient of the cut as it was.
        mirror: the receiver's state before.
        side: of the message.
        is_unmet: bool, whether a message before it was empty, so that the receiver's state stays.
    """
    side = duplex.side_down(up_payload, side, up_state)
    grad_hat, new_mirror = duplex.down.decompress(payload, mirror, side)
    message = split.message(duplex.down, payload, smashed_grad, grad_hat)
    return message, split.select(is_unmet, mirror, new_mirror)

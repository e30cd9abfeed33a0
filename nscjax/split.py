"""The split step: client forward, server step, client backward; and their composition in one function.

Each half is differentiated by an explicit `jax.vjp`; every state is an ordinary value, in and out. The fused step runs
the same three functions in one jit: what it computes is what two parties compute.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nscjax import measure
from nscjax.compress import Compressor, Duplex, SideInfo
from nscjax.types import Array, Key, PyTree

LossFn = Callable[[Array, PyTree], tuple[Array, PyTree]]
"""(logits, targets) -> (scalar loss, auxiliary metrics)."""

Half = tuple[PyTree, PyTree]
"""A half's (params, running state); the state is () where there is none."""


class SplitModel(NamedTuple):
    """A network in two halves, as pure functions.

    Attributes:
        client_apply: `(params, x) -> smashed`; if `stateful`, `(params, state, x, is_training) -> (smashed, state)`.
        server_apply: `(params, smashed) -> logits`; if `stateful`, `(params, state, smashed, is_training) -> (logits,
            state)`.
        stateful: whether the halves carry running state (batch statistics), threaded as a value.
        tail_apply: of a U-shaped network (`nscjax.u_shaped`) the client's last layers, `server_apply` being those in
            between: `(params, features) -> logits`, or with state as above, of the same `params` and state as
            `client_apply`: either then returns the whole state of the client's half. None where the server has the last
            layers.
    """

    client_apply: Callable[..., Any]
    server_apply: Callable[..., Any]
    stateful: bool = False
    tail_apply: Callable[..., Any] | None = None

    def client(self, params: PyTree, state: PyTree, x: PyTree, is_training: bool) -> tuple[Array, PyTree]:
        """Returns `(smashed, state)` of the client's half."""
        return _apply(self.client_apply, self.stateful, params, state, x, is_training)

    def server(self, params: PyTree, state: PyTree, smashed: Array, is_training: bool) -> tuple[PyTree, PyTree]:
        """Returns `(logits, state)` of the server's half; of a U-shaped network `(features, state)`."""
        return _apply(self.server_apply, self.stateful, params, state, smashed, is_training)

    def tail(self, params: PyTree, state: PyTree, features: Array, is_training: bool) -> tuple[PyTree, PyTree]:
        """Returns `(logits, state)` of the client's last layers in a U-shaped network, params and state of its half."""
        return _apply(self.tail_apply, self.stateful, params, state, features, is_training)


def _apply(apply, stateful, params, state, inputs, is_training):
    return apply(params, state, inputs, is_training) if stateful else (apply(params, inputs), state)


class Party(NamedTuple):
    """What one half's owner holds.

    Attributes:
        params: the half's parameters.
        state: its running state (batch statistics), () where there is none.
        up: its end of the uplink: the client's sender state, the server's receiver state.
        down: its end of the downlink: the client's receiver state, the server's sender state.
    """

    params: PyTree
    state: PyTree
    up: PyTree
    down: PyTree


def init_parties(
    duplex: Duplex, key: Key, smashed_spec: jax.ShapeDtypeStruct, client: Half, server: Half
) -> tuple[Party, Party]:
    """Returns both parties with fresh compressor states.

    Args:
        duplex: the compressors of both directions.
        key: for the compressors' states.
        smashed_spec: shape and dtype of a cut tensor.
        client: the client's half.
        server: the server's half.
    """
    up_key, down_key = jax.random.split(key)
    up_enc, up_dec = duplex.up.init(up_key, smashed_spec)
    down_enc, down_dec = duplex.down.init(down_key, smashed_spec)
    return Party(*client, up_enc, down_dec), Party(*server, up_dec, down_enc)


class Pending(NamedTuple):
    """What the client keeps while its message is away.

    Attributes:
        vjp: gradient of the cut -> gradients of the client's parameters; a pytree of residuals.
        state: the client's running state after this batch, should its step count.
        smashed: the cut tensor as it was.
        payload: what was sent.
        penalty_grad: gradient of the client's own penalty in `smashed`, or None.
    """

    vjp: Callable[[Array], tuple[PyTree]]
    state: PyTree
    smashed: Array
    payload: PyTree
    penalty_grad: Array | None


class ServerStep(NamedTuple):
    """What the server has computed from one message.

    Attributes:
        payload: the gradient's payload, to be sent down.
        grads: gradients of the server's parameters.
        smashed_hat: the cut tensor as received.
        smashed_grad: gradient of the loss in it, before compression.
        loss: scalar.
        metrics: what the loss function returned beside the loss.
    """

    payload: PyTree
    grads: PyTree
    smashed_hat: Array
    smashed_grad: Array
    loss: Array
    metrics: PyTree


def client_forward(
    model: SplitModel, duplex: Duplex, client: Party, x: PyTree, side: SideInfo
) -> tuple[PyTree, Pending, Party]:
    """Runs the client's half on a batch and compresses the cut.

    Args:
        model: both halves' functions.
        duplex: the compressors of both directions.
        client: what the client holds.
        x: inputs [B, ...].
        side: of the uplink.

    Returns:
        (payload to send up, what to keep for `client_backward`, the client with new sender state).
    """

    def forward(params):
        return model.client(params, client.state, x, True)

    smashed, vjp, state = jax.vjp(forward, client.params, has_aux=True)
    payload, up = duplex.up.compress(smashed, client.up, side)
    penalty, penalty_grad = duplex.client_penalty(), None
    if penalty is not None:
        penalty_grad = jax.grad(penalty)(smashed, payload, up)
    return payload, Pending(vjp, state, smashed, payload, penalty_grad), client._replace(up=up)


def server_step(
    model: SplitModel,
    duplex: Duplex,
    loss_fn: LossFn,
    server: Party,
    payload: PyTree,
    targets: PyTree,
    side_up: SideInfo,
    side_down: SideInfo,
) -> tuple[ServerStep, Party]:
    """Decompresses the cut, runs the server's half forward and backward, and compresses the gradient.

    After an empty uplink message (rank 0) nothing is learnt: the server stays as it was, and the answer's budget is 0:
    it is as empty, of every method that keeps to budgets.

    Args:
        model: both halves' functions.
        duplex: the compressors of both directions.
        loss_fn: of the task.
        server: what the server holds.
        payload: what came up.
        targets: what the loss compares the logits with.
        side_up: of the uplink.
        side_down: of the downlink.

    Returns:
        (what was computed, the server with new running and compressor states; its parameters are the caller's to
        update).
    """
    smashed_hat, up = duplex.up.decompress(payload, server.up, side_up)

    def loss_of(params, smashed):
        logits, state = model.server(params, server.state, smashed, True)
        loss, metrics = loss_fn(logits, targets)
        return loss, (metrics, state)

    (loss, (metrics, state)), (grads, smashed_grad) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
        server.params, smashed_hat
    )
    is_skipped = measure.is_skipped(payload)
    side_down = duplex.side_down(payload, side_down, up)
    side_down = side_down._replace(budget_bytes=jnp.where(is_skipped, 0, side_down.budget_bytes))
    down_payload, down = duplex.down.compress(smashed_grad, server.down, side_down)
    learnt = server._replace(state=state, up=up, down=down)
    step = ServerStep(down_payload, grads, smashed_hat, smashed_grad, loss, metrics)
    return step, select(is_skipped, server._replace(up=up), learnt)


def client_backward(
    duplex: Duplex, client: Party, pending: Pending, payload: PyTree, side: SideInfo
) -> tuple[PyTree, Array, Party]:
    """Decompresses the gradient of the cut and carries it through the client's half.

    After an empty message in either direction the client's running state stays as it was, and its parameters should.

    Args:
        duplex: the compressors of both directions.
        client: as `client_forward` returned it.
        pending: what `client_forward` kept.
        payload: what came down.
        side: of the downlink.

    Returns:
        (gradients of the client's parameters, the gradient of the cut as received, the client with new running and
        receiver state; its parameters are the caller's to update).
    """
    side = duplex.side_down(pending.payload, side, client.up)
    smashed_grad, down = duplex.down.decompress(payload, client.down, side)
    total = smashed_grad if pending.penalty_grad is None else smashed_grad + pending.penalty_grad
    (grads,) = pending.vjp(total.astype(pending.smashed.dtype))
    received = client._replace(down=down)
    learnt = select(measure.is_skipped(payload), received, received._replace(state=pending.state))
    return grads, smashed_grad, select(measure.is_skipped(pending.payload), client, learnt)


class Message(NamedTuple):
    """What one message cost and lost.

    Attributes:
        num_bytes: int32, of its frame.
        rank: int32, or None for a method without rank.
        distortion: float32, relative squared error.
        is_skipped: bool, whether the budget afforded nothing.
    """

    num_bytes: Array
    rank: Array | None
    distortion: Array
    is_skipped: Array


class FusedStep(NamedTuple):
    """What a fused step has computed.

    Attributes:
        client_grads: gradients of the client's parameters.
        server_grads: gradients of the server's parameters.
        loss: scalar.
        metrics: what the loss function returned beside the loss.
        up: the uplink's message.
        down: the downlink's message.
    """

    client_grads: PyTree
    server_grads: PyTree
    loss: Array
    metrics: PyTree
    up: Message
    down: Message


def fused_step(
    model: SplitModel,
    duplex: Duplex,
    loss_fn: LossFn,
    client: Party,
    server: Party,
    batch: tuple[PyTree, PyTree],
    side_up: SideInfo,
    side_down: SideInfo,
) -> tuple[FusedStep, Party, Party]:
    """Runs client forward, server step and client backward in one function, for one jit.

    Args:
        model: both halves' functions.
        duplex: the compressors of both directions.
        loss_fn: of the task.
        client: what the client holds.
        server: what the server holds.
        batch: (inputs, targets).
        side_up: of the uplink.
        side_down: of the downlink.

    Returns:
        (what was computed, the client, the server), both with new states and their old parameters. A skipped uplink
        message (`up.is_skipped`) means no update of either half, a skipped downlink message none of the client's.
    """
    inputs, targets = batch
    payload, pending, new_client = client_forward(model, duplex, client, inputs, side_up)
    step, new_server = server_step(model, duplex, loss_fn, server, payload, targets, side_up, side_down)
    client_grads, grad_hat, new_client = client_backward(duplex, new_client, pending, step.payload, side_down)
    up = message(duplex.up, payload, pending.smashed, step.smashed_hat)
    down = message(duplex.down, step.payload, step.smashed_grad, grad_hat)
    return FusedStep(client_grads, step.grads, step.loss, step.metrics, up, down), new_client, new_server


def message(compressor: Compressor, payload: PyTree, x: Array, x_hat: Array) -> Message:
    """Returns what a message cost and lost; `x` is what was to be sent, `x_hat` what arrived."""
    return Message(
        compressor.num_bytes(payload),
        measure.rank(payload),
        measure.distortion(x, x_hat),
        measure.is_skipped(payload),
    )


def select(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Returns one of two alike pytrees by a traced scalar; a leaf that is one object in both stays as it is."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), if_true, if_false)

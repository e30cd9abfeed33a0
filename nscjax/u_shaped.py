"""The U-shaped split step: the client holds the first layers and the last, and sends no label; two cuts.

    client --activations--> server --activations--> client: loss --gradient--> server --gradient--> client

Every leg is one of `nscjax.split`'s. At the first cut the client is what is called client there; at the second, where
activations come down and their gradient goes up, the server is. So of the second cut's `Duplex`, `up` compresses the
activations and `down` their gradient, whichever way they travel. A party holds the ends of both cuts: `Party.up` and
`Party.down` are pairs, the first cut's first.

After an empty message the messages that follow have a budget of 0, and nothing is learnt from them: both halves stay as
they are, but for the server's after an empty last message, which it has sent itself. A gradient's compressor states
move only if all messages before it carried something, at either end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nscjax import measure, split
from nscjax.compress import Duplex, SideInfo
from nscjax.split import Half, LossFn, Party, Pending, ServerStep, SplitModel, select
from nscjax.types import Array, Key, PyTree

Duplexes = tuple[Duplex, Duplex]
"""The compressors of the first cut and of the second."""


def at(party: Party, cut: int) -> Party:
    """Returns a party with the ends of one cut alone, 0 or 1: as `nscjax.split` knows it."""
    return party._replace(up=party.up[cut], down=party.down[cut])


def _put(party: Party, cut: int, ends: Party) -> Party:
    """Returns a party with its ends of one cut replaced by those of `ends`."""
    if cut == 0:
        return party._replace(up=(ends.up, party.up[1]), down=(ends.down, party.down[1]))
    return party._replace(up=(party.up[0], ends.up), down=(party.down[0], ends.down))


def init_parties(
    duplexes: Duplexes, key: Key, specs: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], client: Half, server: Half
) -> tuple[Party, Party]:
    """Returns both parties with fresh compressor states.

    Args:
        duplexes: the compressors of both cuts.
        key: for the compressors' states.
        specs: shape and dtype of a tensor of the first cut and of the second.
        client: the client's half, first layers and last.
        server: the server's half.
    """
    first_key, second_key = jax.random.split(key)
    client_first, server_first = split.init_parties(duplexes[0], first_key, specs[0], client, server)
    server_second, client_second = split.init_parties(duplexes[1], second_key, specs[1], server, client)

    def both(first: Party, second: Party) -> Party:
        return first._replace(up=(first.up, second.up), down=(first.down, second.down))

    return both(client_first, client_second), both(server_first, server_second)


class Relay(NamedTuple):
    """What the server keeps while the client computes the loss.

    Attributes:
        pending: of the second cut; its `vjp` gives the gradients of (parameters, tensor of the first cut).
        payload: what came up.
        smashed_hat: the tensor of the first cut as it arrived.
    """

    pending: Pending
    payload: PyTree
    smashed_hat: Array


class Turn(NamedTuple):
    """What the client keeps while the server goes backward.

    Attributes:
        pending: of the first cut; its running state is that after the last layers as well.
        grads: of the client's parameters, by the last layers.
        is_skipped: bool, whether a message so far was empty.
    """

    pending: Pending
    grads: PyTree
    is_skipped: Array


class Returned(NamedTuple):
    """What the server has computed from the gradient of the second cut.

    Attributes:
        payload: of the first cut's gradient, to be sent down.
        grads: gradients of the server's parameters.
        smashed_grad: gradient of the loss in the tensor of the first cut, before compression.
        grad_hat: the gradient of the second cut as it arrived.
        is_skipped: bool, whether a message so far was empty: nothing is to be learnt then.
    """

    payload: PyTree
    grads: PyTree
    smashed_grad: Array
    grad_hat: Array
    is_skipped: Array


def client_forward(
    model: SplitModel, duplexes: Duplexes, client: Party, x: PyTree, side: SideInfo
) -> tuple[PyTree, Pending, Party]:
    """Runs the client's first layers on a batch and compresses the first cut; as `split.client_forward`."""
    payload, pending, moved = split.client_forward(model, duplexes[0], at(client, 0), x, side)
    return payload, pending, _put(client, 0, moved)


def server_forward(
    model: SplitModel, duplexes: Duplexes, server: Party, payload: PyTree, side_up: SideInfo, side_down: SideInfo
) -> tuple[PyTree, Relay, Party]:
    """Decompresses the first cut, runs the server's layers, and compresses the second.

    Args:
        model: all layers' functions.
        duplexes: the compressors of both cuts.
        server: what the server holds.
        payload: what came up.
        side_up: of the message that came up.
        side_down: of the one that goes down.

    Returns:
        (payload to send down, what to keep for `server_backward`, the server with new compressor states).
    """
    smashed_hat, up = duplexes[0].up.decompress(payload, server.up[0], side_up)
    server = server._replace(up=(up, server.up[1]))

    def body(both: tuple[PyTree, Array], state: PyTree, x: None, is_training: bool) -> tuple[Array, PyTree]:
        del x
        return model.server(both[0], state, both[1], is_training)

    sender = at(server, 1)._replace(params=(server.params, smashed_hat))
    side_down = _unless(measure.is_skipped(payload), side_down)
    onward, pending, moved = split.client_forward(
        SplitModel(body, model.server_apply, stateful=True), duplexes[1], sender, None, side_down
    )
    return onward, Relay(pending, payload, smashed_hat), _put(server, 1, moved)


def client_turn(
    model: SplitModel,
    duplexes: Duplexes,
    loss_fn: LossFn,
    client: Party,
    pending: Pending,
    payload: PyTree,
    targets: PyTree,
    side_down: SideInfo,
    side_up: SideInfo,
) -> tuple[ServerStep, Turn, Party]:
    """Decompresses the second cut, runs the client's last layers forward and backward, and compresses the gradient.

    Args:
        model: all layers' functions.
        duplexes: the compressors of both cuts.
        loss_fn: of the task.
        client: as `client_forward` returned it.
        pending: what `client_forward` kept.
        payload: what came down.
        targets: what the loss compares the logits with.
        side_down: of the message that came down.
        side_up: of the one that goes up.

    Returns:
        (what was computed, what to keep for `client_backward`, the client with new compressor states).
    """
    assert model.tail_apply is not None
    tail = SplitModel(model.client_apply, model.tail_apply, model.stateful)
    is_unmet = measure.is_skipped(pending.payload)
    receiver = at(client, 1)._replace(state=pending.state)
    step, moved = split.server_step(
        tail, duplexes[1], loss_fn, receiver, payload, targets, side_down, _unless(is_unmet, side_up)
    )
    moved = moved._replace(down=select(is_unmet, receiver.down, moved.down))
    is_skipped = is_unmet | measure.is_skipped(payload) | measure.is_skipped(step.payload)
    return step, Turn(pending._replace(state=moved.state), step.grads, is_skipped), _put(client, 1, moved)


def server_backward(
    duplexes: Duplexes, server: Party, relay: Relay, payload: PyTree, side_up: SideInfo, side_down: SideInfo
) -> tuple[Returned, Party]:
    """Decompresses the second cut's gradient, carries it through the server's layers, and compresses the first cut's.

    Args:
        duplexes: the compressors of both cuts.
        server: as `server_forward` returned it.
        relay: what `server_forward` kept.
        payload: what came up.
        side_up: of the message that came up.
        side_down: of the one that goes down.

    Returns:
        (what was computed, the server with new running and compressor states; its parameters are the caller's to
        update).
    """
    (grads, smashed_grad), grad_hat, moved = split.client_backward(
        duplexes[1], at(server, 1), relay.pending, payload, side_up
    )
    is_unmet = measure.is_skipped(relay.payload)
    is_skipped = is_unmet | measure.is_skipped(relay.pending.payload) | measure.is_skipped(payload)
    side_down = _unless(is_skipped, duplexes[0].side_down(relay.payload, side_down, server.up[0]))
    down_payload, down = duplexes[0].down.compress(smashed_grad, server.down[0], side_down)
    learnt = server._replace(
        state=select(is_skipped, server.state, moved.state),
        down=(select(is_skipped, server.down[0], down), select(is_unmet, server.down[1], moved.down)),
    )
    return Returned(down_payload, grads, smashed_grad, grad_hat, is_skipped), learnt


def client_backward(
    duplexes: Duplexes, client: Party, turn: Turn, payload: PyTree, side: SideInfo
) -> tuple[PyTree, Array, Array, Party]:
    """Decompresses the first cut's gradient and carries it through the client's first layers.

    Args:
        duplexes: the compressors of both cuts.
        client: as `client_turn` returned it.
        turn: what `client_turn` kept.
        payload: what came down.
        side: of it.

    Returns:
        (gradients of the client's parameters, of first layers and last, the gradient of the first cut as received,
        whether a message of the step was empty, the client with new running and receiver state; its parameters are the
        caller's to update).
    """
    grads, grad_hat, moved = split.client_backward(duplexes[0], at(client, 0), turn.pending, payload, side)
    is_skipped = turn.is_skipped | measure.is_skipped(payload)
    client = client._replace(
        state=select(is_skipped, client.state, turn.pending.state),
        down=(select(turn.is_skipped, client.down[0], moved.down), client.down[1]),
    )
    return jax.tree.map(jnp.add, grads, turn.grads), grad_hat, is_skipped, client


def _unless(is_skipped: Array, side: SideInfo) -> SideInfo:
    """Returns the side information of a message that is to be empty where one before it was."""
    return side._replace(budget_bytes=jnp.where(is_skipped, 0, side.budget_bytes))

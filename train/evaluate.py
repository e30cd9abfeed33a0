"""Evaluation: the test set through the network with the cut compressed and with it left alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nscjax.compress import Compressor, SideInfo
from nscjax.types import Array, Key, PyTree
from train import state as states
from train.data.batches import eval_batch, num_eval_steps


class Sums(NamedTuple):
    """Sums over the test samples seen so far.

    Attributes:
        loss: float32, of the compressed cut.
        right: int32 [K], right answers by class, cut compressed.
        seen: int32 [K], samples by class.
        right_uncompressed: int32, right answers with the cut left alone.
    """

    loss: Array
    right: Array
    seen: Array
    right_uncompressed: Array


class _Leg(NamedTuple):
    """How activations cross one cut: compressor, largest frame, and the key of its random numbers."""

    compressor: Compressor
    cap_bytes: int
    key: Key


class Presented(NamedTuple):
    """A batch as the client presents it.

    Attributes:
        payload: that crosses.
        smashed: the cut as it is.
        labels: int32 [B].
        mask: bool [B], false for padding.
    """

    payload: PyTree
    smashed: Array
    labels: Array
    mask: Array


class Parts(NamedTuple):
    """An evaluation's programs: the client presents a batch, the server grades it; and those of a prediction.

    The last layers' party grades and classifies: of a U-shaped network the client, what the server has relayed to it.

    Attributes:
        send: `(client, sender state, x [B, ...], batch) -> (payload, sender state)`.
        classify: `(last party, receiver state, payload, batch) -> (receiver state, classes int32 [B])`.
        present: `(client, sender state, x [N, ...], y [N], batch) -> (Presented, sender state, frame bytes)`.
        grade: `(last party, receiver state, sums, payload, the cut as it is or None, labels [B], mask [B], batch) ->
            (receiver state, sums)`.
        relay: of a U-shaped network `(server, its states of the activations' compressors, payload, the cut as it is or
            None, batch) -> (payload, the second cut as it is or None, the states, frame bytes)`; else None.
    """

    send: Callable
    classify: Callable
    present: Callable
    grade: Callable
    relay: Callable | None = None


def evaluate(
    parts: Parts, state: states.TrainState, x: Array, y: Array, batch_size: int, num_classes: int,
    progress: Callable[[int, int], Any] = lambda _done, _total: None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the fields of an evaluation: loss, accuracy, balanced_accuracy, accuracy_uncompressed, eval_up_bytes.

    Of a U-shaped network, `eval_down_bytes` as well.

    Args:
        parts: `make_parts` of the run.
        state: the run's, which stays as it is: its compressors' states are copied and the copies discarded.
        x: test inputs [N, ...].
        y: their labels, int32 [N].
        batch_size: that of training; the last batch is padded and masked.
        num_classes: K.
        progress: called with (batches done, batches in all).
    """
    sums, num_batches = no_sums(num_classes), num_eval_steps(len(x), batch_size)
    if parts.relay is None:
        last, enc, dec, between = state.server, state.client.up, state.server.up, None
    else:
        last, (enc, dec), between = state.client, state.client.up, state.server.up
    num_bytes = []
    for batch in range(num_batches):
        number = np.int32(batch)
        shown, enc, up_bytes = parts.present(state.client, enc, x, y, number)
        down_bytes = 0
        if parts.relay is not None:
            *passed, between, down_bytes = parts.relay(state.server, between, shown.payload, shown.smashed, number)
            shown = shown._replace(payload=passed[0], smashed=passed[1])
        dec, sums = parts.grade(last, dec, sums, *shown, number)
        num_bytes.append((up_bytes, down_bytes))
        progress(batch + 1, num_batches)
    up_bytes, down_bytes = (sum(map(int, frame_bytes)) for frame_bytes in zip(*jax.device_get(num_bytes)))
    found = scores(sums, len(x)) | {"eval_up_bytes": up_bytes}
    return found if parts.relay is None else found | {"eval_down_bytes": down_bytes}


def no_sums(num_classes: int) -> Sums:
    """Returns the sums over no samples."""
    zero = jnp.zeros(num_classes, jnp.int32)
    return Sums(jnp.zeros(()), zero, zero, jnp.zeros((), jnp.int32))


def scores(sums: Sums, num_samples: int) -> dict[str, Any]:
    """Returns what the sums over all test samples say."""
    sums = jax.device_get(sums)
    present = sums.seen > 0
    return {
        "loss": float(sums.loss / num_samples),
        "accuracy": float(sums.right.sum() / num_samples),
        "balanced_accuracy": float(np.mean(sums.right[present] / sums.seen[present])),
        "accuracy_uncompressed": float(sums.right_uncompressed / num_samples),
    }


def make_parts(setup: states.Setup, batch_size: int, num_classes: int) -> Parts:
    """Returns the programs of an evaluation; each party's own, as in training (`train.step`)."""
    purposes = "evaluation", "evaluation of the second cut"
    legs = [_Leg(cut.duplex.up, cut.caps[0], states.key_of(setup.key, to)) for cut, to in zip(setup.cuts, purposes)]
    first, last = legs[0], legs[-1]
    last_layers: Callable = setup.model.tail if setup.is_u_shaped else setup.model.server

    def side_of(leg, batch):
        return SideInfo(
            key=jax.random.fold_in(leg.key, batch),
            budget_bytes=leg.cap_bytes,
            # Test samples are in no cache of per-sample feedback.
            sample_ids=jnp.full(batch_size, -1, jnp.int32),
        )

    def compress(client, enc, x, batch):
        smashed, _ = setup.model.client(client.params, client.state, setup.inputs.normalise(x), False)
        payload, enc = first.compressor.compress(smashed, enc, side_of(first, batch))
        return payload, enc, smashed

    def answer(party, dec, payload, batch):
        smashed_hat, dec = last.compressor.decompress(payload, dec, side_of(last, batch))
        logits, _ = last_layers(party.params, party.state, smashed_hat, False)
        return logits, dec

    @jax.jit
    def send(client, enc, x, batch):
        return compress(client, enc, x, batch)[:2]

    @jax.jit
    def classify(party, dec, payload, batch):
        logits, dec = answer(party, dec, payload, batch)
        return dec, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    @jax.jit
    def present(client, enc, x, y, batch):
        x, y, mask = eval_batch(x, y, batch, batch_size)
        payload, enc, smashed = compress(client, enc, x, batch)
        return Presented(payload, smashed, y, mask), enc, first.compressor.num_bytes(payload)

    @jax.jit
    def relay(server, between, payload, smashed, batch):
        dec, enc = between
        smashed_hat, dec = first.compressor.decompress(payload, dec, side_of(first, batch))

        def forward(smashed):
            return setup.model.server(server.params, server.state, smashed, False)[0]

        onward, enc = last.compressor.compress(forward(smashed_hat), enc, side_of(last, batch))
        features = None if smashed is None else forward(smashed)
        return onward, features, (dec, enc), last.compressor.num_bytes(onward)

    @jax.jit
    def grade(party, dec, sums, payload, smashed, y, mask, batch):
        logits, dec = answer(party, dec, payload, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        is_right = mask & (jnp.argmax(logits, axis=-1) == y)
        right_uncompressed = sums.right_uncompressed
        if smashed is not None:
            logits_uncompressed, _ = last_layers(party.params, party.state, smashed, False)
            is_right_uncompressed = mask & (jnp.argmax(logits_uncompressed, axis=-1) == y)
            right_uncompressed += jnp.sum(is_right_uncompressed, dtype=jnp.int32)
        by_class = jax.nn.one_hot(y, num_classes, dtype=jnp.int32)
        return dec, Sums(
            loss=sums.loss + jnp.sum(jnp.where(mask, losses, 0.0)),
            right=sums.right + is_right.astype(jnp.int32) @ by_class,
            seen=sums.seen + mask.astype(jnp.int32) @ by_class,
            right_uncompressed=right_uncompressed,
        )

    return Parts(send, classify, present, grade, relay if setup.is_u_shaped else None)

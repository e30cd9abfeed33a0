"""Evaluation: the test set through the network with the cut compressed and with it left alone."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nscjax.compress import SideInfo
from nscjax.types import Array, PyTree
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


class Carry(NamedTuple):
    """What one batch of an evaluation leaves to the next: the uplink's states, a copy of the run's, and the sums."""

    enc: PyTree
    dec: PyTree
    sums: Sums


def evaluate(
    eval_step: Callable, state: states.TrainState, x: Array, y: Array, batch_size: int, num_classes: int,
    progress: Callable[[int, int], Any] = lambda _done, _total: None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the fields of an evaluation: loss, accuracy, balanced_accuracy, accuracy_uncompressed, eval_up_bytes.

    Args:
        eval_step: `make_step` of the run.
        state: the run's, which stays as it is: its compressors' states are copied and the copies discarded.
        x: test inputs [N, ...].
        y: their labels, int32 [N].
        batch_size: that of training; the last batch is padded and masked.
        num_classes: K.
        progress: called with (batches done, batches in all).
    """
    zero = jnp.zeros(num_classes, jnp.int32)
    sums = Sums(jnp.zeros(()), zero, zero, jnp.zeros((), jnp.int32))
    carry = jax.tree.map(jnp.copy, Carry(state.client.up, state.server.up, sums))
    num_batches = num_eval_steps(len(x), batch_size)
    num_bytes = []
    for batch in range(num_batches):
        carry, frame_bytes = eval_step(state.client, state.server, carry, x, y, batch)
        num_bytes.append(frame_bytes)
        progress(batch + 1, num_batches)
    sums = jax.device_get(carry.sums)
    present = sums.seen > 0
    return {
        "loss": float(sums.loss / len(x)),
        "accuracy": float(sums.right.sum() / len(x)),
        "balanced_accuracy": float(np.mean(sums.right[present] / sums.seen[present])),
        "accuracy_uncompressed": float(sums.right_uncompressed / len(x)),
        "eval_up_bytes": sum(int(frame_bytes) for frame_bytes in jax.device_get(num_bytes)),
    }


def make_step(setup: states.Setup, batch_size: int, num_classes: int) -> Callable:
    """Returns the jitted function of one test batch: (client, server, carry, x, y, batch) -> (carry, frame bytes).

    The carry that is passed in is used up.
    """

    @functools.partial(jax.jit, donate_argnums=2)
    def step(client, server, carry, x, y, batch):
        x, y, mask = eval_batch(x, y, batch, batch_size)
        side = SideInfo(
            key=jax.random.fold_in(states.key_of(setup.key, "evaluation"), batch),
            budget_bytes=setup.caps[0],
            # Test samples are in no cache of per-sample feedback.
            sample_ids=jnp.full(batch_size, -1, jnp.int32),
        )
        smashed, _ = setup.model.client(client.params, client.state, setup.inputs.normalise(x), False)
        payload, enc = setup.duplex.up.compress(smashed, carry.enc, side)
        smashed_hat, dec = setup.duplex.up.decompress(payload, carry.dec, side)
        logits, _ = setup.model.server(server.params, server.state, smashed_hat, False)
        logits_uncompressed, _ = setup.model.server(server.params, server.state, smashed, False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        is_right = mask & (jnp.argmax(logits, axis=-1) == y)
        by_class = jax.nn.one_hot(y, num_classes, dtype=jnp.int32)
        sums = Sums(
            loss=carry.sums.loss + jnp.sum(jnp.where(mask, losses, 0.0)),
            right=carry.sums.right + is_right.astype(jnp.int32) @ by_class,
            seen=carry.sums.seen + mask.astype(jnp.int32) @ by_class,
            right_uncompressed=carry.sums.right_uncompressed
            + jnp.sum(mask & (jnp.argmax(logits_uncompressed, axis=-1) == y), dtype=jnp.int32),
        )
        return Carry(enc, dec, sums), setup.duplex.up.num_bytes(payload)

    return step

"""What a run carries from step to step, and the step: one jitted function from state to state.

Whatever goes wrong numerically is a value: after a non-finite loss, activation, gradient or parameter the state stays
as it was before that step, for good, so that the host, which looks one step later, still finds the last good one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nscjax import link as links
from nscjax import split
from nscjax.compress import Duplex, SideInfo
from nscjax.types import Array, Key, PyTree
from train import optimise
from train.data.batches import augment, normalise

TENSORS = (
    "activations of the cut",
    "loss",
    "gradient of the cut",
    "client's gradients",
    "server's gradients",
    "client's updated half",
    "server's updated half",
)
"""What a step checks for finiteness, in the order of cause; `Metrics.broken` is a position in it, or -1."""


PURPOSES = ("compressors", "steps", "evaluation", "network")
"""What random numbers are drawn for; each has a key of its own."""


class TrainState(NamedTuple):
    """The whole of a run: a checkpoint of it is enough to go on.

    Attributes:
        client: the client's half.
        server: the server's half.
        client_optimiser: its optimiser's state.
        server_optimiser: the same for the server.
        link: clocks and bandwidth estimates.
        step: int32, how many steps were made.
        is_sound: bool, whether every number so far was finite.
    """

    client: split.Party
    server: split.Party
    client_optimiser: PyTree
    server_optimiser: PyTree
    link: PyTree
    step: Array
    is_sound: Array


class Inputs(NamedTuple):
    """How a batch becomes what the client's half takes.

    Attributes:
        mean: float32 [C] of the images, or None for inputs that are taken as they are.
        std: float32 [C].
        dtype: of the network's arithmetic.
        is_augmented: whether training images are moved at random.
        can_flip: whether they are mirrored too.
    """

    mean: Any
    std: Any
    dtype: Any
    is_augmented: bool
    can_flip: bool

    def augment(self, key: Key, x: Array) -> Array:
        """Returns a training batch, its images moved at random if that was asked for."""
        return augment(key, x, flip=self.can_flip) if self.is_augmented else x

    def normalise(self, x: Array) -> Array:
        """Returns a batch as the client's half takes it: images normalised, other inputs as they are."""
        return x if self.mean is None else normalise(x, self.mean, self.std, self.dtype)


class Setup(NamedTuple):
    """What stays the same for a whole run.

    Attributes:
        model: both halves' functions.
        inputs: how a batch is made ready.
        duplex: both directions' compressors.
        caps: (up, down) the largest frames that the config allows, in bytes.
        optimiser: of each half, without learning rate.
        learning_rate: step -> learning rate.
        link: the simulated link.
        estimator: how bandwidth is estimated.
        deadline_s: seconds a message may take, or None.
        key: of the run; a step's keys follow from it and the step.
    """

    model: split.SplitModel
    inputs: Inputs
    duplex: Duplex
    caps: tuple[int, int]
    optimiser: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    link: links.Link
    estimator: links.Estimator
    deadline_s: float | None
    key: Key


class Metrics(NamedTuple):
    """What one step tells the host; all scalars.

    Attributes:
        loss: of the batch.
        accuracy: share of the batch that was right.
        up: the uplink's message.
        down: the downlink's message.
        up_budget_bytes: what the uplink's frame was allowed.
        down_budget_bytes: the same for the downlink.
        link_seconds: how long both messages took on the virtual clock.
        broken: which of `TENSORS` was not finite, or -1.
    """

    loss: Array
    accuracy: Array
    up: split.Message
    down: split.Message
    up_budget_bytes: Array
    down_budget_bytes: Array
    link_seconds: Array
    broken: Array


def init(setup: Setup, spec: jax.ShapeDtypeStruct, client: tuple, server: tuple, initial_mbps: tuple) -> TrainState:
    """Returns the state before the first step.

    Args:
        setup: of the run.
        spec: of a cut tensor.
        client: (params, running state) of the client's half.
        server: the same of the server's.
        initial_mbps: (up, down) bandwidth to reckon with before the first transfer, in Mbit/s.
    """
    client_party, server_party = split.init_parties(
        setup.duplex, key_of(setup.key, "compressors"), spec, client, server
    )
    state = TrainState(
        client=client_party,
        server=server_party,
        client_optimiser=setup.optimiser.init(client_party.params),
        server_optimiser=setup.optimiser.init(server_party.params),
        link=links.init(setup.link, setup.estimator, *initial_mbps),
        step=jnp.zeros((), jnp.int32),
        is_sound=jnp.asarray(True),
    )
    # Every leaf its own buffer: the step takes them over, and the caller's parameters stay the caller's.
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns the mean cross-entropy and the share of right answers; logits [B, K], labels int [B]."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def train_step(setup: Setup, state: TrainState, x: Array, y: Array, sample_ids: Array) -> tuple[TrainState, Metrics]:
    """Makes one step of split training on one batch; pure, for one jit with `state` donated.

    Args:
        setup: of the run.
        state: used up, where donated.
        x: uint8 images [B, H, W, C], or inputs that are taken as they are.
        y: int32 labels [B].
        sample_ids: int32 [B].
    """
    step_key = jax.random.fold_in(key_of(setup.key, "steps"), state.step)
    augment_key, up_key, down_key = jax.random.split(step_key, 3)
    up_budget, down_budget = _budgets(setup, state.link)
    step, client, server = split.fused_step(
        setup.model,
        setup.duplex,
        cross_entropy,
        state.client,
        state.server,
        (setup.inputs.normalise(setup.inputs.augment(augment_key, x)), y),
        SideInfo(up_key, up_budget, sample_ids),
        SideInfo(down_key, down_budget, sample_ids),
    )
    rate = setup.learning_rate(state.step)
    client_params, client_optimiser = _update(setup, rate, client.params, state.client_optimiser, step.client_grads)
    server_params, server_optimiser = _update(setup, rate, server.params, state.server_optimiser, step.server_grads)
    client_stays = step.up.is_skipped | step.down.is_skipped
    link, up_s, down_s = links.exchange(setup.link, setup.estimator, state.link, step.up.num_bytes, step.down.num_bytes)
    moved = TrainState(
        client=client._replace(params=split.select(client_stays, client.params, client_params)),
        server=server._replace(params=split.select(step.up.is_skipped, server.params, server_params)),
        client_optimiser=split.select(client_stays, state.client_optimiser, client_optimiser),
        server_optimiser=split.select(step.up.is_skipped, state.server_optimiser, server_optimiser),
        link=link,
        step=state.step + 1,
        is_sound=state.is_sound,
    )
    broken = _first_broken(step, moved)
    is_sound = state.is_sound & (broken < 0)
    metrics = Metrics(step.loss, step.metrics, step.up, step.down, up_budget, down_budget, up_s + down_s, broken)
    return split.select(is_sound, moved, state._replace(is_sound=is_sound)), metrics


def key_of(key: Key, purpose: str) -> Key:
    """Returns the key for one of `PURPOSES` from that of the run."""
    return jax.random.fold_in(key, PURPOSES.index(purpose))


def _budgets(setup: Setup, link_state: PyTree) -> tuple[Array, Array]:
    up, down = (jnp.asarray(cap, jnp.int32) for cap in setup.caps)
    if setup.deadline_s is None:
        return up, down
    up_link, down_link = links.budgets(setup.link, setup.estimator, link_state, setup.deadline_s)
    return jnp.minimum(up, up_link), jnp.minimum(down, down_link)


def _update(setup: Setup, rate: Array, params: PyTree, optimiser: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
    directions, optimiser = setup.optimiser.update(grads, optimiser, params)
    return optimise.apply(params, directions, rate), optimiser


def _first_broken(step: split.FusedStep, moved: TrainState) -> Array:
    """Returns the position in `TENSORS` of the first that is not finite, or -1.

    A message's distortion is finite only if the tensor and what arrived of it are. Of a half its parameters, its
    running state and its optimiser's state count: they can overflow where every gradient is finite.
    """
    client = (moved.client.params, moved.client.state, moved.client_optimiser)
    server = (moved.server.params, moved.server.state, moved.server_optimiser)
    checked = (
        step.up.distortion, step.loss, step.down.distortion, step.client_grads, step.server_grads, client, server
    )  # fmt: skip
    is_finite = jnp.stack([_all_finite(tree) for tree in checked])
    return jnp.where(jnp.all(is_finite), -1, jnp.argmin(is_finite))


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.asarray(True), *(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree))]))

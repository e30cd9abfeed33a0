"""What a run carries from step to step, and what stays the same.

Whatever goes wrong numerically is a value: after a non-finite loss, activation, gradient or parameter the state stays
as it was before that step, for good, so that the host, which looks one step later, still finds the last good one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nscjax import link as links
from nscjax import measure, split, u_shaped
from nscjax.compress import Duplex
from nscjax.types import Array, Key, PyTree
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


PURPOSES = ("compressors", "steps", "evaluation", "network", "second cut", "evaluation of the second cut")
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


class Cut(NamedTuple):
    """Where a network is cut.

    Attributes:
        duplex: its compressors: `up` of the activations, `down` of their gradient, whichever way they travel.
        caps: (activations, gradient) the largest frames that the config allows, in bytes.
        spec: of a tensor of it.
    """

    duplex: Duplex
    caps: tuple[int, int]
    spec: jax.ShapeDtypeStruct


class Setup(NamedTuple):
    """What stays the same for a whole run.

    Attributes:
        model: both halves' functions.
        inputs: how a batch is made ready.
        cuts: the one cut; of a U-shaped network (`nscjax.u_shaped`) two, in the order of the layers.
        optimiser: of each half, without learning rate.
        learning_rate: step -> learning rate.
        link: the simulated link.
        estimator: how bandwidth is estimated.
        deadline_s: seconds a message may take, or None.
        key: of the run; a step's keys follow from it and the step.
    """

    model: split.SplitModel
    inputs: Inputs
    cuts: tuple[Cut, ...]
    optimiser: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    link: links.Link
    estimator: links.Estimator
    deadline_s: float | None
    key: Key

    @property
    def is_u_shaped(self) -> bool:
        """Whether the network comes back to the client."""
        return len(self.cuts) == 2

    @property
    def duplexes(self) -> u_shaped.Duplexes:
        """The compressors of both cuts of a U-shaped network."""
        first, second = self.cuts
        return first.duplex, second.duplex

    @property
    def raw_message_bytes(self) -> tuple[int, ...]:
        """Float32 bytes of a message of every cut."""
        return tuple(measure.raw_bytes(cut.spec.shape) for cut in self.cuts)


class Metrics(NamedTuple):
    """What one step tells the host; all scalars.

    Attributes:
        loss: of the batch.
        accuracy: share of the batch that was right.
        up: the uplink's message.
        down: the downlink's message.
        up_budget_bytes: what the uplink's frame was allowed.
        down_budget_bytes: the same for the downlink.
        link_seconds: how long all messages took on the virtual clock.
        broken: which of `TENSORS` was not finite, or -1.
        second_up: of a U-shaped network, the uplink's second message.
        second_down: the downlink's other one.
        second_up_budget_bytes: what `second_up` was allowed.
        second_down_budget_bytes: the same for `second_down`.
    """

    loss: Array
    accuracy: Array
    up: split.Message
    down: split.Message
    up_budget_bytes: Array
    down_budget_bytes: Array
    link_seconds: Array
    broken: Array
    second_up: split.Message | None = None
    second_down: split.Message | None = None
    second_up_budget_bytes: Array | None = None
    second_down_budget_bytes: Array | None = None


def init(setup: Setup, client: tuple, server: tuple, initial_mbps: tuple) -> TrainState:
    """Returns the state before the first step.

    Args:
        setup: of the run.
        client: (params, running state) of the client's half.
        server: the same of the server's.
        initial_mbps: (up, down) bandwidth to reckon with before the first transfer, in Mbit/s.
    """
    client_party, server_party = init_parties(setup, client, server)
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


def init_parties(setup: Setup, client: split.Half, server: split.Half) -> tuple[split.Party, split.Party]:
    """Returns both parties before the first step; arguments as in `init`."""
    key = key_of(setup.key, "compressors")
    if setup.is_u_shaped:
        first, second = setup.cuts
        return u_shaped.init_parties(setup.duplexes, key, (first.spec, second.spec), client, server)
    return split.init_parties(setup.cuts[0].duplex, key, setup.cuts[0].spec, client, server)


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns the mean cross-entropy and the share of right answers; logits [B, K], labels int [B]."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def key_of(key: Key, purpose: str) -> Key:
    """Returns the key for one of `PURPOSES` from that of the run."""
    return jax.random.fold_in(key, PURPOSES.index(purpose))

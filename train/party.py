"""One party's share of a run: its half, its optimiser, and what it knows of the other end."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import split
from nscjax.compress import SideInfo
from nscjax.split import Half
from nscjax.types import Array, PyTree
from train import state as states
from train import step as steps
from train.config import Config
from train.data import Dataset
from train.setup import initial_mbps, network, set_up


class PartyState(NamedTuple):
    """The whole of a party: a checkpoint of it is enough to go on.

    Attributes:
        party: its half, and its ends of both links.
        optimiser: its optimiser's state.
        mirror: the state of the receiver at the other end, as this end knows it.
        step: int32, how many steps were made.
    """

    party: split.Party
    optimiser: PyTree
    mirror: PyTree
    step: Array


class Share(NamedTuple):
    """What a party has of a run.

    Attributes:
        setup: of the run.
        spec: of a cut tensor.
        up_payload: layout of the uplink's payloads.
        down_payload: layout of the downlink's.
        first: the party's state before the first step.
        parts: the step's programs.
        echo: the program that measures what this party sends.
    """

    setup: states.Setup
    spec: jax.ShapeDtypeStruct
    up_payload: PyTree
    down_payload: PyTree
    first: PartyState
    parts: steps.Programs
    echo: Any


def share(config: Config, dataset: Dataset, role: str, num_steps: int) -> Share:
    """Returns what one party has of a run; of the other half it has shapes alone.

    Args:
        config: of the run.
        dataset: of which the server needs shapes and classes alone.
        role: "client" or "server".
        num_steps: of the whole run.

    Raises:
        InputError: config and data do not fit together.
    """
    model, client, server = network(config, dataset, own=role)
    setup, spec, _ = set_up(config, dataset, model, client, server, num_steps, None)
    whole = jax.eval_shape(
        lambda client, server: states.init(setup, spec, client, server, initial_mbps(config)), client, server
    )
    up_payload, down_payload = _payloads(setup, spec, whole)
    echo = steps.echo_up if role == "client" else steps.echo_down
    return Share(
        setup,
        spec,
        up_payload,
        down_payload,
        _first(setup, spec, role, client if role == "client" else server),
        steps.programs(setup),
        jax.jit(functools.partial(echo, setup)),
    )


def facts(dataset: Dataset) -> dict[str, Any]:
    """Returns what the server has to know of the client's data, JSON-ready: the arguments of `hollow`."""
    return {
        "sample_shape": list(dataset.x_train.shape[1:]),
        "is_image": dataset.x_train.dtype == np.uint8,
        "num_train": len(dataset.x_train),
        "num_classes": dataset.num_classes,
    }


def hollow(sample_shape: Sequence[int], is_image: bool, num_train: int, num_classes: int) -> Dataset:
    """Returns a data set of these shapes that holds nothing and takes no memory: of the other party's data."""
    x = np.broadcast_to(np.zeros((), np.uint8 if is_image else np.float32), (num_train, *sample_shape))
    y = np.broadcast_to(np.zeros((), np.int32), (num_train,))
    channels = np.ones(sample_shape[-1], np.float32)
    return Dataset("remote", x, y, x[:1], y[:1], num_classes, channels, channels, ())


def needs_ids(config: Config) -> bool:
    """Returns whether a method needs to know which samples a batch holds."""
    up, down = config.compress.up, config.compress.down
    # Of gradients AQ-SGD keeps no caches (`train.compression.build`).
    return "per_sample" in (up.feedback, down.feedback) or up.method == "aq_sgd"


def _first(setup: states.Setup, spec: jax.ShapeDtypeStruct, role: str, half: Half) -> PartyState:
    none: Half = ((), ())
    is_client = role == "client"
    key = states.key_of(setup.key, "compressors")
    client, server = split.init_parties(
        setup.duplex, key, spec, half if is_client else none, none if is_client else half
    )
    own = client if is_client else server
    mirror = server.up if is_client else client.down
    return PartyState(own, setup.optimiser.init(own.params), mirror, jnp.zeros((), jnp.int32))


def _payloads(setup: states.Setup, spec: jax.ShapeDtypeStruct, whole: states.TrainState) -> tuple[PyTree, PyTree]:
    """Returns the layouts of both directions' payloads: what frames are checked against."""
    batch = jax.ShapeDtypeStruct(spec.shape[:1], jnp.int32)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)

    def up(smashed, enc, ids, budget):
        side = SideInfo(jax.random.key(0), budget, ids)
        return setup.duplex.up.compress(smashed, enc, side)[0]

    def down(smashed_grad, enc, up_payload, up_state, ids, budget):
        side = setup.duplex.side_down(up_payload, SideInfo(jax.random.key(0), budget, ids), up_state)
        return setup.duplex.down.compress(smashed_grad, enc, side)[0]

    up_payload = jax.eval_shape(up, spec, whole.client.up, batch, scalar)
    return up_payload, jax.eval_shape(down, spec, whole.server.down, up_payload, whole.server.up, batch, scalar)

"""One party's share of a run: its half, its optimiser, and what it knows of the other end."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import split, u_shaped
from nscjax.compress import SideInfo
from nscjax.split import Half
from nscjax.types import Array, PyTree
from train import compression, u_step
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
        mirror: the state of the receiver at the other end, as this end knows it; of a U-shaped network a pair, of the
            receiver at the first cut and of that at the second.
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
        layouts: of the payloads, by way as in the config: what frames are checked against.
        first: the party's state before the first step.
        parts: the step's programs.
        echoes: the programs that measure what this party sends, by way.
    """

    setup: states.Setup
    layouts: dict[str, PyTree]
    first: PartyState
    parts: Any
    echoes: Mapping[str, Callable]

    def largest_raw_bytes(self) -> int:
        """Returns the bytes of the largest tensor that crosses, in float32."""
        return max(self.setup.raw_message_bytes)


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
    setup, _ = set_up(config, dataset, model, client, server, num_steps, None)
    whole = jax.eval_shape(
        lambda client, server: states.init(setup, client, server, initial_mbps(config)), client, server
    )
    first = _first(setup, role, client if role == "client" else server)
    parts: Any
    echo: dict[str, Callable]
    if setup.is_u_shaped:
        ends = [u_shaped.at(party, cut) for cut in range(2) for party in (whole.client, whole.server)]
        up, down = _payloads(setup.cuts[0], ends[0], ends[1])
        forth, back = _payloads(setup.cuts[1], ends[3], ends[2])
        echo = {"up": steps.echo_up, "second_up": u_step.echo_back}
        if role == "server":
            echo = {"down": u_step.echo_down, "second_down": u_step.echo_on}
        layouts, parts = {"up": up, "down": down, "second_down": forth, "second_up": back}, u_step.programs(setup)
    else:
        up, down = _payloads(setup.cuts[0], whole.client, whole.server)
        echo = {"up": steps.echo_up} if role == "client" else {"down": steps.echo_down}
        layouts, parts = {"up": up, "down": down}, steps.programs(setup)
    echoes = {way: jax.jit(functools.partial(program, setup)) for way, program in echo.items()}
    return Share(setup, layouts, first, parts, echoes)


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
    ways = config.compress.ways(config.model.second_cut is not None)
    # Of gradients AQ-SGD keeps no caches (`train.compression.build`).
    return any(
        direction.feedback == "per_sample" or (direction.method == "aq_sgd" and way not in compression.GRADIENTS)
        for way, direction in ways.items()
    )


def _first(setup: states.Setup, role: str, half: Half) -> PartyState:
    none: Half = ((), ())
    is_client = role == "client"
    client, server = states.init_parties(setup, half if is_client else none, none if is_client else half)
    own = client if is_client else server
    mirror = server.up if is_client else client.down
    if setup.is_u_shaped:
        mirror = (server.up[0], server.down[1]) if is_client else (client.down[0], client.up[1])
    return PartyState(own, setup.optimiser.init(own.params), mirror, jnp.zeros((), jnp.int32))


def _payloads(cut: states.Cut, sender: split.Party, answerer: split.Party) -> tuple[PyTree, PyTree]:
    """Returns the layouts of the payloads of activations and gradients at one cut.

    Args:
        cut: which.
        sender: the party that sends the activations.
        answerer: the one that answers with their gradient.
    """
    duplex, spec = cut.duplex, cut.spec
    batch = jax.ShapeDtypeStruct(spec.shape[:1], jnp.int32)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)

    def up(smashed, enc, ids, budget):
        side = SideInfo(jax.random.key(0), budget, ids)
        return duplex.up.compress(smashed, enc, side)[0]

    def down(smashed_grad, enc, up_payload, up_state, ids, budget):
        side = duplex.side_down(up_payload, SideInfo(jax.random.key(0), budget, ids), up_state)
        return duplex.down.compress(smashed_grad, enc, side)[0]

    up_payload = jax.eval_shape(up, spec, sender.up, batch, scalar)
    return up_payload, jax.eval_shape(down, spec, answerer.down, up_payload, answerer.up, batch, scalar)

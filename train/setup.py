"""From config, data and model to a `Setup`: compressors calibrated on the first batch, link, optimiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import check, models, split
from nscjax import link as links
from nscjax.compress import Duplex
from nscjax.split import Half
from nscjax.types import Array
from train import compression, optimise
from train import state as states
from train.config import Config
from train.data import Dataset, can_flip


def network(config: Config, dataset: Dataset) -> tuple[split.SplitModel, Half, Half]:
    """Returns the network that the config names, for the data's images and classes, and both halves' first values."""
    batch_shape = (config.train.batch_size, *dataset.x_train.shape[1:])
    architecture = architecture_of(config, dataset)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    x_spec = jax.ShapeDtypeStruct(batch_shape, jnp.float32)
    # In one jit: hundreds of small programs otherwise.
    client, server = jax.jit(lambda key: models.init(key=key, x_spec=x_spec, **architecture))(key)
    return models.build(**architecture), client, server


def architecture_of(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Returns the arguments of `models.build` for a config and a data set; all JSON-ready."""
    return {**dataclasses.asdict(config.model), "num_classes": dataset.num_classes, "dtype": config.train.dtype}


def set_up(
    config: Config,
    dataset: Dataset,
    model: split.SplitModel,
    client: Half,
    server: Half,
    num_steps: int,
    views: dict[str, str] | None,
) -> tuple[states.Setup, jax.ShapeDtypeStruct, dict[str, dict[str, Any]]]:
    """Returns (setup, spec of a cut tensor, settings by direction).

    Args:
        config: of the run.
        dataset: what is learned from; its first batch is used to choose views.
        model: both halves' functions.
        client: (params, running state) of the client's half.
        server: the same of the server's.
        num_steps: of the whole run, for the learning rate's schedule.
        views: the views by direction if they were chosen before (a resumed run), else None: they are then measured on
            the first batch, the uplink's on activations, the downlink's on their gradients.

    Raises:
        InputError: names, shapes, budgets or traces that do not fit.
    """
    config_up, config_down = config.compress.up, config.compress.down
    link = _link(config)
    is_image = dataset.x_train.dtype == np.uint8
    setup = states.Setup(
        model=model,
        duplex=Duplex(up=None, down=None),  # type: ignore[arg-type]  # filled in below, once the cut is known
        caps=(0, 0),
        optimiser=optimise.direction(config.train),
        learning_rate=optimise.learning_rate(config.train, num_steps),
        link=link,
        estimator=_estimator(config),
        deadline_s=config.link.deadline_s,
        key=jax.random.key(config.seed),
        mean=dataset.mean if is_image else None,
        std=dataset.std if is_image else None,
        dtype=jnp.dtype(config.train.dtype),
        is_augmented=config.data.augment and is_image,
        can_flip=can_flip(dataset.name),
        num_samples=len(dataset.x_train),
    )
    batch = config.train.batch_size
    smashed, smashed_grad = _first_crossing(setup, client, server, dataset.x_train[:batch], dataset.y_train[:batch])
    spec = jax.ShapeDtypeStruct(smashed.shape, smashed.dtype)
    directions = {}
    for name, direction, example in (("up", config_up, smashed), ("down", config_down, smashed_grad)):
        cap = compression.cap_bytes(direction, spec)
        view = views[name] if views else compression.choose_view(direction, example, cap)
        least = _known_budget(config, name, cap)
        directions[name] = compression.build(name, direction, view, spec, setup.num_samples, least)
    setup = setup._replace(
        duplex=Duplex(up=directions["up"].compressor, down=directions["down"].compressor),
        caps=(directions["up"].cap_bytes, directions["down"].cap_bytes),
    )
    return setup, spec, {name: direction.settings for name, direction in directions.items()}


def _first_crossing(
    setup: states.Setup, client: Half, server: Half, x: np.ndarray, y: np.ndarray
) -> tuple[Array, Array]:
    """Returns the activations of the cut and their gradient on one batch, with nothing compressed."""

    @jax.jit
    def cross(x, y):
        smashed, _ = setup.model.client(*client, states.inputs(setup, x), True)

        def loss(smashed):
            logits, _ = setup.model.server(*server, smashed, True)
            return states.cross_entropy(logits, y)[0]

        return smashed, jax.grad(loss)(smashed)

    return cross(jnp.asarray(x), jnp.asarray(y))


def _estimator(config: Config) -> links.Estimator:
    return links.ESTIMATORS[check.one_of("link.estimator", config.link.estimator, links.ESTIMATORS)]()


def _link(config: Config) -> links.Link:
    settings = config.link
    return links.Link(
        up=_trace(settings.up_trace or settings.trace, settings.up_mbps),
        down=_trace(settings.down_trace or settings.trace, settings.down_mbps),
        up_latency_s=settings.latency_ms / 1000,
        down_latency_s=settings.latency_ms / 1000,
        client_step_s=settings.client_step_s,
        server_step_s=settings.server_step_s,
    )


def _trace(name: str | None, mbps: float | None) -> links.Trace:
    if name is not None:
        return links.load_trace(name)
    return links.unlimited() if mbps is None else links.constant(mbps)


def initial_mbps(config: Config) -> tuple[float, float]:
    """Returns (up, down) the bandwidth in Mbit/s to reckon with before the first transfer: a constant link's own."""
    settings = config.link
    return settings.up_mbps or settings.initial_mbps, settings.down_mbps or settings.initial_mbps


def _known_budget(config: Config, name: str, cap: int) -> int:
    """Returns the budget that a constant link gives every message of a direction; a trace's is known only later."""
    mbps = getattr(config.link, f"{name}_mbps")
    if mbps is None or config.link.deadline_s is None:
        return cap
    return int(links.budget_bytes(mbps, config.link.deadline_s, config.link.latency_ms / 1000))

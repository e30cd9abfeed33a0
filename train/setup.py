"""From config, data and model to a `Setup`: compressors calibrated on the first batch, link, optimiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import check, models, split
from nscjax import link as links
from nscjax.compress import Duplex
from nscjax.layout import MAX_BYTES
from nscjax.split import Half
from nscjax.types import Array
from train import compression, optimise
from train import state as states
from train.config import Config, ModelConfig
from train.data import Dataset, can_flip
from train.data.batches import epoch_key, epoch_order


def require_known(config: Config) -> None:
    """Raises an `InputError` for a name that nothing has, or a trace that cannot be read, before data are read."""
    if config.data.name == "digits" and config.data.dir is not None:
        remedy = "They come with scikit-learn: leave it out (--data.dir null), or name other data (--data.name npz)."
        raise check.error("data.dir", config.data.dir, "nothing with data.name 'digits'", remedy)
    try:
        models.build(**dataclasses.asdict(config.model), num_classes=2)
    except check.InputError as error:
        raise _of_model(error) from None
    for name, direction in config.compress.ways(config.model.second_cut is not None).items():
        if "view" in compression.parameters(name, direction):
            compression.require_view(name, direction)
    _link(config)
    _estimator(config)


def _of_model(error: check.InputError) -> check.InputError:
    """Returns the error of a network, its arguments called by their config keys."""
    is_key = str(error).split()[0] in {field.name for field in dataclasses.fields(ModelConfig)}
    return check.InputError(f"model.{error}") if is_key else error


def network(config: Config, dataset: Dataset, own: str | None = None) -> tuple[split.SplitModel, Half, Half]:
    """Returns the network that the config names, for the data's images and classes, and both halves' first values.

    Args:
        config: of the run.
        dataset: whose shapes and classes count.
        own: "client" or "server" for one party: of the other half there are `jax.ShapeDtypeStruct`s alone.

    Raises:
        InputError: config and data do not fit together.
    """
    batch_shape = (config.train.batch_size, *dataset.x_train.shape[1:])
    architecture = architecture_of(config, dataset)
    key = states.key_of(jax.random.key(config.seed), "network")
    x_spec = jax.ShapeDtypeStruct(batch_shape, jnp.float32)
    # In one jit: hundreds of small programs otherwise; not optimised, for compiling takes longer than it could save.
    quick = {"xla_backend_optimization_level": 0}

    def init(key):
        return dict(zip(("client", "server"), models.init(key=key, x_spec=x_spec, **architecture)))

    try:
        halves = jax.eval_shape(init, key)
        made = jax.jit(lambda key: {name: half for name, half in init(key).items() if own in (None, name)},
                       compiler_options=quick)(key)  # fmt: skip
        client, server = (halves | made)["client"], (halves | made)["server"]
    except check.InputError as error:
        raise _of_model(error) from None
    return models.build(**architecture), client, server


def architecture_of(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Returns the arguments of `models.build` for a config and a data set; all JSON-ready."""
    return {**dataclasses.asdict(config.model), "num_classes": dataset.num_classes, "dtype": config.train.dtype}


def inputs_of(inputs: states.Inputs, dataset: Dataset) -> dict[str, Any]:
    """Returns how the client's half wants its inputs, JSON-ready: shape of a sample, mean and std of images."""
    shape = list(dataset.x_train.shape[1:])
    if inputs.mean is None:
        return {"shape": shape, "mean": None, "std": None}
    return {"shape": shape, "mean": np.asarray(inputs.mean).tolist(), "std": np.asarray(inputs.std).tolist()}


def set_up(
    config: Config,
    dataset: Dataset,
    model: split.SplitModel,
    client: Half,
    server: Half,
    num_steps: int,
    views: dict[str, str] | None,
) -> tuple[states.Setup, dict[str, dict[str, Any]]]:
    """Returns (setup, settings by direction).

    Args:
        config: of the run.
        dataset: what is learned from; its first batch is used to choose views.
        model: both halves' functions.
        client: (params, running state) of the client's half.
        server: the same of the server's.
        num_steps: of the whole run, for the learning rate's schedule.
        views: the views by direction if they were chosen before (a resumed run), else None. A view that is calibrated
            is measured on the first batch, the uplink's on activations, the downlink's on their gradients; otherwise
            shapes are all that counts of the halves, and `jax.ShapeDtypeStruct`s will do.

    Raises:
        InputError: names, shapes, budgets or traces that do not fit.
    """
    is_image = dataset.x_train.dtype == np.uint8
    inputs = states.Inputs(
        mean=dataset.mean if is_image else None,
        std=dataset.std if is_image else None,
        dtype=jnp.dtype(config.train.dtype),
        is_augmented=config.data.augment and is_image,
        can_flip=can_flip(dataset.name),
    )
    ids = np.asarray(epoch_order(epoch_key(config.seed, 0), len(dataset.x_train)))[: config.train.batch_size]
    specs = _check_halves(model, inputs, client, server, dataset.x_train[ids], dataset.num_classes)
    ways = {
        name: compression.direction_of(name, config.compress)
        for name in config.compress.ways(model.tail_apply is not None)
    }
    examples: Any = [spec for spec in specs for _ in range(2)]
    if views is None and "calibrate" in {direction.view for direction in ways.values()}:
        examples = crossing(model, inputs, client, server, dataset.x_train[ids], dataset.y_train[ids])
    link = _link(config)
    directions = {}
    for (name, direction), example in zip(ways.items(), examples, strict=True):
        spec = jax.ShapeDtypeStruct(example.shape, example.dtype)
        cap = compression.cap_bytes(direction, spec)
        view = views[name] if views else compression.choose_view(name, direction, example, cap)
        largest = _largest_budget(config, getattr(link, name.removeprefix("second_")))
        directions[name] = compression.build(name, direction, view, spec, len(dataset.x_train), largest)
    ends = [*directions.values()]  # of every cut the activations', then the gradients'
    cuts = tuple(
        states.Cut(Duplex(there.compressor, back.compressor), (there.cap_bytes, back.cap_bytes), spec)
        for there, back, spec in zip(ends[::2], ends[1::2], specs, strict=True)
    )
    setup = states.Setup(
        model=model,
        inputs=inputs,
        cuts=cuts,
        optimiser=optimise.direction(config.train),
        learning_rate=optimise.learning_rate(config.train, num_steps),
        link=link,
        estimator=_estimator(config),
        deadline_s=config.link.deadline_s,
        key=jax.random.key(config.seed),
    )
    return setup, {name: direction.settings for name, direction in directions.items()}


def _check_halves(
    model: split.SplitModel, inputs: states.Inputs, client: Half, server: Half, x: np.ndarray, num_classes: int
) -> list[jax.ShapeDtypeStruct]:
    """Returns what crosses every cut; an `InputError` unless it is an array, and logits are a number a class."""
    parts = {"client": (model.client, client), "server": (model.server, server)}
    if model.tail_apply:
        parts["client's last layers"] = model.tail, client
    passed: Any = jax.eval_shape(inputs.normalise, x)
    specs: list[jax.ShapeDtypeStruct] = []
    for apply, half in parts.values():
        passed = jax.eval_shape(lambda half, passed, apply=apply: apply(*half, passed, True)[0], half, passed)
        if len(specs) < len(parts) - 1:
            specs.append(_crossing_spec("second cut" if specs else "cut", passed, len(x)))
    if getattr(passed, "shape", None) != (len(x), num_classes):
        found = jax.tree.map(lambda leaf: leaf.shape, passed)
        raise check.error(f"shape of the {[*parts][-1]}'s logits", found, f"{(len(x), num_classes)}: batch, classes")
    return specs


def _crossing_spec(cut: str, smashed: Any, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of what crosses a cut; an `InputError` unless it is one array of floats."""
    found = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", smashed)
    is_array = isinstance(smashed, jax.ShapeDtypeStruct) and jnp.issubdtype(smashed.dtype, jnp.floating)
    if not is_array or smashed.ndim < 2 or smashed.shape[0] != batch_size or smashed.size == 0:
        raise check.error(
            f"activations of the {cut}", found, f"one array of floats [{batch_size}, ...], batch first, not empty"
        )
    return jax.ShapeDtypeStruct(smashed.shape, smashed.dtype)


def crossing(
    model: split.SplitModel, inputs: states.Inputs, client: Half, server: Half, x: np.ndarray, y: np.ndarray
) -> tuple[Array, ...]:
    """Returns the activations of every cut and their gradient on one batch, with nothing compressed."""

    @jax.jit
    def cross(client: Half, server: Half, x: Array, y: Array) -> tuple[Array, ...]:
        smashed, _ = model.client(*client, inputs.normalise(x), True)

        def loss(logits):
            return states.cross_entropy(logits, y)[0]

        def rest(smashed):
            return model.server(*server, smashed, True)[0]

        if model.tail_apply is None:
            return smashed, jax.grad(lambda smashed: loss(rest(smashed)))(smashed)

        def tail(features):
            return model.tail(*client, features, True)[0]

        features, backward = jax.vjp(rest, smashed)
        features_grad = jax.grad(lambda features: loss(tail(features)))(features)
        return smashed, *backward(features_grad), features, features_grad

    return cross(client, server, jnp.asarray(x), jnp.asarray(y))


def _estimator(config: Config) -> links.Estimator:
    name = check.one_of("link.estimator", config.link.estimator, links.ESTIMATORS)
    return links.quantile(miss=config.link.late_share) if name == "quantile" else links.ESTIMATORS[name]()


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


def _largest_budget(config: Config, trace: links.Trace) -> int:
    """Returns the largest budget that a link can ever give a message: that of its highest rate."""
    if config.link.deadline_s is None:
        return MAX_BYTES
    return int(links.budget_bytes(trace.mbit_per_s.max(), config.link.deadline_s, config.link.latency_ms / 1000))

"""Time and memory of one training step of a config: plain Flax loop, uncompressed split step, compressed split step.

    python benchmarks/step.py [--config configs/cifar10_bench.toml] [--rounds 40]

The three take turns in one process, so that a noisy machine is noisy for all; the ratios of each round count. It writes
`benchmarks/results/step.json`. Data are made up: time does not depend on them.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from record import write
from threadpoolctl import threadpool_limits

from nscjax import measure, models
from train import config as configs
from train import optimise
from train import state as states
from train.data import Dataset
from train.data.batches import augment, take_batch
from train.setup import architecture_of, initial_mbps, network, set_up

NUM_TRAIN = 2048


def made_data(shape: tuple[int, ...], num_classes: int) -> Dataset:
    """Returns random images with random labels."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (NUM_TRAIN, *shape), dtype=np.uint8)
    y = random.integers(0, num_classes, NUM_TRAIN).astype(np.int32)
    channels = np.full(shape[-1], 0.5, np.float32)
    return Dataset("cifar10", x, y, x, y, num_classes, channels, channels, tuple(map(str, range(num_classes))))


def split_step(config: configs.Config, dataset: Dataset) -> tuple[Callable, Any, Any, jax.ShapeDtypeStruct]:
    """Returns (jitted step, its state, compiled step, spec of a cut tensor) of the trainer's fused step."""
    model, client, server = network(config, dataset)
    setup, spec, _ = set_up(config, dataset, model, client, server, 1000, None)
    state = states.init(setup, spec, client, server, initial_mbps(config))

    def step(state, x, y, order):
        batch = take_batch(x, y, order, state.step % (NUM_TRAIN // config.train.batch_size), config.train.batch_size)
        return states.train_step(setup, state, *batch)

    return (*_compiled(step, state, dataset), spec)


def plain_step(config: configs.Config, dataset: Dataset) -> tuple[Callable, Any, Any]:
    """Returns (jitted step, its state, compiled step) of the same network trained by a plain loop with no cut."""
    settings = {**architecture_of(config, dataset), "cut": None}
    model = models.build(**settings)
    x_spec = jax.ShapeDtypeStruct((config.train.batch_size, *dataset.x_train.shape[1:]), jnp.float32)
    _, (params, running) = models.init(key=jax.random.key(0), x_spec=x_spec, **settings)
    optimiser = optimise.direction(config.train)
    rate = optimise.learning_rate(config.train, 1000)

    def step(state, x, y, order):
        params, running, optimiser_state, number = state
        x, y, _ = take_batch(x, y, order, number % (NUM_TRAIN // config.train.batch_size), config.train.batch_size)
        x = augment(jax.random.fold_in(jax.random.key(0), number), x) if config.data.augment else x
        x = (x.astype(jnp.float32) / 255 - dataset.mean) / dataset.std

        def loss_of(params):
            logits, new_running = model.server_apply(params, running, x, True)
            loss, accuracy = states.cross_entropy(logits, y)
            return loss, (accuracy, new_running)

        (loss, (accuracy, running)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        directions, optimiser_state = optimiser.update(grads, optimiser_state, params)
        params = optimise.apply(params, directions, rate(number))
        return (params, running, optimiser_state, number + 1), (loss, accuracy)

    return _compiled(step, (params, running, optimiser.init(params), jnp.zeros((), jnp.int32)), dataset)


def _compiled(step: Callable, state: Any, dataset: Dataset) -> tuple[Callable, Any, Any]:
    jitted = jax.jit(step, donate_argnums=0)
    arrays = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train), jnp.arange(NUM_TRAIN, dtype=jnp.int32)
    compiled = jitted.lower(state, *arrays).compile()
    return (lambda state: compiled(state, *arrays)), state, compiled


def main() -> None:
    """Times the three in turn and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_bench.toml")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    config = configs.from_toml(Path(options.config))
    dataset = made_data((32, 32, 3), 10)
    alone = dataclasses.replace(configs.DirectionConfig(), method="identity")
    uncompressed = dataclasses.replace(config, compress=configs.CompressConfig(alone, alone))
    steps, states_, compiled = {}, {}, {}
    steps["plain"], states_["plain"], compiled["plain"] = plain_step(config, dataset)
    steps["identity"], states_["identity"], compiled["identity"], spec = split_step(uncompressed, dataset)
    steps["nsc_sl"], states_["nsc_sl"], compiled["nsc_sl"], spec = split_step(config, dataset)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with threadpool_limits(limits=1, user_api="blas"):  # as the trainer does
        for _ in range(options.rounds):
            for name, step in steps.items():
                started = time.perf_counter()
                states_[name], out = step(states_[name])
                jax.block_until_ready(out)
                seconds[name].append(time.perf_counter() - started)
    warm = {name: times[3:] for name, times in seconds.items()}

    def ratio(name: str, rival: str) -> float:
        return statistics.median(a / b for a, b in zip(warm[name], warm[rival]))

    def megabytes(name: str) -> float:
        return compiled[name].memory_analysis().temp_size_in_bytes / 1e6

    cut_megabytes = measure.raw_bytes(spec.shape) / 1e6
    rows = {
        "config": Path(options.config).name,
        "cut_shape": list(spec.shape),
        "median_seconds": {name: statistics.median(times) for name, times in warm.items()},
        "identity_over_plain": ratio("identity", "plain"),
        "nsc_sl_over_identity": ratio("nsc_sl", "identity"),
        "temporary_megabytes": {name: megabytes(name) for name in steps},
        "nsc_sl_over_identity_in_cut_tensors": (megabytes("nsc_sl") - megabytes("identity")) / cut_megabytes,
    }
    for name, value in rows.items():
        print(f"{name}: {value}")
    write("step", rows, seeds=[0])


if __name__ == "__main__":
    main()

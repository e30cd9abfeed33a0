"""Time and memory of one training step of a config: plain Flax loop, uncompressed split step, compressed split step.

    python benchmarks/step.py [--config configs/cifar10_bench.toml] [--rounds 40] [--steps 1] [--table step]

All take turns in one process, so that a noisy machine is noisy for all; the ratios of each round count. With them
goes the plain step of several seeds at once, by `vmap`, against as many one after the other: whether a grid of runs is
to be made so. It writes `benchmarks/results/TABLE.json`. Data are made up: time does not depend on them.
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
from train import step as steps
from train.data import Dataset
from train.data.batches import augment, take_batch
from train.setup import architecture_of, initial_mbps, network, set_up

NUM_TRAIN = 2048
SEEDS = 2
"""Networks that are trained at once by `vmap`."""


def made_data(shape: tuple[int, ...], num_classes: int) -> Dataset:
    """Returns random images with random labels."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (NUM_TRAIN, *shape), dtype=np.uint8)
    y = random.integers(0, num_classes, NUM_TRAIN).astype(np.int32)
    channels = np.full(shape[-1], 0.5, np.float32)
    return Dataset("cifar10", x, y, x, y, num_classes, channels, channels, tuple(map(str, range(num_classes))))


def split_step(config: configs.Config, dataset: Dataset) -> tuple[Callable, Any, int, jax.ShapeDtypeStruct]:
    """Returns (step, its state, temporary bytes, spec of a cut tensor) of the trainer's step, both parties here."""
    model, client, server = network(config, dataset)
    setup, _ = set_up(config, dataset, model, client, server, 1000, None)
    state = states.init(setup, client, server, initial_mbps(config))
    parts, batch_size = steps.programs(setup), config.train.batch_size
    x, y, order = _arrays(dataset)
    take = jax.jit(lambda step: take_batch(x, y, order, step % (NUM_TRAIN // batch_size), batch_size))

    def step(state):
        return steps.train_step(parts, state, *take(state.step))

    return step, state, _temporary_bytes(parts, state, take(state.step)), setup.cuts[0].spec


def _temporary_bytes(parts: steps.Programs, state: states.TrainState, batch: tuple) -> int:
    """Returns the most bytes that a step has in use beside the states: within its programs, and between them."""
    (x, y, ids), (up, down) = batch, parts.budgets(state.link)

    def sizes(program: Any, *arguments: Any) -> tuple[int, int]:
        used = program.lower(*arguments).compile().memory_analysis()
        return used.temp_size_in_bytes, used.output_size_in_bytes

    sent_arguments = state.client, state.step, x, ids, up
    send, sent = sizes(parts.send, *sent_arguments)
    payload, pending, client = parts.send(*sent_arguments)
    answer_arguments = state.server, state.server_optimiser, state.step, payload, y, ids, up, down
    answer, answered = sizes(parts.answer, *answer_arguments)
    reply = parts.answer(*answer_arguments)[0].payload
    receive, received = sizes(parts.receive, client, state.client_optimiser, state.step, pending, reply, ids, down)
    return sent + max(send, answered + max(answer, receive + received))


def plain_step(config: configs.Config, dataset: Dataset, num_seeds: int | None = None) -> tuple[Callable, Any, int]:
    """Returns (jitted step, its state, temporary bytes) of the same network trained by a plain loop with no cut.

    Args:
        config: of the run.
        dataset: to train on.
        num_seeds: so many networks at once, on the same batches; None for one.
    """
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

    state, arrays = (params, running, optimiser.init(params), jnp.zeros((), jnp.int32)), _arrays(dataset)
    if num_seeds is not None:
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_seeds), state)
        step = jax.vmap(step, in_axes=(0, *[None] * len(arrays)))
    compiled = jax.jit(step, donate_argnums=0).lower(state, *arrays).compile()
    return (lambda state: compiled(state, *arrays)), state, compiled.memory_analysis().temp_size_in_bytes


def _arrays(dataset: Dataset) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the training images and labels, and an order of them."""
    return jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train), jnp.arange(NUM_TRAIN, dtype=jnp.int32)


def main() -> None:
    """Times them in turn and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_bench.toml")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1, help="in a row, by turns; more where a device runs ahead")
    parser.add_argument("--table", default="step", help="name of the results file")
    options = parser.parse_args()
    config = configs.from_toml(Path(options.config))
    dataset = made_data((32, 32, 3), 10)
    alone = dataclasses.replace(configs.DirectionConfig(), method="identity")
    uncompressed = dataclasses.replace(config, compress=configs.CompressConfig(alone, alone))
    run, states_, num_bytes = {}, {}, {}
    run["plain"], states_["plain"], num_bytes["plain"] = plain_step(config, dataset)
    several = f"plain, {SEEDS} seeds by vmap"
    run[several], states_[several], num_bytes[several] = plain_step(config, dataset, SEEDS)
    run["identity"], states_["identity"], num_bytes["identity"], spec = split_step(uncompressed, dataset)
    run["nsc_sl"], states_["nsc_sl"], num_bytes["nsc_sl"], spec = split_step(config, dataset)
    seconds: dict[str, list[float]] = {name: [] for name in run}
    with threadpool_limits(limits=1, user_api="blas"):  # as the trainer does
        for _ in range(options.rounds):
            for name, step in run.items():
                started = time.perf_counter()
                for _ in range(options.steps):
                    states_[name], out = step(states_[name])
                jax.block_until_ready(out)
                seconds[name].append((time.perf_counter() - started) / options.steps)
    warm = {name: times[3:] for name, times in seconds.items()}

    def ratio(name: str, rival: str) -> float:
        return statistics.median(a / b for a, b in zip(warm[name], warm[rival]))

    def megabytes(name: str) -> float:
        return num_bytes[name] / 1e6

    cut_megabytes = measure.raw_bytes(spec.shape) / 1e6
    rows = {
        "config": Path(options.config).name,
        "cut_shape": list(spec.shape),
        "steps_in_a_row": options.steps,
        "median_seconds": {name: statistics.median(times) for name, times in warm.items()},
        "identity_over_plain": ratio("identity", "plain"),
        "vmap_over_one_after_the_other": ratio(several, "plain") / SEEDS,
        "nsc_sl_over_identity": ratio("nsc_sl", "identity"),
        "temporary_megabytes": {name: megabytes(name) for name in run},
        "nsc_sl_over_identity_in_cut_tensors": (megabytes("nsc_sl") - megabytes("identity")) / cut_megabytes,
    }
    for name, value in rows.items():
        print(f"{name}: {value}")
    write(options.table, rows, seeds=[0])


if __name__ == "__main__":
    main()

"""Small runs of the trainer for its tests: made data, short settings, and what was compiled kept for the next run."""

import contextlib
import dataclasses
import json
import os
import socket
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache
from threadpoolctl import threadpool_limits

from nscjax import link, split
from nscjax.compress import Duplex, identity
from train import main, optimise
from train import state as states
from train.config import Config, TrainConfig
from train.data import Dataset

ROOT = Path(main.__file__).parents[1]
NUM_TRAIN, NUM_TEST, NUM_CLASSES = 48, 20, 3

SMALL = """
[data]
name = "npz"
[model]
name = "mlp"
cut = "hidden1"
[compress.up]
max_rank = 6
view = "B,D"
[compress.down]
max_rank = 6
view = "B,D"
[train]
epochs = 2
batch_size = 8
learning_rate = 0.05
log_every = 1
checkpoint_every = 4
"""
"""Twelve steps in two epochs; every line of metrics; checkpoints after steps 4, 8 and 12; a cut of [8, 16]."""

TRACE = "time_s,mbit_per_s\n0,0.02\n0.2,0.006\n0.4,0.012\n0.6,0.0038\n1.0,0.009\n1.3,0.004\n"
"""With a deadline of 0.1 s: budgets from below one component (about 50 bytes) to all that `SMALL` can send."""


def free_address():
    """Returns a free address of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def quick_compilation(folder):
    """Keeps compiled functions in `folder`, little optimised: a run made again, here or in a child, compiles nothing.

    It is still traced and lowered as often as ever: what `count_compilations` counts stays as it is. LAPACK has one
    thread, as in a run: several would wait for those of the test beside this one.
    """
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    _compile(folder, 0.0, is_quick=True)
    with threadpool_limits(limits=1, user_api="blas"):
        yield
    _compile(*before, is_quick=False)


def _compile(cache, min_seconds, is_quick):
    jax.config.update("jax_compilation_cache_dir", cache and str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    jax.config.update("jax_disable_most_optimizations", is_quick)
    compilation_cache.reset_cache()


def child_environment():
    """Returns the environment of a child process that compiles as it is done within `quick_compilation`."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }


@contextlib.contextmanager
def count_compilations():
    """Yields a counter of function names, one up whenever jax compiles a function for new shapes, types or devices."""
    counter = Counter()

    def count(event, _duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counter[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    monitoring.register_event_duration_secs_listener(count)
    try:
        yield counter
    finally:
        monitoring.unregister_event_duration_listener(count)


def made_dataset(height=8, channels=1, num_train=NUM_TRAIN, num_test=NUM_TEST, num_classes=NUM_CLASSES):
    """Returns images of noise, brighter in one part for each class, so that a few steps learn something."""
    random = np.random.default_rng(0)
    arrays = []
    for number in (num_train, num_test):
        y = (np.arange(number) % num_classes).astype(np.int32)
        x = random.integers(0, 128, (number, height, height, channels))
        x[np.arange(number), y % height] += 127
        arrays += [x.astype(np.uint8), y]
    mean, std = np.full(channels, 0.3, np.float32), np.full(channels, 0.2, np.float32)
    return Dataset("made", *arrays, num_classes, mean, std, tuple(map(str, range(num_classes))))


def write_npz(path, dataset):
    """Writes a data set as the file that `data.name = "npz"` reads."""
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{name: getattr(dataset, name) for name in names})
    return path


def made_folder(folder):
    """Returns a folder with `small.toml`, the data that it names, and `trace.csv`."""
    data = write_npz(folder / "made.npz", made_dataset())
    (folder / "trace.csv").write_text(TRACE)
    (folder / "small.toml").write_text(SMALL.replace('name = "npz"', f'name = "npz"\ndir = "{data}"'))
    return folder


def own_model():
    """Returns (a split model without Flax, its client's half, its server's half) for inputs [B, 4] and 3 classes."""
    random = np.random.default_rng(1)
    client = {"w": jnp.asarray(random.normal(size=(4, 6)), jnp.float32), "b": jnp.zeros(6)}
    server = {"w": jnp.asarray(random.normal(size=(6, 3)), jnp.float32), "b": jnp.zeros(3)}
    model = split.SplitModel(
        client_apply=lambda params, x: jnp.tanh(x @ params["w"] + params["b"]),
        server_apply=lambda params, smashed: smashed @ params["w"] + params["b"],
    )
    return model, (client, ()), (server, ())


def own_dataset(num_train=NUM_TRAIN, num_test=NUM_TEST):
    """Returns float inputs [N, 4] of 3 classes that lie apart."""
    random = np.random.default_rng(2)
    arrays = []
    for number in (num_train, num_test):
        y = (np.arange(number) % 3).astype(np.int32)
        x = random.normal(size=(number, 4)) + 2 * np.eye(4)[y]
        arrays += [x.astype(np.float32), y]
    return Dataset("own", *arrays, 3, None, None, ("a", "b", "c"))


def own_setup(up=None, down=None, train=None, num_steps=10, caps=(100_000, 100_000), cut_shape=(8, 6), **changes):
    """Returns the `Setup` of `own_model`, both directions left alone unless given."""
    duplex = Duplex(up=up or identity(), down=down or identity())
    train = train or TrainConfig(optimizer="sgd", learning_rate=0.1, schedule="constant", warmup=0.0)
    setup = states.Setup(
        model=own_model()[0],
        inputs=states.Inputs(mean=None, std=None, dtype=jnp.dtype("float32"), is_augmented=False, can_flip=False),
        cuts=(states.Cut(duplex, caps, jax.ShapeDtypeStruct(cut_shape, "float32")),),
        optimiser=optimise.direction(train),
        learning_rate=optimise.learning_rate(train, num_steps),
        link=link.Link(up=link.unlimited(), down=link.unlimited()),
        estimator=link.quantile(),
        deadline_s=None,
        key=jax.random.key(0),
    )
    return setup._replace(**changes)


def own_state(setup, initial_mbps=(1.0, 1.0)):
    """Returns the state before the first step of `own_model`."""
    _, client, server = own_model()
    return states.init(setup, client, server, initial_mbps)


def own_config(run_dir, **train):
    """Returns a config for `own_model` on `own_dataset`: 12 steps, every line of metrics."""
    small = {"epochs": 2, "batch_size": 8, "log_every": 1, "learning_rate": 0.1}
    return dataclasses.replace(Config(run_dir=str(run_dir)), train=TrainConfig(**{**small, **train}))


def lines(run_dir, kind=None):
    """Returns the lines of `metrics.jsonl`, all or those of one kind."""
    found = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def summary(run_dir):
    """Returns `summary.json` without `wall_seconds`."""
    found = json.loads((Path(run_dir) / "summary.json").read_text())
    return {name: value for name, value in found.items() if name != "wall_seconds"}


def snapshot(folder):
    """Returns path -> (time of last change, content) of everything in a folder: equal if nothing was touched."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def same_leaves(one, other):
    """Tells whether two pytrees have the same leaves, to the bit."""
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(ones) == len(others) and all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in zip(ones, others)
    )

"""Cut tensors of a real training run: activations and their gradients, a few batches in a row at several points.

    python benchmarks/capture.py [CONFIG] --data_dir DIR [--steps 50 250 450] [--messages 8]

It trains the config without compression and writes `runs/captures/CONFIG.npz`: arrays `up_STEP` and `down_STEP`
[messages, B, ...]. `benchmarks/distortion.py` sends them through compressors.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from nscjax.types import Array
from train import config as configs
from train import data
from train import state as states
from train import step as train_step
from train.data.batches import epoch_key, epoch_order, take_batch
from train.setup import crossing, initial_mbps, network, set_up

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "captures"


def uncompressed(config: configs.Config) -> configs.Config:
    """Returns the config with both directions left alone."""
    alone = configs.DirectionConfig(method="identity")
    return dataclasses.replace(config, compress=configs.CompressConfig(alone, alone))


def capture(config: configs.Config, steps: list[int], messages: int) -> dict[str, np.ndarray]:
    """Returns `messages` cut tensors in a row after each of `steps`, and their gradients, by name.

    Args:
        config: of the run, whose compression is left out.
        steps: how many training steps lie before the first tensor of each series.
        messages: how many steps a series holds.
    """
    config = uncompressed(config)
    dataset = data.load(config.data)
    model, client, server = network(config, dataset)
    batch_size = config.train.batch_size
    steps_per_epoch = len(dataset.x_train) // batch_size
    num_steps = config.train.steps or config.train.epochs * steps_per_epoch
    setup, _ = set_up(config, dataset, model, client, server, num_steps, None)
    state = states.init(setup, client, server, initial_mbps(config))
    x, y = jax.device_put((dataset.x_train, dataset.y_train))
    order_of = jax.jit(lambda epoch: epoch_order(epoch_key(config.seed, epoch), len(x)))

    @jax.jit
    def batch_of(order: Array, step: Array) -> tuple[Array, Array, Array]:
        x_batch, y_batch, ids = take_batch(x, y, order, step % steps_per_epoch, batch_size)
        return setup.inputs.augment(jax.random.fold_in(setup.key, step), x_batch), y_batch, ids

    inputs = setup.inputs._replace(is_augmented=False)  # done above: what is captured is what is trained on
    parts = train_step.programs(setup._replace(inputs=inputs))
    cross = jax.jit(lambda client, server, x, y: crossing(model, inputs, client, server, x, y))
    found: dict[str, list[np.ndarray]] = {f"{way}_{step}": [] for step in steps for way in ("up", "down")}
    for step in track(range(max(steps) + messages), "training"):
        if step % steps_per_epoch == 0:
            order = order_of(step // steps_per_epoch)
        x_batch, y_batch, ids = batch_of(order, step)
        for first in steps:
            if first <= step < first + messages:
                halves = (state.client.params, state.client.state), (state.server.params, state.server.state)
                for way, tensor in zip(("up", "down"), cross(*halves, x_batch, y_batch)):
                    found[f"{way}_{first}"].append(np.asarray(tensor))
        state, _ = train_step.train_step(parts, state, x_batch, y_batch, ids)
    return {name: np.stack(tensors) for name, tensors in found.items()}


def main() -> None:
    """Captures and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="cifar10_bench", help="name of a file in configs/")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 250, 450])
    parser.add_argument("--messages", type=int, default=8)
    options = parser.parse_args()
    config = configs.from_toml(ROOT / "configs" / f"{options.config}.toml")
    if options.data_dir:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=options.data_dir))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{options.config}.npz"
    np.savez(path, **capture(config, options.steps, options.messages))
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

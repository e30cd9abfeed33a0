"""One message that had little room, in the middle of a run: how far it throws either half, and what the loss is after.

    python benchmarks/outage.py --data_dir DIR [--config cifar10_bench] [--steps 150] [--ratio 256]

With every method's settings of the grid (`accuracy_vs_bytes.py`) a run is trained for some steps at the ratio. Then,
from the same state, one step's message of the uplink has a budget of so many bytes, and ten steps follow that are as
usual; once more with `nsc_sl` as it was, when one bit an entry was a message. `moved` is how far the parameters of a
half went in that step, of how far they go with the usual budget; `loss_after` the mean loss of the steps that follow,
less the usual one. It writes `benchmarks/results/outage.json`.
"""

import argparse
import importlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import runs
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from accuracy_vs_bytes import cut_shape, overrides
from record import write
from rich.progress import track
from threadpoolctl import threadpool_limits

from train import config as configs
from train import data, loop
from train import state as states
from train import step as train_step
from train.setup import initial_mbps, network, set_up

METHODS = ("nsc_sl", "nsc_rd", "dct", "powersgd")
BUDGETS = (500, 1000, 1500, 2500, 5000, 10_000)
AFTER = 10
"""Steps that follow."""


def config_of(name: str, method: str, ratio: int, data_dir: str | None) -> configs.Config:
    """Returns the config of the grid's cell of a method and a ratio."""
    return runs.config_of(
        name, overrides(method, ratio, cut_shape(name)) | ({"data.dir": data_dir} if data_dir else {})
    )


def outages(config: configs.Config, steps: int) -> dict[str, dict[str, float]]:
    """Returns by budget what one message of that size does after so many steps."""
    dataset = data.load(config.data)
    model, client, server = network(config, dataset)
    calendar = loop.calendar_of(config, dataset)
    setup, _ = set_up(config, dataset, model, client, server, calendar.num_steps, None)
    trained: Any = states.init(setup, client, server, initial_mbps(config))
    x, y = map(jnp.asarray, (dataset.x_train, dataset.y_train))
    batch_of = loop.batches_on_device(config, x, y, calendar.steps_per_epoch)
    parts = train_step.programs(setup)
    up, down = map(int, setup.cuts[0].caps)

    def one(state: states.TrainState, step: int, budget: int) -> tuple[states.TrainState, states.Metrics]:
        given = parts._replace(budgets=lambda _: (np.int32(budget), np.int32(down)))
        return train_step.train_step(given, state, *batch_of(step))

    for step in track(range(steps), config.compress.up.method):
        trained, _ = one(trained, step, up)

    def play(budget: int) -> tuple[float, float, float, int, float]:
        state, metrics = one(trained, steps, budget)
        moved = (
            float(optax.global_norm(jax.tree.map(jnp.subtract, after.params, before.params)))
            for after, before in ((state.client, trained.client), (state.server, trained.server))
        )
        losses = []
        for step in range(steps + 1, steps + 1 + AFTER):
            state, after = one(state, step, up)
            losses.append(float(after.loss))
        return *moved, float(np.mean(losses)), int(metrics.up.num_bytes), float(metrics.up.distortion)

    client_usual, server_usual, loss_usual, *_ = play(up)
    found = {}
    for budget in BUDGETS:
        client_moved, server_moved, loss, num_bytes, distortion = play(budget)
        found[str(budget)] = {
            "client_moved": client_moved / client_usual, "server_moved": server_moved / server_usual,
            "loss_after": loss - loss_usual, "bytes": num_bytes, "distortion": distortion,
        }  # fmt: skip
        print(config.compress.up.method, budget, found[str(budget)], flush=True)
    return found


def main() -> None:
    """Measures every method and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar10_bench", help="name of a file in configs/")
    parser.add_argument("--data_dir", help="folder of the data set; by default the config's")
    parser.add_argument("--steps", type=int, default=150, help="of training before the message")
    parser.add_argument("--ratio", type=int, default=256, help="of the run")
    options = parser.parse_args()
    with threadpool_limits(limits=1, user_api="blas"):
        methods = {
            method: outages(config_of(options.config, method, options.ratio, options.data_dir), options.steps)
            for method in METHODS
        }
        low_rank = importlib.import_module("nscjax.compress.low_rank")  # the package has a function of that name
        with mock.patch.object(low_rank, "LEAST_BITS", 1):  # as it was; read when a step is traced
            config = config_of(options.config, "nsc_sl", options.ratio, options.data_dir)
            methods["nsc_sl, one bit"] = outages(config, options.steps)
    write("outage", {"ratio": options.ratio, "steps": options.steps, "methods": methods}, seeds=[0])


if __name__ == "__main__":
    main()
